"""What a packet's signature commits to, leaf by leaf, and what opens it (`packet.disclosure.json`).

    commitment(leaf) = sha256(salt ‖ JSON of the value)
    root             = of the Merkle tree (RFC 6962) over the entries  commitment ‖ pointer

The signed statement holds the root, the number of leaves, and for each file sha256(salt ‖ file); the salts stand in
`packet.disclosure.json`, which is not signed: any salt but the right one gives another root. Pointers are never hidden, so a leaf
cannot be moved or dropped; without its salt not even a value of which there are only two can be guessed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from auditspec.artifacts import merkle, strict_json
from auditspec.artifacts.digest import canonical_json
from auditspec.errors import EvidenceError, SignatureError
from auditspec.sign import salts
from auditspec.sign.salts import Subtree
from auditspec.withheld import MARKER, is_marker, leaves

STEP = "results-consistent"
FILE = "packet.disclosure.json"
MOST_SEEDS = 2**18
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Root(_Strict):
    """What the statement says about the leaves of `results.json`."""

    leaves: Annotated[int, Field(ge=1)]
    root: Hex


class Disclosure(_Strict):
    """The salts of what a packet discloses, version 1."""

    auditspec_disclosure: Literal["1"] = "1"
    seeds: Annotated[list[Hex], Field(max_length=MOST_SEEDS)]
    """Of the largest subtrees of leaves that hold no withheld one, in order (`salts`)."""
    files: dict[str, Hex]
    """Salts of the files that are as they were signed, by name."""

    @classmethod
    def fresh(cls, names: Mapping[str, object]) -> Disclosure:
        """New salts for a whole packet."""
        return cls(
            seeds=[salts.fresh().hex()], files={name: salts.fresh().hex() for name in sorted(names)}
        )

    def encode(self) -> bytes:
        """The canonical file."""
        return canonical_json(self.model_dump())

    @classmethod
    def decode(cls, data: bytes) -> Disclosure:
        """Read the file strictly: it has one encoding.

        Raises:
            SignatureError: at step `digests`, if it is malformed.
        """
        try:
            disclosure = strict_json.load(cls, data, FILE)
        except EvidenceError as error:
            raise SignatureError("digests", error.message) from None
        if disclosure.encode() != data:
            raise SignatureError("digests", f"{FILE}: is not written canonically")
        return disclosure

    def known(self, document: Any) -> list[Subtree]:
        """The seeds with their places in the tree of a document.

        Raises:
            SignatureError: at step `results-consistent`, if they are not as many as the document asks for.
        """
        entries = list(leaves(document))
        hidden = [index for index, (_, value) in enumerate(entries) if is_marker(value)]
        places = salts.subtrees(len(entries), hidden)
        if len(places) != len(self.seeds):
            raise SignatureError(
                STEP, f"{FILE} has {len(self.seeds)} seeds, results.json asks for {len(places)}"
            )
        return [
            Subtree(first, count, bytes.fromhex(seed))
            for (first, count), seed in zip(places, self.seeds, strict=True)
        ]


def committed(salt: bytes, value: Any) -> str:
    """The commitment to a leaf's value, hex."""
    return hashlib.sha256(salt + json.dumps(value).encode()).hexdigest()


def salted(salt: str, data: bytes) -> str:
    """The salted digest of a file, hex."""
    return hashlib.sha256(bytes.fromhex(salt) + data).hexdigest()


def require_no_marker(document: Any) -> None:
    """Refuse to commit to a document in which something looks withheld already.

    Raises:
        SignatureError: at step `results-consistent`.
    """
    for pointer, value in leaves(document):
        if is_marker(value):
            raise SignatureError(STEP, f"{pointer}: no key of results may be {MARKER!r}")


def root_of(document: Any, disclosure: Disclosure) -> Root:
    """The root over all leaves of a document, the withheld ones by their commitments.

    Raises:
        SignatureError: at step `results-consistent`, if the salts are not as many as the document asks for.
    """
    known = dict(salts.salts(disclosure.known(document)))
    hashes = [
        merkle.leaf(
            bytes.fromhex(value[MARKER] if is_marker(value) else committed(known[index], value))
            + pointer.encode()
        )
        for index, (pointer, value) in enumerate(leaves(document))
    ]
    return Root(leaves=len(hashes), root=merkle.root(hashes).hex())
