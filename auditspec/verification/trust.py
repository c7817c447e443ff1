"""The trust policy: whose signatures count, in which role, and how many are needed.

    auditspec_trust: "1"
    keys:
      - {name: Ada Auditor, role: auditor, key: auditor.pub, until: 2027-12-31}
    authorities: {roots: [ca.pem], crls: [ca.crl]}
    identities:
      - {name: Model owner, role: owner, subject: "CN=Model owner,O=Example"}
    timestamps: {roots: [tsa.pem], crls: [tsa.crl]}
    log: log.pub
    witnesses: {require: 1, keys: [{name: witness.example/w1, key: w1.pub}]}
    require: {auditor: 1, owner: 1}
    algorithms: [ecdsa-p256-sha256, ed25519, rsa-pss-sha256]
    never_withheld: [/verdicts, /gate, failed-checks]

It belongs to whoever verifies, and is never read from a packet. Paths are relative to the file.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from auditspec.artifacts.files import read_regular
from auditspec.errors import EvidenceError, Problem, SpecError, UsageError
from auditspec.frozen import Frozen
from auditspec.results import Text
from auditspec.sign import certificates, keys
from auditspec.sign.certificates import Authorities, Revocation
from auditspec.sign.checkpoint import Witness, witness_of
from auditspec.sign.keys import Algorithm, PublicKey
from auditspec.spec import tree
from auditspec.spec.source import in_order
from auditspec.spec.validation import validate
from auditspec.verification.own_inputs import require_outside

FAILED_CHECKS = "failed-checks"
NEVER_WITHHELD = ("/verdicts", "/gate", FAILED_CHECKS)
"""What a packet must show where the trust file is silent."""
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
Role = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


@dataclass(frozen=True)
class TrustedKey:
    """A public key, who holds it in which role, and when its signatures count."""

    name: str
    role: str
    key: PublicKey
    start: dt.datetime | None = None
    end: dt.datetime | None = None
    revoked: dt.datetime | None = None
    """From when on the key may have been in other hands."""
    roots: tuple[bytes, ...] = ()
    """Of a certificate's key: who must vouch for its holder (DER)."""

    @property
    def keyid(self) -> str:
        """sha256 of the key's SubjectPublicKeyInfo in DER, hex."""
        return keys.keyid(self.key)

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm that the key signs with."""
        return keys.algorithm_of(self.key)


@dataclass(frozen=True)
class Identity:
    """A holder of certificates of the trusted authorities."""

    name: str
    role: str
    subject: str
    """The certificate's subject as RFC 4514 writes it."""
    roots: tuple[bytes, ...] = ()
    """Who must vouch for it (DER); empty: any trusted root, of which there should be one."""


@dataclass(frozen=True)
class Witnesses:
    """Who is known to watch the log, and how many of them must have cosigned a packet's checkpoint."""

    require: int = 0
    known: tuple[Witness, ...] = ()


NO_WITNESSES = Witnesses()


@dataclass(frozen=True)
class Trust:
    """A trust policy with its keys and certificates loaded."""

    keys: tuple[TrustedKey, ...]
    require: dict[str, int]
    """Signers needed per role."""
    algorithms: tuple[Algorithm, ...] = ALGORITHMS
    authorities: Authorities = field(default_factory=Authorities)
    """Who vouches for identities."""
    identities: tuple[Identity, ...] = ()
    timestamps: Authorities | None = None
    """Who may say when a signature was made; None: no timestamp is looked at."""
    log: PublicKey | None = None
    """The key of the log in which every packet must stand; None: no log is asked for."""
    witnesses: Witnesses = NO_WITNESSES
    never_withheld: tuple[str, ...] = NEVER_WITHHELD
    """JSON pointers into results, where `*` is any one part; `failed-checks`: all about checks that did not pass."""

    @classmethod
    def read(cls, path: Path, packet: Path | None = None) -> Trust:
        """Read a trust file and the keys that it names.

        Args:
            path: the file.
            packet: the packet that is to be verified, inside which neither the file nor what it names may lie.

        Raises:
            SpecError: with every problem of the file at its line and column.
            UsageError: if the file or a key cannot be read, or lies inside the packet.
        """
        if packet is not None:
            require_outside(packet, path, "the trust file")
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
        folder = path.parent
        if packet is not None:
            for name in stored.files:
                require_outside(packet, folder / name, "what the trust file names")
        trusted = tuple(
            TrustedKey(
                k.name,
                k.role,
                keys.load_public(folder / k.key),
                _midnight(k.start),
                _midnight(k.end),
                _midnight(k.revoked),
            )
            for k in stored.keys
        )
        contradictions = [
            *_contradictions(trusted, stored, folder, root, file),
            *_contradictory_witnesses(stored, folder, root, file),
        ]
        if contradictions:
            raise SpecError(in_order(contradictions))
        return cls(
            trusted,
            dict(stored.require),
            stored.algorithms,
            stored.authorities.load(folder) if stored.authorities else Authorities(),
            tuple(i.load(folder) for i in stored.identities),
            stored.timestamps.load(folder) if stored.timestamps else None,
            keys.load_public(folder / stored.log) if stored.log else None,
            stored.witnesses.load(folder) if stored.witnesses else NO_WITNESSES,
            stored.never_withheld,
        )


def write_trust(path: Path, name: str, role: str, key: str) -> None:
    """Write a trust file with one key, of which one signature is needed.

    Raises:
        UsageError: if the name or role cannot stand in a trust file, the file exists, or its folder
            cannot be written.
    """
    _check_entry(name, role, key)
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


def add_key(path: Path, name: str, role: str, key: str) -> bytes:
    """The text of a trust file with one more key; everything else stands as it stood.

    How many signatures are required does not change: a further one is welcome, not needed.

    Raises:
        SpecError: if the file is no trust file.
        UsageError: if it cannot be read, the name or role cannot stand in it, or its keys are written
            so that nothing can be added to them.
    """
    _check_entry(name, role, key)
    Trust.read(path)
    text = read_regular(path).decode("utf-8-sig")
    entry = f"{{name: {_quoted(name)}, role: {role}, key: {_quoted(key)}}}"
    root: Any = yaml.compose(text, yaml.SafeLoader)
    held = {k.value: (k, v) for k, v in root.value}
    if "keys" not in held and not root.flow_style:
        return (text.rstrip("\n") + f"\nkeys:\n  - {entry}\n").encode()
    listed = held["keys"][1] if "keys" in held else None
    if listed is None or not listed.value:
        raise UsageError(f"{path}: has no list of keys to add to", f"add it by hand: - {entry}")
    place = listed.start_mark
    if listed.flow_style:
        at, added = place.index + 1, f"{entry}, "
    else:  # the mark stands at the first dash
        at, added = place.index, f"- {entry}\n{' ' * place.column}"
    return (text[:at] + added + text[at:]).encode()


def _check_entry(name: str, role: str, key: str) -> None:
    try:
        _KeyEntry(name=name, role=role, key=key)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{first['loc'][0]} {first['input']!r}: {first['msg']}") from None


def _quoted(text: str) -> str:
    """Text as a double-quoted YAML scalar, which a JSON string is."""
    return json.dumps(text, ensure_ascii=False)


def _midnight(day: dt.date | None) -> dt.datetime | None:
    """The moment at which a day begins, UTC."""
    return None if day is None else dt.datetime.combine(day, dt.time(), dt.UTC)


class _KeyEntry(Frozen):
    name: Text
    role: Role
    key: Text
    start: dt.date | None = Field(default=None, alias="from")
    end: dt.date | None = Field(default=None, alias="until")
    revoked: dt.date | None = None


class _AuthoritiesEntry(Frozen):
    roots: Annotated[tuple[Text, ...], Field(min_length=1)]
    crls: tuple[Text, ...] = ()
    revocation: Revocation = "required"

    def load(self, folder: Path) -> Authorities:
        roots = (certificates.read_chain(folder / name) for name in self.roots)
        crls = (certificates.read_crls(folder / name) for name in self.crls)
        return Authorities(
            tuple(certificates.der(c) for chain in roots for c in chain),
            tuple(crl for crls_of_file in crls for crl in crls_of_file),
            self.revocation,
        )


class _IdentityEntry(Frozen):
    name: Text
    role: Role
    subject: Text
    root: Text | None = None

    def load(self, folder: Path) -> Identity:
        chain = certificates.read_chain(folder / self.root) if self.root else ()
        roots = tuple(certificates.der(c) for c in chain)
        return Identity(self.name, self.role, self.subject, roots)


class _WitnessEntry(Frozen):
    name: Text
    key: Text


class _WitnessesEntry(Frozen):
    require: Annotated[int, Field(ge=1)]
    keys: Annotated[tuple[_WitnessEntry, ...], Field(min_length=1)]

    def load(self, folder: Path) -> Witnesses:
        known = (witness_of(w.name, keys.load_public(folder / w.key)) for w in self.keys)
        return Witnesses(self.require, tuple(known))


Needed = Annotated[str, Field(pattern=rf"^(?:(?:/[^/]+)+|{FAILED_CHECKS})$", max_length=200)]


class _TrustFile(Frozen):
    auditspec_trust: Literal["1"]
    keys: tuple[_KeyEntry, ...] = ()
    authorities: _AuthoritiesEntry | None = None
    identities: tuple[_IdentityEntry, ...] = ()
    timestamps: _AuthoritiesEntry | None = None
    log: Text | None = None
    witnesses: _WitnessesEntry | None = None
    require: Annotated[dict[Role, Annotated[int, Field(ge=1)]], Field(min_length=1)]
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ALGORITHMS
    never_withheld: tuple[Needed, ...] = NEVER_WITHHELD

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that it names."""
        vouching = [a for a in (self.authorities, self.timestamps) if a is not None]
        log = (self.log,) if self.log else ()
        return (
            *(key.key for key in self.keys),
            *(name for entry in vouching for name in (*entry.roots, *entry.crls)),
            *log,
            *(witness.key for witness in (self.witnesses.keys if self.witnesses else ())),
        )


def _contradictions(
    trusted: tuple[TrustedKey, ...], stored: _TrustFile, folder: Path, root: tree.Node, file: str
) -> Iterator[Problem]:
    """Check the rules that span several parts of the file."""
    seen: dict[str, str] = {}
    for index, key in enumerate(trusted):
        if key.keyid in seen:
            message = f"the same key as {seen[key.keyid]}'s; its signature would count twice"
            place = root.nearest(("keys", index, "key")).place
            yield Problem("AS060", message, file, *place, "list each key once")
        seen.setdefault(key.keyid, key.name)
    subjects = [identity.subject for identity in stored.identities]
    for index, subject in enumerate(subjects):
        place = root.nearest(("identities", index, "subject")).place
        if subject in subjects[:index]:
            message = f"the same subject twice: {subject}"
            yield Problem("AS060", message, file, *place, "list each identity once")
        if stored.authorities is None:
            message = f"nobody is trusted to vouch for {subject}"
            yield Problem("AS062", message, file, *place, "name them: authorities.roots")
        elif problem := _unbound(stored.identities[index], stored.authorities, folder):
            hint = f"root: {stored.authorities.roots[0]}"
            yield Problem("AS062", problem, file, *place, hint)
    for role, needed in stored.require.items():
        holders = {key.name for key in trusted if key.role == role}
        holders |= {identity.name for identity in stored.identities if identity.role == role}
        if len(holders) < needed:
            message = f"signers required in role '{role}': {needed}; listed: {len(holders)}"
            place = root.nearest(("require", role)).place
            yield Problem("AS061", message, file, *place, "list their keys, or require fewer")


def _unbound(identity: _IdentityEntry, authorities: _AuthoritiesEntry, folder: Path) -> str | None:
    """Why it is open which root vouches for an identity; None where it is not."""
    if identity.root is not None:
        known = identity.root in authorities.roots
        return None if known else f"{identity.root} is none of authorities.roots"
    if len(authorities.load(folder).roots) > 1:
        return f"any of several roots could vouch for {identity.subject}"
    return None


def _contradictory_witnesses(
    stored: _TrustFile, folder: Path, root: tree.Node, file: str
) -> Iterator[Problem]:
    """Check the rules about witnesses: each is somebody else, and enough of them are listed."""
    if stored.witnesses is None:
        return
    listed = stored.witnesses.keys
    place = root.nearest(("witnesses", "require")).place
    if stored.log is None:
        yield Problem("AS062", "there is no log to witness", file, *place, "name it: log")
        return
    if len(listed) < stored.witnesses.require:
        message = f"witnesses required: {stored.witnesses.require}; listed: {len(listed)}"
        yield Problem("AS061", message, file, *place, "list their keys, or require fewer")
    seen = {keys.keyid(keys.load_public(folder / stored.log)): "the log"}
    for index, witness in enumerate(listed):
        keyid = keys.keyid(keys.load_public(folder / witness.key))
        if keyid in seen:
            message = f"the same key as that of {seen[keyid]}; it would witness itself"
            place = root.nearest(("witnesses", "keys", index, "key")).place
            yield Problem("AS060", message, file, *place, "list each key once")
        seen.setdefault(keyid, witness.name)
