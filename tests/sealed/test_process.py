"""The sealed process as a process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from auditspec.artifacts.code import CodeBundle
from auditspec.errors import EstimationError
from auditspec.sealed.client import Client
from auditspec.sealed.isolation import readable
from auditspec.sealed.process import Process
from auditspec.sealed.start import SealedCode, sealed_code


def test_ctrl_c_is_for_the_audit_alone(sealed: SealedCode) -> None:
    """A terminal tells every process of its foreground group, and the audit alone says what follows."""
    assert os.getsid(sealed._process.pid) != os.getsid(0)


def test_what_it_printed_is_shown_when_it_is_ended(sealed: SealedCode, printed: list[str]) -> None:
    """Not when its buffer is full, since it is killed."""
    sealed.load("sealed_sample:say")("half a line", False)
    sealed.load("sealed_sample:say")(" and the rest", True)
    deadline = time.monotonic() + 5
    while "half a line and the rest" not in printed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "half a line and the rest" in printed


def test_it_ends_as_the_first_of_its_forks(folder: Path) -> None:
    process = Process("best", readable([], [folder], []), folder, lambda line: None, lines=2)
    first, second = (Client(line, "best", torch.device("cpu")) for line in process.lines)
    (fork, other) = map(
        int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    )
    os.kill(other, signal.SIGTERM)
    with pytest.raises(EstimationError, match="was ended"):
        second.ask("reads", {})
    assert first.ask("reads", {}) == {}
    os.kill(fork, signal.SIGTERM)
    with pytest.raises(EstimationError, match="ended by signal 15"):
        first.ask("reads", {})
    process.end()


def test_the_second_prints_nothing_and_has_a_home_of_its_own(folder: Path) -> None:
    shown: list[str] = []
    process = Process("best", readable([], [folder], []), folder, shown.append, lines=2)
    bundle = CodeBundle.read(folder / "sealed_sample.py", None)
    code = sealed_code(bundle, process, torch.device("cpu"))
    code.load("sealed_sample:say")("only once", True)
    assert code.load("sealed_sample:echo")(torch.ones(2)).sum() == 2
    found = code.asked_again()
    assert found is not None
    assert found.questions == {"sealed_sample:say": 1, "sealed_sample:echo": 1}
    process.end()
    assert shown.count("only once") == 1
