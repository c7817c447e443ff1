"""An append-only log of packets: who holds its checkpoint sees when history is rewritten.

A log is a folder with two files. `entries` holds one line per packet, the sha256 of what its envelope
signs. `checkpoint.json` is a DSSE envelope by the log's key over the number of entries and the root
of the Merkle tree over them (RFC 6962). A packet in the log carries `packet.log.json`: its
place, its proof of inclusion, and the checkpoint that the proof leads to.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import canonical_json, digest_bytes
from auditspec.artifacts.files import read_regular, write_atomically
from auditspec.errors import EvidenceError, SignatureError, UsageError
from auditspec.sign import keys, merkle
from auditspec.sign.dsse import Envelope
from auditspec.sign.keys import PublicKey
from auditspec.sign.signer import Signer

ENTRIES, CHECKPOINT = "entries", "checkpoint.json"
PAYLOAD_TYPE = "application/vnd.auditspec.checkpoint.v1+json"
MAX_ENTRIES = 10_000_000
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RefusedLogError(Exception):
    """A log, or a packet's place in it, does not stand; the text says why."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Checkpoint(_Strict):
    """How large a log is, and the root over its entries."""

    size: Annotated[int, Field(ge=1, le=MAX_ENTRIES)]
    root: Hex


class Inclusion(_Strict):
    """A packet's place in a log: the content of `packet.log.json`, version 1."""

    auditspec_inclusion: Literal["1"] = "1"
    index: Annotated[int, Field(ge=0, lt=MAX_ENTRIES)]
    proof: Annotated[tuple[Hex, ...], Field(max_length=64)]
    checkpoint: str
    """The text of `checkpoint.json` when the packet was entered."""

    def encode(self) -> bytes:
        """The content of `packet.log.json`."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes) -> Inclusion:
        """Read it strictly.

        Raises:
            RefusedLogError: if it is malformed.
        """
        try:
            strict_json.parse(data, "inclusion")
            return cls.model_validate_json(data)
        except (EvidenceError, ValidationError) as error:
            raise RefusedLogError(f"it cannot be read ({error})") from None

    def check(self, entry: str, key: PublicKey | None) -> Checkpoint:
        """The checkpoint whose tree holds `entry`; whose signature is checked where a key is given.

        Raises:
            RefusedLogError: if the proof does not lead from the entry to the checkpoint, or the
                checkpoint is not the key's.
        """
        checkpoint = read_checkpoint(self.checkpoint.encode(), key)
        proof = [bytes.fromhex(part) for part in self.proof]
        hashed, top = _leaf(entry), bytes.fromhex(checkpoint.root)
        if not merkle.includes(self.index, checkpoint.size, hashed, proof, top):
            raise RefusedLogError("its proof does not lead to the log's checkpoint")
        return checkpoint


@dataclass(frozen=True)
class Log:
    """A log whose entries are those of its checkpoint."""

    entries: tuple[str, ...]
    checkpoint: Checkpoint
    text: bytes
    """The signed checkpoint as it is stored."""

    @classmethod
    def read(cls, folder: Path, key: PublicKey | None) -> Log:
        """Read a log; lines after the checkpoint's are those of an append that was interrupted.

        Raises:
            RefusedLogError: if a file is missing or malformed, the checkpoint is not the key's, or the
                entries are not those of the checkpoint.
        """
        try:
            text = read_regular(folder / CHECKPOINT)
            lines = read_regular(folder / ENTRIES).decode("ascii").splitlines()
        except (EvidenceError, UnicodeDecodeError) as error:
            raise RefusedLogError(str(error)) from None
        checkpoint = read_checkpoint(text, key)
        if len(lines) < checkpoint.size:
            raise RefusedLogError(
                f"it was cut off: it holds {len(lines)} of {checkpoint.size} entries"
            )
        entries = tuple(lines[: checkpoint.size])
        if merkle.root([_leaf(entry) for entry in entries]).hex() != checkpoint.root:
            raise RefusedLogError("its entries are not those of its checkpoint")
        return cls(entries, checkpoint, text)

    def require_extends(self, earlier: Checkpoint, whose: str) -> None:
        """Check that the log begins with the tree of a checkpoint seen before.

        Raises:
            RefusedLogError: if it is shorter, or was rewritten since; `whose` names the checkpoint.
        """
        if self.checkpoint.size < earlier.size:
            raise RefusedLogError(
                f"it was rolled back: it has {self.checkpoint.size} entries, {whose} {earlier.size}"
            )
        leaves = [_leaf(entry) for entry in self.entries]
        proof = merkle.consistency_proof(leaves, earlier.size)
        before, after = bytes.fromhex(earlier.root), bytes.fromhex(self.checkpoint.root)
        if not merkle.extends(earlier.size, self.checkpoint.size, before, after, proof):
            raise RefusedLogError(f"it was rewritten: it does not extend {whose}")


def entry_of(envelope: Envelope) -> str:
    """What a log holds of a packet: the digest of what every signer signed."""
    return digest_bytes(envelope.pae)


def append(folder: Path, envelope: Envelope, signer: Signer) -> Inclusion:
    """Enter a packet into a log, which is made if the folder does not exist; once, however often called.

    Raises:
        UsageError: if the folder cannot be written, or does not hold a log by this key.
    """
    entry = entry_of(envelope)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = None
        if os.path.lexists(folder / CHECKPOINT):
            log = Log.read(folder, signer.public_key)
        entries = log.entries if log else ()
        if log is None or entry not in entries:
            entries = (*entries, entry)
            text = _sign(entries, signer)
            write_atomically(folder / ENTRIES, "".join(f"{e}\n" for e in entries).encode())
            write_atomically(folder / CHECKPOINT, text)
        else:
            text = log.text
    except RefusedLogError as error:
        raise UsageError(f"{folder}: {error}", "name the log that this key keeps") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
    index = entries.index(entry)
    proof = merkle.inclusion_proof([_leaf(e) for e in entries], index)
    return Inclusion(index=index, proof=tuple(p.hex() for p in proof), checkpoint=text.decode())


def read_checkpoint(text: bytes, key: PublicKey | None) -> Checkpoint:
    """A checkpoint; whose signature is checked where a key is given.

    Raises:
        RefusedLogError: if it is malformed, or not signed by the key.
    """
    try:
        envelope = Envelope.decode(text)
        checkpoint = strict_json.load(Checkpoint, envelope.payload, "checkpoint")
    except (SignatureError, EvidenceError) as error:
        raise RefusedLogError(f"its checkpoint cannot be read ({error.message})") from None
    if envelope.payload_type != PAYLOAD_TYPE:
        raise RefusedLogError(f"its checkpoint is of type {envelope.payload_type}")
    if key is not None and not any(
        keys.verifies(key, s.sig, envelope.pae) for s in envelope.signatures
    ):
        raise RefusedLogError(
            f"its checkpoint is not signed by the log's key {keys.keyid(key)[:16]}…"
        )
    return checkpoint


def _sign(entries: tuple[str, ...], signer: Signer) -> bytes:
    top = merkle.root([_leaf(entry) for entry in entries])
    payload = canonical_json(Checkpoint(size=len(entries), root=top.hex()).model_dump())
    return Envelope(PAYLOAD_TYPE, payload).signed_by(signer).encode()


def _leaf(entry: str) -> bytes:
    return merkle.leaf(entry.encode())
