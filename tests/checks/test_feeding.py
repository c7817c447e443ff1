"""Checks feed themselves from an estimate: measured on tiny recorded runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from estimates import attributed, paired_replay
from examined import examined
from factories import spec_of_record
from said import said
from torch import Tensor, nn
from training import (
    Mlp,
    Recorded,
    StagePlan,
    build_mlp32,
    cross_entropy,
    load_batch,
    one_step,
    predict,
    table,
    train,
)

from auditspec import Dataset
from auditspec.attribute import Attribution, is_binary
from auditspec.behaviors.evaluate import Evaluator
from auditspec.effects import read
from auditspec.errors import EstimationError
from auditspec.estimator.compute import baseline
from auditspec.estimator.interventions import Arm
from auditspec.results import CheckResult
from auditspec.spec.models import Spec

PLAN = (
    StagePlan("one", options={"lr": 0.2, "momentum": 0.9}),
    StagePlan("two", optimizer="AdamW", options={"lr": 0.02}, shift=1),
    StagePlan("three", options={"lr": 0.05}, shift=2),
)
RESTLESS = tuple(
    StagePlan(name, steps=20, options={"lr": 1.0, "momentum": 0.9}, shift=shift)
    for shift, name in enumerate(("one", "two", "three"))
)
CONCERN = {"direction": "increase", "tolerance": 0.05}
MARGIN = {"name": "logit-margin", "positive": 2, "negative": 0}


class Coarse(Mlp):
    """Hidden units with an offset that leaves float32 their quarters."""

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return self.two(torch.tanh((self.one(x) + 3e6) - 3e6))


def build_coarse() -> nn.Module:
    return Coarse()


def cancelling(model: nn.Module, batch: Any) -> Tensor:
    """A margin that float32 cannot hold."""
    logits = predict(model, batch)
    return (logits[:, 2] + 3e6) - (logits[:, 0] + 3e6)


def drawing(model: nn.Module, batch: Any) -> Tensor:
    """A metric that is another number whenever it is asked."""
    drawing.calls = getattr(drawing, "calls", 0) + 1  # type: ignore[attr-defined]
    return predict(model, batch)[:, 0] + 1e-4 * drawing.calls  # type: ignore[attr-defined]


def spec(
    metric: dict[str, Any] = MARGIN,
    method: str = "displacement",
    dtype: str = "float32",
    **checks: Any,
) -> Spec:
    behavior = {
        "id": "b",
        "description": "d",
        "metric": metric,
        "data": "holdout",
        "concern": CONCERN,
    }
    data = spec_of_record(*(stage.id for stage in PLAN)) | {"behaviors": [behavior]}
    data["estimator"] = {"method": method, "dtype": dtype}
    data["checks"] = {"sampling": {"resamples": 200}, "placebo": {"draws": 2}} | checks
    return Spec.model_validate(data)


@pytest.fixture(scope="module")
def holdout(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "holdout.parquet"
    table(seed=7).to_parquet(path)
    return Dataset.open(path)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN, build_mlp32)


def found(recorded: Recorded, holdout: Dataset, wanted: Spec) -> Attribution:
    rerun = recorded.rerun(dtype=getattr(torch, wanted.estimator.dtype))
    custom = {"m:cancelling": cancelling, "m:drawing": drawing}
    reader = Evaluator(rerun, wanted.behaviors, {"holdout": holdout}, {"holdout": "y"}, custom)
    return attributed(wanted, reader)


def check(recorded: Recorded, holdout: Dataset, wanted: Spec, id_: str) -> CheckResult:
    return examined(found(recorded, holdout, wanted), wanted)[id_]


def custom(name: str) -> dict[str, Any]:
    return {"name": "custom", "entrypoint": f"m:{name}", "unit": "logits"}


def test_float32_is_precise_enough_here_and_the_steps_were_made_twice(
    recorded: Recorded, holdout: Dataset
) -> None:
    precise = check(recorded, holdout, spec(), "precision")
    assert precise.outcome == "pass"
    assert precise.statistic is not None
    assert 0 < precise.statistic < 1e-3
    readings = [d for d in precise.details if d.subject.startswith("reading")]
    assert [d.stage for d in readings] == ["one", "two", "three"]
    steps = [d for d in precise.details if d.subject.startswith("first")]
    if steps:
        assert precise.gradients > 0


def test_a_metric_that_float32_cannot_hold_fails(recorded: Recorded, holdout: Dataset) -> None:
    precise = check(recorded, holdout, spec(custom("cancelling")), "precision")
    assert precise.outcome == "fail"
    assert "one / b" in said(precise.reasons)


def test_steps_whose_rounding_decides_fail(tmp_path: Path, holdout: Dataset) -> None:
    """Hidden units of which float32 keeps quarters: it trains to another function than float64."""
    recorded = train(tmp_path, RESTLESS, build_coarse)
    precise = check(recorded, holdout, spec(method="replay"), "precision")
    steps = [d for d in precise.details if "steps" in d.subject]
    assert [d.outcome for d in steps] == ["fail"]
    assert precise.outcome == "fail"
    assert_trains_otherwise(recorded)


def assert_trains_otherwise(recorded: Recorded) -> None:
    """By a plain loop: the logits that the first stage ends with, in both precisions."""
    read = {}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = recorded.build().to(dtype)
        plan = recorded.plan[0]
        optimizer = plan.make_optimizer(model)
        batch = load_batch(recorded.datasets["data"], range(48))
        for step in range(plan.steps):

            def loss(ids: list[int], model: nn.Module = model) -> Tensor:
                return cross_entropy(model, load_batch(recorded.datasets["data"], ids))

            one_step(model, optimizer, plan, step, loss)
        read[dtype] = predict(model.double(), batch).detach()
    assert float((read[torch.float32] - read[torch.float64]).abs().mean()) > 0.01


def test_float64_has_nothing_to_be_compared_with(recorded: Recorded, holdout: Dataset) -> None:
    precise = check(recorded, holdout, spec(dtype="float64"), "precision")
    assert (precise.outcome, precise.details) == ("pass", ())


def test_first_order_is_gated_by_linearity_and_displacement_is_not(
    recorded: Recorded, holdout: Dataset
) -> None:
    strict = {"linearity": {"threshold": 0.1}}
    first = check(recorded, holdout, spec(method="first-order", **strict), "linearity")
    assert first.outcome == "fail"
    assert first.details[0].outcome == "fail"
    assert first.details[0].estimate != first.details[0].reference
    displaced = check(recorded, holdout, spec(**strict), "linearity")
    assert (displaced.outcome, displaced.statistic) == ("pass", None)


def test_exact_effects_are_held_against_the_whole_change(
    recorded: Recorded, holdout: Dataset
) -> None:
    wanted = spec(method="replay", dtype="float64")
    result = found(recorded, holdout, wanted)
    (line,) = examined(result, wanted)["additivity"].details
    assert line.estimate == pytest.approx(sum(e.value for e in result.effects))
    first = next(e for e in result.effects if e.stage == "one")
    assert first.before is not None
    assert line.reference == pytest.approx(result.behaviors[0].value - first.before)


def test_a_twin_that_sampled_the_same_steps_says_nothing(
    recorded: Recorded, holdout: Dataset
) -> None:
    rerun = recorded.rerun(dtype=torch.float32)
    reader = Evaluator(rerun, spec().behaviors, {"holdout": holdout}, {"holdout": "y"}, {})
    run = baseline(rerun)
    base = reader.plug_in(run.final)
    made = paired_replay(rerun, run.final, [Arm.without("one")], gradients=14)[Arm.without("one")]
    moved = {name: d + 0.01 for name, d in made.delta.items()}
    assert read(reader, run.final, base, made, made).own is None
    other = read(reader, run.final, base, made, replace(made, delta=moved))
    assert other.own is not None


def test_scores_of_zero_and_one_are_binary_whatever_the_spec_says() -> None:
    assert is_binary(np.array([0.0, 1.0]), np.array([1.0]))
    assert not is_binary(np.array([0.0, 1.0]), np.array([0.5]))


def test_a_metric_that_is_not_as_declared_is_refused(recorded: Recorded, holdout: Dataset) -> None:
    with pytest.raises(EstimationError, match="declared binary"):
        found(recorded, holdout, spec(custom("cancelling") | {"binary": True}))


def test_placebos_repeat_and_the_empty_stage_does_nothing(
    recorded: Recorded, holdout: Dataset
) -> None:
    wanted = spec(placebo={"draws": 20})
    one, two = (check(recorded, holdout, wanted, "placebo") for _ in range(2))
    assert one == two
    assert [len(d.draws) for d in one.details] == [20, 20, 20, 0]
    assert one.details[-1].estimate == 0.0
    assert np.std(one.details[0].draws) > 0


def test_a_reading_that_is_not_repeatable_is_found(recorded: Recorded, holdout: Dataset) -> None:
    result = check(recorded, holdout, spec(custom("drawing"), method="replay"), "placebo")
    assert result.outcome == "fail"
    assert "not repeatable" in said(result.reasons)


@pytest.mark.parametrize(
    ("id_", "options"), [("placebo", {"draws": 0}), ("precision", {"examples": 0})]
)
def test_a_check_that_is_switched_off_says_so(
    recorded: Recorded, holdout: Dataset, id_: str, options: dict[str, int]
) -> None:
    result = check(recorded, holdout, spec(**{id_: options}), id_)
    assert result.outcome == "not-run"
    assert f"checks.{id_}" in said(result.reasons)


def test_few_examples_are_read_where_many_would_cost_too_much(
    recorded: Recorded, holdout: Dataset
) -> None:
    wanted = spec(placebo={"draws": 20, "examples": 5}, precision={"examples": 7})
    result = found(recorded, holdout, wanted)
    assert "at most 7 examples" in said(examined(result, wanted)["precision"].reasons)
    effect = next(e for e in result.effects if e.stage == "one")
    assert examined(result, wanted)["placebo"].details[0].estimate != pytest.approx(effect.value)
    assert {d.examples for d in examined(result, wanted)["placebo"].details} == {5}
    assert {d.examples for d in examined(result, wanted)["precision"].details if d.behavior} == {7}
