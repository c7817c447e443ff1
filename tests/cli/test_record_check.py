"""`auditspec record check`: which windows of a record hold, and why others do not."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import naive_loops
import pytest
from naive_loops import CASES

from auditspec.cli.main import main
from auditspec.record.trajectory import Trajectory
from auditspec.recorder.question import INSIDE

SUPPORT = Path(__file__).parents[1] / "support"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(folder: Path, *options: str, data: bool = True) -> Ran:
        given = ("--data", f"data={folder / 'data.parquet'}") if data else ()
        arguments = ["record", "check", str(folder / "record"), "--code", str(SUPPORT)]
        monkeypatch.setattr(sys, "argv", ["auditspec", *arguments, *given, *options])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return Ran(int(caught.value.code or 0), *capsys.readouterr())

    return call


def lines(ran: Ran) -> list[dict[str, Any]]:
    windows: list[dict[str, Any]] = json.loads(ran.out)["windows"]
    return windows


CLEAN = "an average of weights in a model of its own"


def test_a_record_that_holds(tmp_path: Path, check: Callable[..., Ran]) -> None:
    naive_loops.train(tmp_path, CASES[CLEAN], every=6)
    first, every = check(tmp_path, "--json"), check(tmp_path, "--json", "--windows", "all")
    assert (first.code, every.code) == (0, 0), first.err
    assert [(w["first"], w["last"]) for w in lines(first)] == [(0, 5)]
    assert [w["last"] for w in lines(every)] == [5, 11, 17, 19]
    assert {w["outcome"] for w in lines(every)} == {"bitwise"}
    assert "0 to 5       bitwise" in check(tmp_path).out


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a loss term", "not-noted"),
        ("another rate of dropout", "other-loss"),
        ("a generator of one's own in load_batch", "random-batch"),
        ("a generator of one's own in the objective", "random-objective"),
    ],
)
def test_a_record_that_does_not_hold(
    name: str, code: str, tmp_path: Path, check: Callable[..., Ran]
) -> None:
    naive_loops.train(tmp_path, CASES[name])
    ran = check(tmp_path, "--stage", "tune")
    assert ran.code == 3
    assert "remedy: " in ran.out
    (window,) = lines(check(tmp_path, "--json"))
    assert (window["outcome"], window["code"]) == ("fails", code)


def test_the_record_of_a_killed_run_is_checked_as_far_as_it_goes(
    tmp_path: Path, check: Callable[..., Ran]
) -> None:
    def step(loop: naive_loops.Loop) -> None:
        if loop.step == 13:
            raise KeyboardInterrupt
        loop.make()

    with pytest.raises(KeyboardInterrupt):
        naive_loops.train(tmp_path, naive_loops.Case(None, step), every=5)
    assert not Trajectory.open(tmp_path / "record").header.complete
    ran = check(tmp_path, "--json", "--windows", "all")
    assert (ran.code, [w["last"] for w in lines(ran)]) == (0, [4, 9])


def test_what_is_not_given_is_asked_for(tmp_path: Path, check: Callable[..., Ran]) -> None:
    naive_loops.train(tmp_path, CASES[CLEAN])
    missing = check(tmp_path, data=False)
    assert (missing.code, "--data data=PATH" in missing.err) == (2, True)
    assert check(tmp_path, "--data", "data").code == 2
    other = naive_loops.table(seed=1)
    other.to_parquet(tmp_path / "data.parquet")
    changed = check(tmp_path)
    assert changed.code == 3
    assert "data" in changed.err


LAB = """
import naive_loops
from training import build_mlp32

def build():
    return build_mlp32()

def train(folder):
    case = naive_loops.Case(None, lambda loop: loop.make(), build=build)
    naive_loops.train(folder, case)
"""


def test_code_that_trains_when_imported_trains_nothing(
    tmp_path: Path, check: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "unguarded_lab.py").write_text(LAB)
    lab = importlib.import_module("unguarded_lab")
    lab.train(tmp_path)
    assert check(tmp_path).code == 0
    with (tmp_path / "unguarded_lab.py").open("a") as script:
        script.write(f"\nfrom pathlib import Path\ntrain(Path({str(tmp_path / 'again')!r}))\n")
    del sys.modules["unguarded_lab"]
    ran = check(tmp_path)
    assert (ran.code, "trains when it is imported" in ran.err) == (3, True)
    assert not (tmp_path / "again" / "record").exists()
    assert INSIDE not in os.environ


def test_boundaries_alone_cannot_be_checked(tmp_path: Path, check: Callable[..., Ran]) -> None:
    naive_loops.train(tmp_path, CASES[CLEAN], every="boundaries")
    assert check(tmp_path).code == 4
