"""An append-only log of packets: who holds its checkpoint sees when history is rewritten.

A log is a folder with two files. `entries` holds one line per packet, the sha256 of what its envelope
signs. `checkpoint` is a signed note by the log's key over the number of entries and the root
of the Merkle tree over them (RFC 6962). A packet in the log carries `packet.log.json`: its
place, its proof of inclusion, and the checkpoint that the proof leads to.

Whoever appends holds the folder's lock. A log begins with the checkpoint of no entries, and entries are
written before the checkpoint that counts them: so a killed writer leaves lines that no checkpoint counts, which
the next one writes over, and entries without a checkpoint were never left by a writer.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from auditspec.artifacts import merkle, strict_json
from auditspec.artifacts.digest import canonical_json, digest_bytes
from auditspec.artifacts.files import read_regular, sync_folder, write_atomically
from auditspec.artifacts.locks import locked
from auditspec.errors import EvidenceError, UsageError
from auditspec.sign.checkpoint import MAX_ENTRIES, Checkpoint, RefusedLogError, require_name
from auditspec.sign.dsse import Envelope
from auditspec.sign.keys import PublicKey
from auditspec.sign.seen_checkpoints import SeenCheckpoints
from auditspec.sign.signer import Signer

ENTRIES, CHECKPOINT = "entries", "checkpoint"
MAX_INCLUSION = 2**18
"""Bytes of `packet.log.json`, nearly all of them cosignatures."""
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Inclusion(_Strict):
    """A packet's place in a log: the content of `packet.log.json`, version 1."""

    auditspec_inclusion: Literal["1"] = "1"
    index: Annotated[int, Field(ge=0, lt=MAX_ENTRIES)]
    proof: Annotated[tuple[Hex, ...], Field(max_length=64, strict=False)]
    checkpoint: str
    """The text of the log's `checkpoint` when the packet was entered."""

    def encode(self) -> bytes:
        """The content of `packet.log.json`, with a checksum: no byte of it changes by accident and unseen."""
        document = self.model_dump(mode="json")
        checksum = digest_bytes(canonical_json(document))
        return json.dumps({**document, "checksum": checksum}, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Inclusion:
        """Read it strictly: `decode(data).encode() == data`.

        Raises:
            RefusedLogError: if it is malformed, or larger than any.
        """
        if len(data) > MAX_INCLUSION:
            raise RefusedLogError(f"it is larger than {MAX_INCLUSION} bytes")
        try:
            stored = strict_json.load(_Stored, data, "inclusion")
        except EvidenceError as error:
            raise RefusedLogError(f"it cannot be read ({error})") from None
        inclusion = cls(**stored.model_dump(exclude={"checksum"}))
        if inclusion.encode() != data:
            raise RefusedLogError("it was changed: it is not written as a log writes it")
        return inclusion

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


class _Stored(Inclusion):
    checksum: str = ""


@dataclass(frozen=True)
class Log:
    """A log whose entries are those of its checkpoint."""

    entries: tuple[str, ...]
    checkpoint: Checkpoint

    @classmethod
    def read(cls, folder: Path, key: PublicKey | None) -> Log:
        """Read a log; lines after the checkpoint's are those of an append that was interrupted.

        Raises:
            RefusedLogError: if a file is missing or malformed, the checkpoint is not the key's, or the
                entries are not those of the checkpoint.
        """
        lines: list[str] = []
        try:
            checkpoint = read_checkpoint(read_regular(folder / CHECKPOINT), key)
            if checkpoint.size > 0:
                lines = read_regular(folder / ENTRIES).decode("ascii").splitlines()
        except (EvidenceError, UnicodeDecodeError) as error:
            raise RefusedLogError(str(error)) from None
        if len(lines) < checkpoint.size:
            raise RefusedLogError(
                f"it was cut off: it holds {len(lines)} of {checkpoint.size} entries"
            )
        entries = tuple(lines[: checkpoint.size])
        if _root(entries) != checkpoint.root:
            raise RefusedLogError("its entries are not those of its checkpoint")
        return cls(entries, checkpoint)

    def require_extends(self, earlier: Checkpoint, whose: str) -> None:
        """Check that the log begins with the tree of a checkpoint seen before.

        Raises:
            RefusedLogError: if it is shorter, was rewritten since, or is another log; `whose` names the checkpoint.
        """
        if self.checkpoint.origin != earlier.origin:
            raise RefusedLogError(
                f"it is {self.checkpoint.origin}, {whose} is of {earlier.origin}: a key keeps one log"
            )
        if self.checkpoint.size < earlier.size:
            raise RefusedLogError(
                f"it was rolled back: it has {self.checkpoint.size} entries, {whose} {earlier.size}"
            )
        if earlier.size == 0:  # which every log extends
            return
        leaves = [_leaf(entry) for entry in self.entries]
        proof = merkle.consistency_proof(leaves, earlier.size)
        before, after = bytes.fromhex(earlier.root), bytes.fromhex(self.checkpoint.root)
        if not merkle.extends(earlier.size, self.checkpoint.size, before, after, proof):
            raise RefusedLogError(f"it was rewritten: it does not extend {whose}")

    def grown_by(self, entry: str, signer: Signer) -> Log:
        """The log with one more entry, and the checkpoint that counts it."""
        entries = (*self.entries, entry)
        grown = Checkpoint(self.checkpoint.origin, len(entries), _root(entries))
        return Log(entries, grown.signed_by(signer))

    def inclusion(self, entry: str) -> Inclusion:
        """The proof that an entry stands in it."""
        index = self.entries.index(entry)
        proof = merkle.inclusion_proof([_leaf(e) for e in self.entries], index)
        text = self.checkpoint.encode().decode()
        return Inclusion(index=index, proof=tuple(p.hex() for p in proof), checkpoint=text)


def entry_of(envelope: Envelope) -> str:
    """What a log holds of a packet: the digest of what every signer signed."""
    return digest_bytes(envelope.pae)


def append(
    folder: Path,
    envelope: Envelope,
    signer: Signer,
    origin: str | None = None,
    memory: SeenCheckpoints | None = None,
) -> Inclusion:
    """Enter a packet into a log, which is begun if there is none; once, however often called.

    Args:
        folder: the log.
        envelope: the packet's.
        signer: the log's key.
        origin: the log's name; by default `log-` and the beginning of the key's id, or the name that it has.
        memory: the keeper's, so that a log that was rolled back is never signed a second time.

    Raises:
        UsageError: if the folder cannot be written, or does not hold a log by this key and of this name, or
            holds one that lost its checkpoint.
    """
    entry = entry_of(envelope)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), memory.locked() if memory else nullcontext():
            _clean_up_after_the_dead(folder)
            last = memory.last(signer.public_key) if memory else None
            if not os.path.lexists(folder / CHECKPOINT):
                _begin(folder, signer, origin, last)
            log = Log.read(folder, signer.public_key)
            if origin not in (None, log.checkpoint.origin):
                raise RefusedLogError(f"its name is {log.checkpoint.origin}, not {origin}")
            if last is not None:
                log.require_extends(last, "the checkpoint that this key signed last")
            if entry not in log.entries:
                log = log.grown_by(entry, signer)
                _write(folder, ENTRIES, "".join(f"{e}\n" for e in log.entries).encode())
                _write(folder, CHECKPOINT, log.checkpoint.encode())
            if memory is not None:
                memory.keep(signer.public_key, log.checkpoint)
    except RefusedLogError as error:
        raise UsageError(f"{folder}: {error}", "name the log that this key keeps") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
    return log.inclusion(entry)


def read_checkpoint(text: bytes, key: PublicKey | None) -> Checkpoint:
    """A checkpoint; whose signature is checked where a key is given.

    Raises:
        RefusedLogError: if it is malformed, or not signed by the key.
    """
    checkpoint = Checkpoint.decode(text)
    if key is not None:
        checkpoint.require_signed(key)
    return checkpoint


def write_cosigned(folder: Path, checkpoint: Checkpoint) -> None:
    """Put a checkpoint with more cosignatures in the place of the same checkpoint.

    Raises:
        RefusedLogError: if the log has grown since.
        OSError: if the folder cannot be written.
    """
    with locked(folder):
        there = Checkpoint.decode(read_regular(folder / CHECKPOINT))
        if there.text != checkpoint.text:
            raise RefusedLogError("it has grown since it was read: try again")
        known = {(s.name, s.data[:4]) for s in checkpoint.signatures}
        others = tuple(s for s in there.signatures if (s.name, s.data[:4]) not in known)
        merged = replace(checkpoint, signatures=checkpoint.signatures + others)
        _write(folder, CHECKPOINT, merged.encode())


def _begin(folder: Path, signer: Signer, origin: str | None, last: Checkpoint | None) -> None:
    """Write the checkpoint of no entries, unless there are or were some."""
    if os.path.lexists(folder / ENTRIES):
        raise RefusedLogError(
            f"it holds {ENTRIES} and no {CHECKPOINT}, which was deleted; a new one would deny them"
        )
    if last is not None and last.size > 0:
        raise RefusedLogError(f"no log, and this key keeps one of {last.size} entries")
    name = require_name(origin or f"log-{signer.keyid[:16]}")
    _write(folder, CHECKPOINT, Checkpoint(name, 0, _root(())).signed_by(signer).encode())


def _write(folder: Path, name: str, data: bytes) -> None:
    """Write a file so that it is there, whatever happens, before the next one is written."""
    write_atomically(folder / name, data)
    sync_folder(folder)


def _clean_up_after_the_dead(folder: Path) -> None:
    """Remove what killed writers left; under the lock nobody else writes."""
    for name in (ENTRIES, CHECKPOINT):
        for left in folder.glob(f".{name}.*.part"):
            left.unlink(missing_ok=True)


def _root(entries: tuple[str, ...]) -> str:
    return merkle.root([_leaf(entry) for entry in entries]).hex()


def _leaf(entry: str) -> bytes:
    return merkle.leaf(entry.encode())
