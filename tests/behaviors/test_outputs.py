"""Outputs of another kind than declared are a fault of the spec, told where the numbers tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_audit import edit_code, edit_spec, lock
from torch import Tensor

from auditspec.behaviors.outputs import contradiction
from auditspec.consistency.check import check
from auditspec.errors import Exit, SpecError
from auditspec.flow import run_audit
from auditspec.limits import propose
from auditspec.spec.measures import OF_CLASSES, OutputKind
from auditspec.spec.source import load

LOGITS = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
GIVEN: dict[str, Tensor] = {
    "logits": LOGITS,
    "log-probabilities": LOGITS.log_softmax(1),
    "probabilities": LOGITS.softmax(1),
    "values": LOGITS[:, 0],
    "token-logits": LOGITS[:, None].expand(50, 3, 4),
}


@pytest.mark.parametrize("kind", get_args(OutputKind))
@pytest.mark.parametrize("what", GIVEN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_kind_is_taken_for_itself_alone(kind: OutputKind, what: str, dtype: Any) -> None:
    """Log-probabilities may be called logits: no metric reads them otherwise."""
    wrong = contradiction(GIVEN[what].to(dtype), kind)
    assert (wrong is None) is (what == kind or (what, kind) == ("log-probabilities", "logits"))


@given(arrays.arrays("float32", (9, 3), elements=st.floats(-30, 30, width=32)))
def test_what_is_made_of_any_logits_is_taken_for_what_it_is(logits: Any) -> None:
    z = torch.from_numpy(logits)
    assert contradiction(z.softmax(1), "probabilities") is None
    assert contradiction(z.log_softmax(1), "log-probabilities") is None
    assert contradiction(z.softmax(1), "logits") is not None
    assert contradiction(z[:, :1], "values") is None


@pytest.mark.parametrize(
    ("given_", "kind", "said"),
    [
        (torch.full((5, 3), 0.9), "probabilities", "adds up to 2.7"),
        (LOGITS, "probabilities", "holds values from"),
        (GIVEN["log-probabilities"], "probabilities", "declare log-probabilities"),
        (GIVEN["probabilities"], "log-probabilities", "declare probabilities"),
        (LOGITS, "log-probabilities", "declare logits"),
        (LOGITS.argmax(1), "logits", r"shape is \[50\]"),
        (torch.eye(4, dtype=torch.int64), "logits", "int64"),
        (LOGITS, "values", r"shape is \[50, 4\]"),
    ],
)
def test_it_says_what_is_wrong_and_what_to_do(given_: Tensor, kind: OutputKind, said: str) -> None:
    wrong = contradiction(given_, kind)
    assert wrong is not None
    assert re.search(said, " ".join(wrong))


def test_rows_without_numbers_tell_nothing() -> None:
    for kind in OF_CLASSES:
        assert contradiction(torch.full((3, 2), torch.nan), kind) is None


# --- whole audits ---------------------------------------------------------------------------------

SOFTMAX = ("    return model(batch[0])\n", "    return model(batch[0]).softmax(1)\n")


def level(spec: Path) -> float:
    value = run_audit(load(spec), command="auditspec run").behaviors[0].value
    assert value is not None
    return value


def test_probabilities_are_refused_as_logits_and_read_rightly_when_declared(
    audit_spec: Path,
) -> None:
    plain = level(audit_spec)
    old, new = SOFTMAX
    edit_code(
        audit_spec, f"def predict(model, batch):\n{old}", f"def predict(model, batch):\n{new}"
    )
    with pytest.raises(SpecError) as refused:
        level(audit_spec)
    assert refused.value.exit_code == Exit.USAGE
    (told,) = refused.value.problems
    lines = audit_spec.read_text().splitlines()
    assert lines[told.line - 1][told.column - 1 :] == '"small_training:predict"'
    assert told.code == "AS054"
    assert "'zero-as-two': every row lies in [0, 1] and adds up to 1" in told.message
    assert told.hint.startswith("declare model.outputs: probabilities")
    with pytest.raises(SpecError, match="AS054"):
        propose(load(audit_spec), {})
    edit_spec(audit_spec, lambda data: data["model"].update(outputs="probabilities"))
    assert level(audit_spec) == pytest.approx(plain, abs=1e-5)


def test_a_metric_that_cannot_read_the_declared_kind_is_refused_before_any_code_runs(
    audit_spec: Path,
) -> None:
    edit_spec(audit_spec, lambda data: data["model"].update(outputs="values"))
    with pytest.raises(SpecError) as refused:
        load(audit_spec)
    assert [problem.code for problem in refused.value.problems] == ["AS053", "AS053"]
    said = str(refused.value.problems[0])
    assert "'logit-margin' reads logits or log-probabilities or probabilities" in said
    assert "metrics of values: error" in said


def test_an_unknown_kind_is_told_once(audit_spec: Path) -> None:
    edit_spec(audit_spec, lambda data: data["model"].update(outputs="probs"))
    with pytest.raises(SpecError) as refused:
        load(audit_spec)
    assert [problem.code for problem in refused.value.problems] == ["AS015"]


def test_true_values_must_be_numbers(audit_spec: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["model"]["outputs"] = "values"
        data["artifacts"]["holdout"]["label"] = "word"
        behavior = data["behaviors"][0] | {"metric": {"name": "error", "unit": "points"}}
        data["behaviors"] = [behavior]

    table = audit_spec.parent / "holdout.parquet"
    pd.read_parquet(table).assign(word="three").to_parquet(table)
    edit_spec(audit_spec, change)
    lock(audit_spec)
    (wrong,) = check(load(audit_spec)).spec_problems
    assert wrong.code == "AS034"
    assert "does not hold numbers: its values are text" in wrong.message
