"""A packet's place in a log, and the log itself, against the last checkpoint that this verifier saw."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from auditspec.errors import SignatureError
from auditspec.sign.checkpoint import Checkpoint, RefusedLogError
from auditspec.sign.dsse import Envelope
from auditspec.sign.keys import PublicKey
from auditspec.sign.log import Inclusion, Log, entry_of
from auditspec.sign.packet import INCLUSION
from auditspec.sign.seen_checkpoints import SeenCheckpoints
from auditspec.verification.trust import Witnesses


def require_inclusion(
    files: dict[str, bytes], envelope: Envelope, key: PublicKey | None, witnesses: Witnesses
) -> tuple[Inclusion, Checkpoint] | None:
    """The packet's place in the log; None where it carries none and no log is asked for.

    Raises:
        SignatureError: at step `log-inclusion`, if it is missing, does not hold, or too few witnesses cosigned its checkpoint.
    """
    if INCLUSION not in files:
        if key is None:
            return None
        raise SignatureError(
            "log-inclusion",
            f"no {INCLUSION}: the packet was never entered into the log",
            "ask the auditor to enter it: auditspec log append",
        )
    try:
        inclusion = Inclusion.decode(files[INCLUSION])
        checkpoint = inclusion.check(entry_of(envelope), key)
        cosigned = len(checkpoint.witnesses(witnesses.known))
    except RefusedLogError as error:
        raise SignatureError("log-inclusion", f"{INCLUSION}: {error}") from None
    if cosigned < witnesses.require:
        raise SignatureError(
            "log-inclusion",
            f"{cosigned} of {witnesses.require} required witnesses cosigned the packet's checkpoint",
            "once they did, enter the packet again: auditspec log append",
        )
    return inclusion, checkpoint


def require_consistency(
    carried: Checkpoint,
    folder: Path | None,
    key: PublicKey,
    memory: SeenCheckpoints | None,
) -> str:
    """The log extends every checkpoint seen so far; gives in words what was compared, "" if nothing was.

    Without the log nothing shows that a larger checkpoint extends the one seen before; so it is not
    remembered in that one's place.

    Raises:
        SignatureError: at step `log-consistency`, if it was cut, rolled back, rewritten, or forked.
        UsageError: if the memory is damaged or cannot be written.
    """
    with memory.locked() if memory else nullcontext():
        return _compared(carried, folder, key, memory)


def _compared(
    carried: Checkpoint, folder: Path | None, key: PublicKey, memory: SeenCheckpoints | None
) -> str:
    step = "log-consistency"
    last = memory.last(key) if memory else None
    newest = carried
    try:
        if folder is not None:
            log = Log.read(folder, key)
            log.require_extends(carried, "the packet's checkpoint")
            if last is not None:
                log.require_extends(last, "the checkpoint seen before")
            newest = log.checkpoint
        elif last is not None and last.origin != carried.origin:
            raise RefusedLogError(f"it is {carried.origin}, the one seen before {last.origin}")
        elif last is not None and last.size == carried.size and last.root != carried.root:
            raise RefusedLogError("it was forked: two checkpoints of one size have different roots")
    except RefusedLogError as error:
        raise SignatureError(step, f"the log: {error}") from None
    if folder is None and last is not None and last.size != carried.size:
        return ""
    if memory is not None and (last is None or newest.size > last.size):
        memory.keep(key, newest)
    return f"{newest.size} entries"
