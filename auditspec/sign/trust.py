"""The trust policy: whose signatures count, in which role, and how many are needed.

    auditspec_trust: "1"
    keys:
      - {name: Ada Auditor, role: auditor, key: auditor.pub}
    require: {auditor: 1}
    algorithms: [ecdsa-p256-sha256, ed25519]

It belongs to whoever verifies, and is never read from a packet. Key paths are relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError

from auditspec.artifacts.files import read_regular
from auditspec.errors import EvidenceError, Problem, SpecError, UsageError
from auditspec.results import Frozen, Text
from auditspec.sign import keys
from auditspec.sign.keys import Algorithm, PublicKey
from auditspec.spec import tree
from auditspec.spec.source import in_order
from auditspec.spec.validation import validate

ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
Role = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


@dataclass(frozen=True)
class TrustedKey:
    """A public key, and who holds it in which role."""

    name: str
    role: str
    key: PublicKey

    @property
    def keyid(self) -> str:
        """sha256 of the key's SubjectPublicKeyInfo in DER, hex."""
        return keys.keyid(self.key)

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that the key signs with."""
        return keys.algorithm_of(self.key)


@dataclass(frozen=True)
class Trust:
    """A trust policy with its keys loaded."""

    keys: tuple[TrustedKey, ...]
    require: dict[str, int]
    """Signers needed per role."""
    algorithms: tuple[Algorithm, ...] = ALGORITHMS

    @classmethod
    def read(cls, path: Path) -> Trust:
        """Read a trust file and the keys that it names.

        Raises:
            SpecError: with every problem of the file at its line and column.
            UsageError: if the file or a key cannot be read.
        """
        try:
            data = read_regular(path)
        except EvidenceError as error:
            raise UsageError(error.message, "name the trust file: --trust trust.yaml") from None
        file = str(path)
        root, problems = tree.read(data, file)
        if root is None:
            raise SpecError(problems)
        stored, wrong_fields = validate(root, _TrustFile, file)
        if stored is None or problems:
            raise SpecError(in_order([*problems, *wrong_fields]))
        trusted = tuple(
            TrustedKey(k.name, k.role, keys.load_public(path.parent / k.key)) for k in stored.keys
        )
        if contradictions := list(_contradictions(trusted, stored, root, file)):
            raise SpecError(in_order(contradictions))
        return cls(trusted, dict(stored.require), stored.algorithms)


def write_trust(path: Path, name: str, role: str, key: str) -> None:
    """Write a trust file with one key, of which one signature is needed.

    Raises:
        UsageError: if the name or role cannot stand in a trust file, the file exists, or its folder
            cannot be written.
    """
    try:
        _KeyEntry(name=name, role=role, key=key)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{first['loc'][0]} {first['input']!r}: {first['msg']}") from None
    keys.write_new(
        path,
        f"""\
# Whose signatures on a packet count. Keep this file with whoever verifies, apart from packets.
auditspec_trust: "1"
keys:
  - {{name: {_quoted(name)}, role: {role}, key: {_quoted(key)}}}
require: {{{role}: 1}}
algorithms: [{", ".join(ALGORITHMS)}]
""".encode(),
    )


def _quoted(text: str) -> str:
    """Text as a double-quoted YAML scalar, which a JSON string is."""
    return json.dumps(text, ensure_ascii=False)


class _KeyEntry(Frozen):
    name: Text
    role: Role
    key: Text


class _TrustFile(Frozen):
    auditspec_trust: Literal["1"]
    keys: Annotated[tuple[_KeyEntry, ...], Field(min_length=1)]
    require: Annotated[dict[Role, Annotated[int, Field(ge=1)]], Field(min_length=1)]
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ALGORITHMS


def _contradictions(
    trusted: tuple[TrustedKey, ...], stored: _TrustFile, root: tree.Node, file: str
) -> Iterator[Problem]:
    """Check the rules that span several parts of the file."""
    seen: dict[str, str] = {}
    for index, key in enumerate(trusted):
        if key.keyid in seen:
            message = f"the same key as {seen[key.keyid]}'s; its signature would count twice"
            place = root.nearest(("keys", index, "key")).place
            yield Problem("AS060", message, file, *place, "list each key once")
        seen.setdefault(key.keyid, key.name)
    for role, needed in stored.require.items():
        holders = sum(key.role == role for key in trusted)
        if holders < needed:
            message = f"signers required in role '{role}': {needed}; listed: {holders}"
            place = root.nearest(("require", role)).place
            yield Problem("AS061", message, file, *place, "list their keys, or require fewer")
