"""Whole packets, built and mutated, most of them sealed again by a trusted key, so that every reader of their contents is reached.

None is valid that is not the good one, none ends in a traceback, and none takes more than 10 s of processor time or 512 MiB. A few by
default; `make fuzz-packets` tries AUDITSPEC_FUZZ of them, and prints where they ended and what they took.

Each is verified in a process that is forked off this one, which has imported everything; one that takes much there is verified again by the
fence as it is, with its limits.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import world as w
from hostile_packets import Packet, base, drawn, write
from sample_packet import trusting

from auditspec.artifacts import confined
from auditspec.report.exports import pdf_file, pdf_text  # noqa: F401 - imported before processes are forked off
from auditspec.sign.signer import KeySigner
from auditspec.verification import examination, fence  # noqa: F401
from auditspec.verification.verifier import verify_all

CASES = int(os.environ.get("AUDITSPEC_FUZZ", "16"))
SECONDS, MEMORY, MESSAGE = 10, 512 * 2**20, 3000
COSTLIEST = 24
"""How many are changed further."""
TRUST = trusting(KeySigner(w.AUDITOR.key))


@dataclass(frozen=True)
class Outcome:
    """What verifying a packet came to, and took."""

    step: str
    code: int
    seconds: float
    memory: int
    """Most bytes that one of its processes filled."""
    said: str


def examined_here(
    module: str, arguments: Sequence[Any], given: Sequence[int], *_: Any, **__: Any
) -> None:
    """`confined.run` within the process that was forked off: the same examination, without starting an interpreter."""
    with os.fdopen(os.dup(given[0]), "rb") as question:
        content = pickle.load(question)
    with os.fdopen(os.dup(given[1]), "wb", buffering=0) as answer:
        try:
            fence.tell(content, fence._Answer(answer))
        except MemoryError:
            raise confined.StoppedError("memory") from None


def verified(folder: Path, run: Callable[..., None]) -> Outcome:
    """Verify in a process that is forked off, and tell what it took."""
    told, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        confined.run = run
        if run is examined_here:
            until = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime) + 2 * SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (until, until + 1))
        try:
            error = verify_all(folder, TRUST).error
            said = ["valid", 0, ""] if error is None else [error.step, error.exit_code, str(error)]
        except BaseException:
            said = ["traceback", -1, traceback.format_exc()]
        with os.fdopen(tells, "wb") as pipe:
            pipe.write(json.dumps(said).encode())
        os._exit(0)
    os.close(tells)
    with os.fdopen(told, "rb") as pipe:
        answer = pipe.read()
    _, _, took = os.wait4(pid, 0)
    step, code, said = json.loads(answer) if answer else ("stopped", -1, "")
    return Outcome(step, code, took.ru_utime + took.ru_stime, 1024 * took.ru_maxrss, said)


@pytest.mark.slow
@pytest.mark.fenced
def test_hostile_packets(tmp_path: Path) -> None:
    rng, costly, ends = random.Random(CASES), list[tuple[float, Packet]](), Counter[str]()
    worst = {"seconds": 0.0, "memory": 0.0}
    for number in range(CASES):
        packet = drawn(rng, [packet for _, packet in costly])
        folder = tmp_path / f"{number}"
        folder.mkdir()
        write(
            packet.files(), folder
        )  # and no longer held: what is forked off would count it as its own
        outcome = verified(folder, examined_here)
        costly = sorted([*costly, (outcome.seconds, packet)], key=lambda c: c[0])[-COSTLIEST:]
        if outcome.step == "stopped" or outcome.seconds > 6 or outcome.memory > MEMORY - 2**26:
            outcome = verified(folder, confined.run)
            ends["by the fence itself"] += 1
        ends[f"{outcome.step} ({outcome.code})"] += 1
        worst = {key: max(most, getattr(outcome, key)) for key, most in worst.items()}
        assert outcome.code in (0, 6, 7, 8), (packet, outcome)
        assert outcome.code or all(
            (folder / name).read_bytes() == data for name, data in base(packet.base).items()
        ), packet
        assert len(outcome.said) < MESSAGE, packet
        assert outcome.seconds <= SECONDS, (packet, outcome)
        assert outcome.memory <= MEMORY, (packet, outcome)
        for path in folder.iterdir():
            path.unlink()
        if number % 50 == 49 or number == CASES - 1:
            print(number + 1, dict(ends.most_common()), worst, costly[-1][1])
