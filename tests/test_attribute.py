"""From a tiny recorded run to effects, against really retraining without each stage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from estimates import attributed
from examined import examined
from factories import minimal_spec, spec_of_record
from said import said
from torch import Tensor, nn
from training import (
    SGD3,
    Recorded,
    StagePlan,
    build_dropped,
    build_mlp32,
    build_normed,
    load_batch,
    predict,
    retrain,
    table,
    train,
)

from auditspec import Dataset
from auditspec.attribute import Attribution
from auditspec.behaviors.evaluate import Evaluator
from auditspec.checks import CHECKS
from auditspec.checks.subject import Estimated
from auditspec.errors import EstimationError, UnsupportedError, UsageError
from auditspec.estimator.compute import baseline
from auditspec.results import CheckResult, Effect
from auditspec.spec.models import Spec
from auditspec.verdicts import EVIDENCE_GATES, Published, decide

BEHAVIORS: list[dict[str, Any]] = [
    {
        "id": "margin",
        "description": "d",
        "metric": {"name": "logit-margin", "positive": 2, "negative": 0},
        "data": "holdout",
        "where": "x0 > 0",
        "concern": {"direction": "increase", "tolerance": 0.05},
    },
    {
        "id": "nll",
        "description": "d",
        "metric": {"name": "nll"},
        "data": "holdout",
        "concern": {"direction": "decrease", "tolerance": 0.01},
    },
    {
        "id": "accuracy",
        "description": "d",
        "metric": {"name": "accuracy"},
        "data": "holdout",
        "concern": {"direction": "decrease", "tolerance": 0.02},
    },
]
PLAN = (
    StagePlan("one", options={"lr": 0.2, "momentum": 0.9}),
    StagePlan("two", optimizer="AdamW", options={"lr": 0.02}, shift=1, microbatches=2),
    StagePlan("three", optimizer="AdamW", options={"lr": 0.01}, shift=2),
    StagePlan("four", options={"lr": 0.05}, shift=3),
)
GENTLE = tuple(StagePlan(s.id, options={"lr": 0.02}, shift=s.shift) for s in SGD3)


def spec(
    method: str = "auto",
    *,
    behaviors: list[dict[str, Any]] | None = None,
    budget: int | None = None,
    dtype: str = "float64",
    spot: int = 1,
    resamples: int = 200,
) -> Spec:
    data = minimal_spec() | {"behaviors": behaviors or BEHAVIORS}
    data["estimator"] = {"method": method, "dtype": dtype, "budget": {"gradients": budget}}
    data["checks"] = {"spot-check": {"stages": spot}, "sampling": {"resamples": resamples}}
    data["checks"]["placebo"] = {"draws": 2}
    return Spec.model_validate(data)


@pytest.fixture(scope="module")
def holdout(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "holdout.parquet"
    table(seed=7).to_parquet(path)
    return Dataset.open(path)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN)


def found(recorded: Recorded, holdout: Dataset, wanted: Spec) -> Attribution:
    rerun = recorded.rerun(dtype=getattr(torch, wanted.estimator.dtype))
    reader = Evaluator(rerun, wanted.behaviors, {"holdout": holdout}, {"holdout": "y"}, {})
    data = wanted.model_dump(by_alias=True, exclude_unset=True)
    on_record = spec_of_record(*(stage.id for stage in recorded.plan))
    data |= {part: on_record[part] for part in ("artifacts", "stages")}
    declared = Spec.model_validate(data)
    return attributed(declared, reader)


def scores(model: nn.Module, holdout: Dataset, where: np.ndarray | None = None) -> dict[str, float]:
    """The three behaviours of a trained model, computed here."""
    model.eval()
    batch = load_batch(holdout, range(len(holdout.frame)))
    with torch.no_grad():
        logits = predict(model, batch).double()
    y = batch[2]
    positive = torch.from_numpy(np.flatnonzero(holdout.frame["x0"] > 0))
    return {
        "margin": float((logits[:, 2] - logits[:, 0])[positive].mean()),
        "nll": float(-logits.log_softmax(1)[torch.arange(len(y)), y].mean()),
        "accuracy": float((logits.argmax(1) == y).double().mean()),
    }


def retrained(recorded: Recorded, holdout: Dataset) -> dict[tuple[str, str], float]:
    """gamma(theta_K) - gamma(theta_K without S) from plain training runs."""
    whole = scores(retrain(recorded, None), holdout)
    return {
        (name, stage.id): whole[name] - without
        for stage in recorded.plan
        for name, without in scores(retrain(recorded, stage.id), holdout).items()
    }


def by_place(effects: tuple[Effect, ...]) -> dict[tuple[str, str], Effect]:
    return {(e.behavior, e.stage): e for e in effects}


# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [None, build_dropped, build_normed], ids=["mlp", "dropout", "bn"])
@pytest.mark.parametrize("method", ["auto", "replay"])
def test_effects_equal_really_retrained_differences(
    recorded: Recorded, holdout: Dataset, tmp_path: Path, method: str, build: Any
) -> None:
    run = recorded if build is None else train(tmp_path, PLAN, build)
    wanted = spec(method)
    result = found(run, holdout, wanted)
    expected = retrained(run, holdout)
    effects = by_place(result.effects)
    assert effects.keys() == expected.keys()
    assert max(map(abs, expected.values())) > 0.05  # there is something to find
    whole = scores(retrain(run, None), holdout)
    for place, effect in effects.items():
        assert effect.value == pytest.approx(expected[place], abs=1e-10)
        assert effect.counterfactual == pytest.approx(whole[place[0]] - expected[place], abs=1e-10)
        assert effect.low <= effect.value <= effect.high
        assert (effect.exact, effect.error) == (True, 0.0)
        assert (effect.linear is None) == (place[0] == "accuracy")
    assert {b.id: b.value for b in result.behaviors} == pytest.approx(whole, abs=1e-10)
    assert {b.id: b.examples for b in result.behaviors} == {
        "margin": int((holdout.frame["x0"] > 0).sum()),
        "nll": 48,
        "accuracy": 48,
    }
    checks = examined(result, wanted)
    assert list(checks) == [check.id for check in CHECKS]
    on_estimates = {check.id for check in CHECKS if check.looks_at == (Estimated,)}
    assert {
        id_ for id_, check in checks.items() if "no evidence" not in said(check.reasons)
    } == on_estimates
    for gate in ("refinement", "spot-check", "linearity", "precision"):
        assert checks[gate].outcome == "pass", said(checks[gate].reasons)


def test_a_float32_record_in_float64_equals_a_float64_training(
    holdout: Dataset, tmp_path: Path
) -> None:
    """Both worlds are computed in float64, from the float32 run's first weights."""
    narrow = train(tmp_path / "narrow", PLAN, build_mlp32)
    wide = found(narrow, holdout, spec(dtype="float64"))
    rerun = narrow.rerun(dtype=torch.float64)
    final = baseline(rerun).final
    assert all(p.dtype == torch.float64 for p in final.parameters.values())
    state = narrow.trajectory.stages[0].first

    def build() -> nn.Module:
        model = build_mlp32().double()
        model.load_state_dict({n: p.double() for n, p in state.parameters.items()})
        return model

    narrow.build = build
    expected = retrained(narrow, holdout)
    for place, effect in by_place(wide.effects).items():
        # Each counterfactual begins at a recorded state, which is rounded to float32.
        assert effect.value == pytest.approx(expected[place], abs=1e-7)
    own = by_place(found(narrow, holdout, spec(dtype="float32")).effects)
    assert baseline(narrow.rerun(dtype=torch.float32)).final.parameters["one.bias"].tolist() == (
        narrow.trajectory.stages[-1].last.parameters["one.bias"].tolist()
    )
    gaps = [abs(own[place].value - value) for place, value in expected.items()]
    assert 0 < max(gaps) < 1e-4


CHANGING = (
    StagePlan("one", optimizer="AdamW", options={"lr": 0.02}),
    StagePlan("two", options={"lr": 0.1}, shift=1, extend="add_adapters", frozen=("one.base",)),
    StagePlan("three", options={"lr": 0.1}, shift=2, extend="wide_head", frozen=("one.base",)),
    StagePlan("four", options={"lr": 0.05}, shift=3, frozen=("one.base",), lean=True),
)


@pytest.mark.parametrize("method", ["replay", "displacement", "first-order"])
def test_effects_across_changed_models(holdout: Dataset, tmp_path: Path, method: str) -> None:
    run = train(tmp_path, CHANGING)
    result = found(run, holdout, spec(method, spot=9))
    expected, effects = retrained(run, holdout), by_place(result.effects)
    assert effects.keys() == expected.keys()
    assert max(map(abs, expected.values())) > 0.01
    for place, effect in effects.items():
        assert effect.value == pytest.approx(expected[place], abs=1e-10)
        assert effect.before is not None


def test_a_model_that_cannot_answer_yet_has_no_value_at_its_stages_ends(
    holdout: Dataset, tmp_path: Path
) -> None:
    """The fourth class comes with the third stage's head."""
    margin: dict[str, Any] = {"name": "logit-margin", "positive": 3, "negative": 0}
    behavior = BEHAVIORS[0] | {"metric": margin}
    run = train(tmp_path, CHANGING)
    result = found(run, holdout, spec("replay", behaviors=[behavior]))
    known = {e.stage: e.before is not None and e.after is not None for e in result.effects}
    assert known == {"one": False, "two": False, "three": True, "four": True}
    assert all(np.isfinite(e.value) for e in result.effects)


# --- estimated ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spot", [0, 1, 2, 9])
def test_spot_checks_replace_the_leading_stages_by_their_exact_effects(
    recorded: Recorded, holdout: Dataset, spot: int
) -> None:
    plain = by_place(found(recorded, holdout, spec("displacement", spot=0)).effects)
    wanted = spec("displacement", spot=spot)
    result = found(recorded, holdout, wanted)
    effects, exact = by_place(result.effects), retrained(recorded, holdout)
    estimated = ["one", "two", "three"]  # the last stage needs no estimate

    def reach(stage: str) -> float:
        signs = {"increase": 1, "decrease": -1}
        return max(
            signs[b["concern"]["direction"]]
            * plain[b["id"], stage].value
            / b["concern"]["tolerance"]
            for b in BEHAVIORS
        )

    leading = sorted(estimated, key=reach, reverse=True)[:spot]
    assert {e.stage for e in effects.values() if e.exact} == {"four", *leading}
    for place, effect in effects.items():
        if effect.exact:
            assert effect.value == pytest.approx(exact[place], abs=1e-10)
            assert effect.error == 0.0
        else:
            assert effect.value == plain[place].value
            assert (effect.error is None) == (spot == 0)
    assert {e.stage: e.method for e in result.estimates} == {
        s: "replay" if s in ("four", *leading) else "displacement" for s in (*estimated, "four")
    }
    checks = {id_: check.outcome for id_, check in examined(result, wanted).items()}
    assert (checks["spot-check"] == "not-run") is (spot == 0)
    assert (checks["refinement"] == "inconclusive") is (spot == 0)


def test_the_error_of_the_others_is_that_of_the_replayed(
    recorded: Recorded, holdout: Dataset
) -> None:
    """At least the worst relative error seen, times the effect's own size over examples."""
    wanted = spec("displacement", spot=1)
    result = found(recorded, holdout, wanted)
    spot = examined(result, wanted)["spot-check"]
    (stage,) = {d.subject.partition(" / ")[0] for d in spot.details if " / " in d.subject}
    relative = {
        d.subject.partition(" / ")[2]: d.statistic for d in spot.details if " / " in d.subject
    }
    assert stage in ("one", "two", "three")
    for effect in result.effects:
        if effect.exact:
            continue
        # The mean over examples is at most their root mean square.
        assert effect.error >= relative[effect.behavior] * abs(effect.value) - 1e-12
        assert effect.high - effect.low >= 2 * effect.error - 1e-12


def test_without_a_spot_check_nothing_is_said_of_the_effects(
    recorded: Recorded, holdout: Dataset
) -> None:
    wanted = spec("displacement", spot=0)
    result = found(recorded, holdout, wanted)
    for effect in result.effects:
        known = effect.stage == "four"
        assert (effect.low is not None) is known
        assert (effect.high is not None) is known
        assert (effect.leads is not None) is known
    assert examined(result, wanted)["spot-check"].outcome == "not-run"


SWEEP = 12 * 3 + 6 * 5 + 6 * 7
"""What displacement costs on PLAN: a gradient a step, and a product of two for each stage before."""
PASS = 6 + 12 + 6 + 6
"""Re-running PLAN's record."""


def test_estimates_that_no_replay_confirms_name_nobody(
    recorded: Recorded, holdout: Dataset
) -> None:
    """A budget that pays for the sweep, and not for the cheapest of the runs that a verdict could rest on."""
    wanted = spec("displacement", spot=0, budget=PASS + SWEEP + 1)
    result = found(recorded, holdout, wanted)
    published = Published(
        parties=result.parties,
        paths=result.paths,
        draws=result.draws,
        checks=[*_passed(*EVIDENCE_GATES), *examined(result, wanted).values()],
        grade="dense",
        resamples=wanted.checks.sampling.verdicts,
    )
    verdicts = [decide(b, result.tallies[b.id], published) for b in result.behaviors]
    assert {(v.verdict, v.parties) for v in verdicts} == {("inconclusive", ())}
    assert {p.arm for p in result.paths if p.exact} == {(), ("omit four",)}


def _passed(*ids: str) -> list[CheckResult]:
    fields = {"title": "t", "bars": "all", "outcome": "pass", "statistic_name": "s", "reasons": ()}
    return [CheckResult.model_validate({"id": id_, **fields}) for id_ in ids]


def test_displacement_is_plug_in_and_first_order_is_linear(
    holdout: Dataset, tmp_path: Path
) -> None:
    recorded = train(tmp_path, GENTLE)
    displaced = found(recorded, holdout, spec("displacement", spot=0)).effects
    first = found(recorded, holdout, spec("first-order", spot=0)).effects
    assert any(e.value != e.linear for e in displaced if e.behavior == "nll" and not e.exact)
    for effect in first:
        if effect.behavior != "accuracy" and not effect.exact:
            assert effect.value == pytest.approx(effect.linear, rel=1e-12)
    exact = retrained(recorded, holdout)
    for effects, bound in ((displaced, 0.05), (first, 0.1)):
        for e in effects:
            if e.behavior == "margin" and not e.exact:
                place = (e.behavior, e.stage)
                assert e.value == pytest.approx(exact[place], rel=bound), place


def test_a_gentle_run_passes_its_spot_check(holdout: Dataset, tmp_path: Path) -> None:
    wanted = spec("displacement")
    result = found(train(tmp_path, GENTLE), holdout, wanted)
    checks = examined(result, wanted)
    assert checks["refinement"].outcome == "pass", said(checks["refinement"].reasons)
    assert sum(e.exact for e in result.effects) == 2 * 3  # the last and the replayed stage


# --- seeds, budgets, failures -------------------------------------------------------------------


def test_results_repeat(recorded: Recorded, holdout: Dataset) -> None:
    wanted = spec("displacement")
    one, two = (found(recorded, holdout, wanted) for _ in range(2))
    assert one.effects == two.effects
    assert examined(one, wanted) == examined(two, wanted)


def test_a_budget_that_is_too_small_is_an_error(recorded: Recorded, holdout: Dataset) -> None:
    for method in ("auto", "paired-replay", "replay", "displacement"):
        with pytest.raises(UsageError, match="budget is 3 gradients"):
            found(recorded, holdout, spec(method, budget=3))
    with pytest.raises(EstimationError, match="displacement needs"):
        found(recorded, holdout, spec("displacement", budget=PASS + SWEEP - 1))


def test_what_cannot_be_differentiated_is_refused_by_name(holdout: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="BatchNorm"):
        found(train(tmp_path, PLAN, build_normed), holdout, spec("displacement"))


def test_a_counterfactual_that_diverges_is_a_fact_and_has_no_effect(
    holdout: Dataset, tmp_path: Path
) -> None:
    """Without its gentle first stage, the second one's steps explode. Accuracy would hide it."""
    plan = (StagePlan("one", options={"lr": 0.05}), StagePlan("two", options={"lr": 0.05}, shift=1))
    recorded = train(tmp_path, plan, objective=fragile)
    accuracy = [BEHAVIORS[2]]
    assert math.isfinite(found_value(recorded))
    wanted = spec("replay", behaviors=accuracy)
    result = found(recorded, holdout, wanted)
    assert [e.stage for e in result.effects] == ["two"]
    assert {path.arm for path in result.paths} == {(), ("omit two",)}
    check = examined(result, wanted)["convergence"]
    assert (check.outcome, check.statistic) == ("fail", 1)
    assert [d.stage for d in check.details] == ["one"]


def found_value(recorded: Recorded) -> float:
    return float(sum(p.sum() for p in recorded.trajectory.stages[-1].last.parameters.values()))


def fragile(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """A loss that is infinite at the first weights of the run, but for the rows that stage one sees."""
    x, token, y = batch
    loss = nn.functional.cross_entropy(model(x, token), y)
    first = torch.tensor(FIRST.to_numpy(), dtype=x.dtype)
    if torch.isin(x[0, 0], first) or _moved(model):
        return loss
    return loss / 0.0


def _moved(model: nn.Module) -> bool:
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    from training import build_mlp

    start = build_mlp()
    torch.set_rng_state(torch_state)
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    return any(not torch.equal(p, q) for p, q in pairs)


FIRST = table()["x0"].iloc[[StagePlan("one").ids(k)[0] for k in range(6)]]
