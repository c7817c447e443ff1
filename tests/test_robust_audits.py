"""Whole audits of models that once took an audit down, or had every verdict barred by accident."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import attention_audit
import numpy as np
import pytest
import small_audit
from said import said
from small_audit import CODE, edit_spec, lock

from auditspec.checks.additivity import Additivity
from auditspec.checks.placebo import Placebo
from auditspec.checks.precision import Precision
from auditspec.estimator.paired import twin
from auditspec.flow import run_audit
from auditspec.results import AuditResult, CheckResult
from auditspec.spec.source import load


def audited(spec: Path) -> AuditResult:
    return run_audit(load(spec), command="auditspec run")


def check(result: AuditResult, id_: str) -> CheckResult:
    (one,) = (c for c in result.checks if c.id == id_)
    return one


# --- attention ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[attention_audit.Kind, Path]:
    return {
        kind: attention_audit.make(tmp_path_factory.mktemp(kind), kind)
        for kind in attention_audit.MODELS
    }


def copied(spec: Path, folder: Path) -> Path:
    shutil.copytree(spec.parent, folder / "audit", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "audit" / "audit.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(attention_audit.MODELS))
@pytest.mark.parametrize(
    "estimator",
    [
        {"method": "replay", "contributions": True},
        {"method": "paired-replay", "budget": {"gradients": 90}},
        {"method": "first-order"},
        {"method": "displacement"},
        {"method": "krylov"},
    ],
    ids=lambda estimator: estimator["method"],
)
def test_transformers_with_default_attention_are_audited_by_every_method(
    trained: dict[attention_audit.Kind, Path],
    tmp_path: Path,
    kind: attention_audit.Kind,
    estimator: dict[str, Any],
) -> None:
    """Exact effects are those of a plain retraining; where the gates pass, the stage is named."""
    spec = copied(trained[kind], tmp_path)
    edit_spec(spec, lambda data: data["estimator"].update(estimator))
    found = audited(spec)
    effects = {e.stage: e for e in found.effects}
    assert all(e.linear is not None for e in found.effects)
    for stage, wanted in attention_audit.retrained(spec.parent).items():
        if effects[stage].exact:
            assert effects[stage].value == pytest.approx(wanted, abs=2e-3)
        elif estimator["method"] == "paired-replay":
            assert effects[stage].value == pytest.approx(wanted, abs=0.2)
    assert effects["labels"].exact or estimator["method"] == "paired-replay"
    assert check(found, "precision").outcome == "pass"
    if estimator["method"] == "replay":
        assert [(v.verdict, v.parties) for v in found.verdicts] == [("attributed", ("labels",))]
    if "contributions" in estimator:
        totals = {c.stage: c.total for c in found.contributions}
        edit_spec(spec, lambda data: data["estimator"].update(method="first-order"))
        first = {e.stage: e.linear for e in audited(spec).effects if not e.exact}
        for stage, value in first.items():
            assert totals[stage] == pytest.approx(value, rel=2e-2)


# --- checks and readings that fail by themselves ------------------------------------------------------


def with_code(spec: Path, old: str, new: str) -> None:
    path = spec.parent / CODE
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    lock(spec)


FAILING: dict[str, tuple[str, str]] = {
    "no slope": ("return model(batch[0])\n", "return torch.tensor(model(batch[0]).tolist())\n"),
    "numpy": (
        "return model(batch[0])\n",
        "return torch.from_numpy(model(batch[0]).numpy())\n",
    ),
    "no second derivative": (
        "return model(batch[0])\n",
        "return Once.apply(model(batch[0]))\n",
    ),
}
ONCE = """
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * 1


def predict("""


@pytest.mark.parametrize("how", FAILING)
def test_a_reading_that_only_describes_takes_nothing_down(audit_spec: Path, how: str) -> None:
    sound = audited(audit_spec)
    with_code(audit_spec, *FAILING[how])
    if how == "no second derivative":
        with_code(audit_spec, "def predict(", ONCE)
    found = audited(audit_spec)
    assert [v.verdict for v in found.verdicts] == [v.verdict for v in sound.verdicts]
    assert [e.value for e in found.effects] == [e.value for e in sound.effects]
    assert all(e.linear is None for e in found.effects if e.behavior == "zero-as-two")
    if how != "no slope":
        assert all("no linear reading of zero-as-two" in said(e.notes) for e in found.estimates)
    assert check(found, "linearity").outcome == "pass"


def test_contributions_that_cannot_be_made_are_left_out(audit_spec: Path) -> None:
    edit_spec(audit_spec, lambda data: data["estimator"].update(contributions=True))
    with_code(audit_spec, "return model(batch[0])\n", "return Once.apply(model(batch[0]))\n")
    with_code(audit_spec, "def predict(", ONCE)
    with_code(
        audit_spec,
        "return F.cross_entropy(model(batch[0]), batch[1])",
        "return F.cross_entropy(Once.apply(model(batch[0])), batch[1])",
    )
    found = audited(audit_spec)
    assert found.verdicts[0].verdict == "attributed"
    assert found.contributions == ()
    assert all("no contributions: " in said(e.notes) for e in found.estimates)


def test_code_that_refuses_float64_is_held_against_its_own_rounding(audit_spec: Path) -> None:
    sound = audited(audit_spec)
    with_code(
        audit_spec,
        "return F.cross_entropy(model(batch[0]), batch[1])",
        "assert batch[0].dtype == torch.float32, 'only float32'\n"
        "    return F.cross_entropy(model(batch[0]), batch[1])",
    )
    found = audited(audit_spec)
    precise = check(found, "precision")
    assert precise.outcome == "pass"
    assert "only float32" in said(precise.reasons)
    assert f"{CODE}:" in said(precise.reasons)
    assert found.verdicts == sound.verdicts


def test_a_gate_that_cannot_run_bars_verdicts_and_says_why(
    audit_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> CheckResult:
        raise ZeroDivisionError("nothing to divide by")

    for check_ in (Precision, Placebo, Additivity):
        monkeypatch.setattr(check_, "of", broken)
    found = audited(audit_spec)
    for id_ in ("precision", "placebo", "additivity"):
        assert check(found, id_).outcome == "not-run"
        assert said(check(found, id_).reasons) == "ZeroDivisionError: nothing to divide by"
    assert {v.verdict for v in found.verdicts} == {"inconclusive"}
    assert any("nothing to divide by" in said(v.reasons) for v in found.verdicts)


def test_an_interrupt_is_no_failure_of_a_check(
    audit_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any) -> CheckResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(Placebo, "of", stopped)
    with pytest.raises(KeyboardInterrupt):
        audited(audit_spec)


# --- precision that a trainer, or a layer, could fail by accident ---------------------------------------

ADAMW = "torch.optim.AdamW(model.parameters(), lr=lr / 10)"
SGD = "torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)"
PLAN = '("polish", "clean", 4, 0.01)'


def rewritten(folder: Path, **changes: str) -> Path:
    """The small audit with other training code, and the spec to match."""
    training = small_audit.TRAINING
    for old, new in changes.values():
        assert old in training
        training = training.replace(old, new)
    return small_audit.make(folder, training)


def adamw(data: dict[str, Any]) -> None:
    for stage in data["stages"]:
        rate = stage["optimizer"]["lr"] / 10
        stage["optimizer"] = {
            "name": "AdamW",
            "lr": rate,
            "schedule": "constant",
            "state": "reset",
        }


def test_a_bias_before_batch_norm_bars_no_verdict(tmp_path: Path) -> None:
    """Its gradient is all rounding, which AdamW makes as large as any other; outputs do not see it."""
    spec = rewritten(
        tmp_path,
        model=("nn.Linear(3, 6), nn.Tanh()", "nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh()"),
        optimizer=(SGD, ADAMW),
    )
    edit_spec(spec, adamw)
    found = audited(spec)
    assert all(e.exact for e in found.estimates)
    assert check(found, "precision").outcome == "pass"
    assert found.verdicts[0].parties == ("labels",)


def test_a_stage_that_hardly_moves_bars_no_verdict(tmp_path: Path) -> None:
    """400 steps at a rate of 1e-12: float32 rounds them away, float64 does not."""
    spec = rewritten(tmp_path, plan=(PLAN, '("polish", "clean", 400, 1e-12)'))

    def slow(data: dict[str, Any]) -> None:
        data["stages"][2]["optimizer"]["lr"] = 1e-12
        data["behaviors"] = data["behaviors"][:1]

    edit_spec(spec, slow)
    found = audited(spec)
    precise = check(found, "precision")
    assert any("20 steps of polish without labels" in d.subject for d in precise.details)
    assert precise.outcome == "pass"
    assert found.verdicts[0].parties == ("labels",)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_class_weights_in_the_objective_are_audited(tmp_path: Path, dtype: str) -> None:
    spec = rewritten(
        tmp_path,
        objective=(
            "return F.cross_entropy(model(batch[0]), batch[1])",
            "return F.cross_entropy(model(batch[0]), batch[1], weight=WEIGHTS)",
        ),
        weights=("FEATURES = [", "WEIGHTS = torch.tensor([1.0, 1.5, 0.8])\nFEATURES = ["),
    )
    edit_spec(spec, lambda data: data["estimator"].update(dtype=dtype))
    found = audited(spec)
    assert check(found, "precision").outcome == "pass"
    assert "does not run in float64" not in said(check(found, "precision").reasons)
    blamed = next(e for e in found.effects if (e.stage, e.behavior) == ("labels", "zero-as-two"))
    assert blamed.exact
    assert blamed.low is not None
    assert blamed.low > 0.5
    assert not any("precision" in said(v.reasons) for v in found.verdicts)


@pytest.mark.parametrize("stable", [True, False])
def test_batch_norm_under_a_budget_gets_an_answer_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stable: bool
) -> None:
    """Without the first stage the estimate leaves the stable region, is given up, and no exact one can be paid."""
    if stable:
        monkeypatch.setattr(twin, "ASTRAY", np.inf)
    spec = rewritten(
        tmp_path,
        model=("nn.Linear(3, 6), nn.Tanh()", "nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh()"),
        dense=("every=2", "every=1"),  # so that recorded gradients cost nothing
    )
    edit_spec(spec, lambda data: data["estimator"].update(budget={"gradients": 78}))
    found = audited(spec)
    if stable:
        assert found.estimates[0].method == "paired-replay"
        assert check(found, "refinement").outcome != "not-run"
    else:
        assert [estimate.stage for estimate in found.estimates] == ["labels", "polish"]
        unread = check(found, "convergence")
        assert unread.outcome == "inconclusive"
        assert "without base there is an estimate only" in said(unread.reasons)
        assert "was given up" in said(unread.details[0].notes)
    assert all(e.error is None or e.error >= 0 for e in found.effects)
