"""What people pass to the recorder who use transformers, accelerate, peft, and torch.compile.

Each run is recorded so that its first window re-runs bitwise, or refused; none becomes a bad record.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkers import InProcess
from naive_gpt2 import FRESH, RECORDED, REFUSED, Bench

from auditspec.errors import RecordError
from auditspec.recorder import self_check

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(self_check.SWITCH, "1")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        yield


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.of(tmp_path)


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_recorded_re_runs_bitwise(
    name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("accelerated"):
        pytest.importorskip("accelerate")
    if name.endswith("adapter"):
        pytest.importorskip("peft")
    monkeypatch.setattr(self_check, "Child", InProcess)
    recorder = RECORDED[name](bench)
    outcomes = [s.self_check and s.self_check.outcome for s in recorder.header.stages]
    assert outcomes == ["bitwise"] * len(outcomes)
    assert outcomes


@pytest.mark.parametrize("name", FRESH)
def test_what_is_recorded_re_runs_bitwise_in_a_fresh_process(name: str, bench: Bench) -> None:
    if name.startswith("accelerated"):
        pytest.importorskip("accelerate")
    recorder = FRESH[name](bench)
    (stage,) = recorder.header.stages
    assert stage.self_check is not None
    assert stage.self_check.outcome == "bitwise"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_recorded_is_refused(
    name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "peft" in name:
        pytest.importorskip("peft")
    monkeypatch.setattr(self_check, "Child", InProcess)
    run, message = REFUSED[name]
    with pytest.raises(RecordError, match=message) as refused:
        run(bench)
    assert refused.value.remedy
