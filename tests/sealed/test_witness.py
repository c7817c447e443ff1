"""A second process catches functions that answer by more than what they are asked."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.datasets import Dataset
from auditspec.checks.asked_again import AskedAgainCheck
from auditspec.checks.subject import AskedAgain
from auditspec.record.generators import Generators
from auditspec.record.state import capture
from auditspec.sealed.client import Question
from auditspec.sealed.isolation import readable
from auditspec.sealed.process import Process
from auditspec.sealed.start import SealedCode, sealed_code
from auditspec.sealed.witness import Repeated, Witness, differs

ASKED = 40
GENERATORS = Generators.now(torch.device("cpu"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lying")
    code = Path(__file__).with_name("lying_sample.py")
    (folder / "lying_sample.py").write_text(code.read_text())
    rows = "".join(f"{0.1 * n},{n % 7},{n % 3}\n" for n in range(30))
    (folder / "rows.csv").write_text("p,q,y\n" + rows)
    return folder


@pytest.fixture(scope="module")
def repeated(place: Path) -> Iterator[Repeated]:
    """What a second process says to an audit of every function of the sample."""
    bundle = CodeBundle.read(place / "lying_sample.py", None)
    read = readable([place / "rows.csv"], [place], [])
    process = Process("best", read, place, lambda line: None, lines=2)
    code = sealed_code(bundle, process, torch.device("cpu"))
    audited(code, Dataset.open(place / "rows.csv", "rows", None))
    state = torch.random.get_rng_state()
    found = code.asked_again()
    assert found is not None
    assert torch.equal(torch.random.get_rng_state(), state)
    yield found
    process.end()


def audited(code: SealedCode, rows: Dataset) -> None:
    """Ask every function as an audit does: along the weights of a training, then along others."""
    names = [n for n in ALL if not n.startswith(("predict", "load"))]
    objectives = [code.load(f"lying_sample:{name}") for name in names]
    loaders = [code.load(f"lying_sample:{name}") for name in ("load_batch", "load_counting")]
    predicts = [code.load(f"lying_sample:{name}") for name in ("predict", "predict_counting")]
    model = code.load("lying_sample:build")()
    for step in range(ASKED):
        if step == ASKED / 4:  # in its place, as an adapter or a reference model is added
            code.load("lying_sample:grow")(model)
        ids = [step % 30, (step + 1) % 30, (step + 5) % 30]
        batch, _ = (loader(rows, ids) for loader in loaders)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 if step < ASKED / 2 else (-1) ** step * 0.5
        for objective in objectives:
            torch.autograd.grad(objective(model, batch), list(model.parameters()))
        model.eval()
        for predict in predicts:
            predict.outputs(model, [capture(model, None)] * 2, [batch, batch])
        model.train()


HONEST = ("honest", "load_batch", "predict")
LYING = (
    "counting",
    "by_the_clock",
    "by_its_process",
    "by_its_folder",
    "by_what_was_asked_before",
    "by_chance_of_its_own",
    "by_a_thread",
    "in_the_gradient_only",
    "load_counting",
    "predict_counting",
)
ALL = (*HONEST, *LYING)


@pytest.mark.parametrize("name", HONEST)
def test_honest_functions_answer_the_same_bits(repeated: Repeated, name: str) -> None:
    assert repeated.difference[f"lying_sample:{name}"] == 0.0
    first = name == "honest"  # its first gradient was asked for alone, so the call gave a loss only
    assert repeated.questions[f"lying_sample:{name}"] == 12 + first


@pytest.mark.parametrize("name", LYING)
def test_a_function_of_something_else_does_not(repeated: Repeated, name: str) -> None:
    assert repeated.difference[f"lying_sample:{name}"] > 1e-4


def test_the_check_fails_and_names_them(repeated: Repeated) -> None:
    result = AskedAgainCheck(repeated).run()
    assert result.outcome == "fail"
    failed = {d.subject for d in result.details if d.outcome == "fail"}
    assert failed == {f"lying_sample:{name}" for name in LYING}


def test_code_that_ends_the_second_process_does_not_pass(place: Path) -> None:
    folder = place / "ends"
    folder.mkdir()
    (folder / "ends.py").write_text(
        "import os, time\n"
        "began = time.monotonic()\n"
        "def go(x):\n"
        "    if time.monotonic() - began < 0.2: os._exit(0)\n"
        "    return x + 1\n"
    )
    bundle = CodeBundle.read(folder / "ends.py", None)
    read = readable([], [folder], [])
    process = Process("best", read, folder, lambda line: None, lines=2)
    code = sealed_code(bundle, process, torch.device("cpu"))
    go = code.load("ends:go")
    time.sleep(0.3)
    go(torch.ones(2))
    found = code.asked_again()
    process.end()
    assert found is not None and math.isinf(found.difference["ends:go"])
    result = AskedAgainCheck(found).run()
    assert result.outcome == "fail"
    assert [n.code for d in result.details for n in d.notes] == ["asked-once-more", "second-raised"]


def test_large_questions_are_fewer(sealed: SealedCode, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for room, most in ((2**27, 2**30), (4000, 8000), (400, 8000), (400, 400)):
        monkeypatch.setattr("auditspec.sealed.witness.ROOM", room)
        monkeypatch.setattr("auditspec.sealed.witness.MOST_ROOM", most)
        witness = Witness(sealed.client)
        witness._names = {-1: "f"}
        for number in range(40):
            question = Question(
                number, "call", {"function": -1}, None, [torch.ones(100)], [], {}, GENERATORS
            )
            sealed.client.noted(question, {"value": 1.0})  # type: ignore[misc]
        kept.append(sum(map(len, witness._sampled.values())))
    assert kept == [12, 5, 1, 0]


def test_batches_of_the_codes_own_classes_are_loaded_again(place: Path) -> None:
    """Those too that came ahead of their question."""
    bundle = CodeBundle.read(place / "lying_sample.py", None)
    read = readable([place / "rows.csv"], [place], [])
    process = Process("best", read, place, lambda line: None, lines=2)
    code = sealed_code(bundle, process, torch.device("cpu"))
    rows = Dataset.open(place / "rows.csv", "rows", None)
    model = code.load("lying_sample:build")()
    load, objective = (code.load(f"lying_sample:{name}") for name in ("load_boxed", "of_a_box"))
    for step in range(ASKED):
        box = load(rows, [step % 4, step % 4 + 1])
        torch.autograd.grad(objective(model, box), list(model.parameters()))
    found = code.asked_again()
    process.end()
    assert found is not None
    assert found.error == {}
    assert found.difference == {"lying_sample:of_a_box": 0.0}


@pytest.mark.parametrize(
    ("left", "right", "apart"),
    [
        (torch.ones(3), torch.ones(3), 0.0),
        (torch.ones(3), torch.tensor([1.0, 1.0, 1.5]), 0.5),
        (torch.tensor([math.nan]), torch.tensor([math.nan]), 0.0),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 2.0]), math.inf),
        (torch.ones(3), torch.ones(4), math.inf),
        (torch.ones(3), torch.ones(3).double(), math.inf),
        (torch.ones(3), None, math.inf),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), math.inf),
        ({"a": 2.0}, {"a": 2.5}, 0.25),
        ({"a": 2.0}, {"b": 2.0}, math.inf),
        ([1, "x"], [1, "y"], math.inf),
        ([1.0], [1.0, 2.0], math.inf),
        ({"overhead_bound": True}, {"overhead_bound": False}, 0.0),
    ],
    ids=range(13),
)
def test_differences(left: Any, right: Any, apart: float) -> None:
    assert differs(left, right) == apart


def test_without_a_second_process_the_check_is_not_run() -> None:
    result = AskedAgainCheck.of({AskedAgain: AskedAgain(None)})  # type: ignore[arg-type]
    assert not isinstance(result, AskedAgainCheck)
    assert result.outcome == "not-run"
