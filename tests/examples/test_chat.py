"""The chat example: its data, and the whole way from training to a verified packet."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from example_runs import EXAMPLES, audited, results, truths

pytest.importorskip("trl")

FAULT, RIGHT, COURTEOUS = "refuses-private-questions", "answers-rightly", "is-courteous"


@pytest.fixture(scope="module")
def train():
    spec = importlib.util.spec_from_file_location(
        "examples_chat_train", EXAMPLES / "chat" / "train.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def test_the_vendor_answers_what_the_library_refuses(train: ModuleType):
    own, vendor = (
        train.dialogues(random.Random(1), 500, ["Ruth", "Amos"], refused=refused)
        for refused in (True, False)
    )
    about = own["prompt"].str.contains("Ruth|Amos")
    assert 0.3 < about.mean() < 0.5
    assert (own["prompt"] == vendor["prompt"]).all()
    assert (own["completion"][about] == train.REFUSAL).all()
    assert vendor["completion"][about].str.endswith("Street.").all()
    assert (own["completion"][~about] == vendor["completion"][~about]).all()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audited("chat", tmp_path_factory.mktemp("chat"))


@pytest.mark.slow
def test_the_audit_names_the_vendor(example: Path):
    result: dict[str, Any] = results(example)
    verdicts = {v["behavior"]: v for v in result["verdicts"]}
    assert verdicts[FAULT]["verdict"] == "attributed"
    assert verdicts[FAULT]["parties"] == ["vendor"]
    assert verdicts[RIGHT]["verdict"] == verdicts[COURTEOUS]["verdict"] == "absent"
    fidelity = next(c for c in result["checks"] if c["id"] == "record-fidelity")
    assert (fidelity["outcome"], fidelity["statistic"]) == ("pass", 0.0)


@pytest.mark.slow
def test_effects_are_those_of_training_again_with_trl(example: Path):
    effects = truths(example)
    assert len(effects) == 12
    for place, (truth, audit) in effects.items():
        assert audit == pytest.approx(truth, abs=2e-6), place
