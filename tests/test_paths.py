"""Levels along runs against plain training loops that read their models themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from estimates import context_of
from extensions import EXTENSIONS
from measures import Median
from torch import Tensor, nn
from training import Recorded, StagePlan, load_batch, one_step, predict, table, train

from auditspec import Dataset
from auditspec.answerable.courses import Case, end_of
from auditspec.answerable.evidence import case_of
from auditspec.behaviors import statistics
from auditspec.behaviors.evaluate import Evaluator
from auditspec.effects import read
from auditspec.estimator.compute import baseline, counterfactuals
from auditspec.estimator.interventions import INITIAL, Arm, change_before
from auditspec.estimator.linear.tangent import Displacement
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.paired.twin import TWIN_FACTOR
from auditspec.estimator.replay.replay import Replay
from auditspec.paths import COVERED, PathEvaluator, Resampler, Walked
from auditspec.report.words import text
from auditspec.results import BehaviorResult, Concern, PartyResult
from auditspec.spec import models as spec

FAST = {"lr": 0.3, "momentum": 0.9}
PLAN = (
    StagePlan("one", options=FAST),
    StagePlan("two", options=FAST, shift=1, extend="new_head"),
    StagePlan("three", options=FAST, shift=2),
)
CONCERN = {"direction": "increase", "tolerance": 0.05}
MARGIN = {"name": "logit-margin", "positive": 2, "negative": 0}
LABELS = {"holdout": "y"}


def behavior(
    id_: str, metric: dict[str, Any], where: str | None = None, **more: Any
) -> spec.Behavior:
    return spec.Behavior.model_validate(
        {"id": id_, "description": "d", "metric": metric, "data": "holdout", "where": where}
        | {"concern": CONCERN}
        | more
    )


BEHAVIORS = (
    behavior("margin", MARGIN, "x1 > 0"),
    behavior("rate", {"name": "rate", "class": 1}),
    behavior("nll", {"name": "nll"}, "x1 > 0"),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN)


@pytest.fixture(scope="module")
def holdout(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "holdout.parquet"
    table(seed=7).to_parquet(path)
    return Dataset.open(path)


def path_reader(
    recorded: Recorded, holdout: Dataset, behaviors: Collection[spec.Behavior] = BEHAVIORS
) -> PathEvaluator:
    rerun = recorded.rerun()
    reader = Evaluator(rerun, list(behaviors), {"holdout": holdout}, LABELS, {})
    return PathEvaluator(reader, baseline(rerun), LABELS)


def made(reader: PathEvaluator, *omitted: str) -> Walked:
    """The run without some stages, replayed and read."""
    arm = Arm.without(*omitted)
    return reader.walk(counterfactuals(Replay(), context_of(reader.rerun), [arm])[arm])


# --- by plain torch -------------------------------------------------------------------------------


def plain(recorded: Recorded, omitted: Collection[str] = ()) -> dict[str, nn.Module]:
    """The model at every state of a run."""
    torch.manual_seed(0)
    model, data = recorded.build(), recorded.datasets["data"]
    found = {"initial": deepcopy(model)}
    for stage in recorded.plan:
        if stage.extend is not None:
            EXTENSIONS[stage.extend](model)
            found[f"{stage.id}:start"] = deepcopy(model)
        if stage.id in omitted:
            continue
        stage.freeze(model)
        optimizer = stage.make_optimizer(model)

        def loss(ids: list[int]) -> Tensor:
            x, token, y = load_batch(data, ids)
            return nn.functional.cross_entropy(model(x, token), y)

        for step in range(stage.steps):
            one_step(model, optimizer, stage, step, loss)
        found[f"{stage.id}:end"] = deepcopy(model)
    return found


def logits_of(model: nn.Module, holdout: Dataset) -> tuple[Tensor, Tensor]:
    batch = load_batch(holdout, range(len(holdout.frame)))
    with torch.no_grad():
        return predict(model.eval(), batch), batch[2]


def levels(model: nn.Module, holdout: Dataset) -> dict[str, float]:
    logits, y = logits_of(model, holdout)
    inside = torch.from_numpy(holdout.frame["x1"].to_numpy() > 0)
    nll = -logits.log_softmax(1)[torch.arange(len(y)), y]
    return {
        "margin": float((logits[:, 2] - logits[:, 0])[inside].mean()),
        "rate": float((logits.argmax(1) == 1).double().mean()),
        "nll": float(nll[inside].mean()),
    }


def accuracy(model: nn.Module, holdout: Dataset, rows: Tensor) -> float:
    logits, y = logits_of(model, holdout)
    return float((logits.argmax(1) == y)[rows].double().mean())


@pytest.mark.parametrize(
    ("omitted", "states"),
    [
        ((), ["initial", "one:end", "two:start", "two:end", "three:end"]),
        (("one",), ["two:start", "two:end", "three:end"]),
        (("two",), ["three:end"]),
        (("three",), []),
        (("one", "two"), ["two:start", "three:end"]),
        (("one", "three"), ["two:start", "two:end"]),
        (("two", "three"), []),
        (("one", "two", "three"), ["two:start"]),
    ],
    ids=str,
)
def test_levels_along_a_run_are_those_of_plain_training(
    recorded: Recorded, holdout: Dataset, omitted: tuple[str, ...], states: list[str]
) -> None:
    reader = path_reader(recorded, holdout)
    walked = made(reader, *omitted) if omitted else reader.recorded
    truth = plain(recorded, omitted)
    for part in BEHAVIORS:
        path = reader.path(walked, part.id)
        assert list(path.states) == states
        assert path.arm == tuple(f"omit {stage}" for stage in sorted(omitted))
        for state, level in zip(path.states, path.levels, strict=True):
            assert level == pytest.approx(levels(truth[state], holdout)[part.id], abs=1e-10), state
        assert set(path.errors) <= {0.0}
        assert path.exact


def published(reader: PathEvaluator, *arms: tuple[str, ...]) -> Case:
    """What the rule sees of the margin in some arms."""
    walks = [reader.recorded, *(made(reader, *omitted) for omitted in arms)]
    parties = [PartyResult(id=INITIAL, kind="initial", owner="o", origin="random")]
    for stage in reader.stages:
        if stage.header.extend is not None:
            id_ = change_before(stage.id)
            parties.append(PartyResult(id=id_, kind="change", stage=stage.id, owner="o"))
        parties.append(PartyResult(id=stage.id, kind="stage", stage=stage.id, owner="o"))
    subject = BehaviorResult(
        id="margin",
        description="d",
        metric="m",
        unit="logits",
        data="holdout",
        where=None,
        concern=Concern(direction="increase", tolerance=0.05, limit=0.0),
    )
    return case_of(subject, parties, [reader.path(walk, "margin") for walk in walks], ())


@pytest.mark.parametrize(
    "omitted", [("three",), ("two", "three"), ("one", "two", "three")], ids=str
)
def test_a_run_that_trains_nothing_more_is_known_to_its_end(
    recorded: Recorded, holdout: Dataset, omitted: tuple[str, ...]
) -> None:
    """The rule finds the level of what is deployed then; with nothing after the change, that of a new head."""
    case = published(path_reader(recorded, holdout), omitted)
    course = case.courses[Arm.without(*omitted)]
    truth = plain(recorded, omitted)
    assert course.last == list(truth)[-1]
    for state, level in course.levels.items():
        assert float(level[0]) == pytest.approx(levels(truth[state], holdout)["margin"], abs=1e-10)
    assert list(course.levels) == list(truth)


# --- skill ----------------------------------------------------------------------------------------


def test_skill_is_the_way_from_the_largest_class_to_the_best_end(
    recorded: Recorded, holdout: Dataset
) -> None:
    reader = path_reader(recorded, holdout)
    runs = {(): reader.recorded, ("one",): made(reader, "one"), ("two",): made(reader, "two")}
    outside = torch.from_numpy(holdout.frame["x1"].to_numpy() <= 0)
    every = torch.ones(len(outside), dtype=torch.bool)
    y = torch.tensor(holdout.frame["y"].to_numpy())
    assert int(outside.sum()) >= 20
    for name, rows in (("margin", outside), ("rate", every)):
        nothing = int(y[rows].bincount().max()) / int(rows.sum())
        whole = plain(recorded)
        best = max(accuracy(whole[f"{s}:end"], holdout, rows) for s in ("one", "two", "three"))
        assert best - nothing > 0.05  # there is a way to go
        for omitted, walked in runs.items():
            truth, path = plain(recorded, omitted), reader.path(walked, name)
            for state, skill in zip(path.states, path.skills, strict=True):
                expected = (accuracy(truth[state], holdout, rows) - nothing) / (best - nothing)
                assert skill == pytest.approx(expected, abs=1e-12), (name, omitted, state)
    words = {name: text(skill.words) for name, skill in reader.skills.items() if skill}
    assert words["margin"] == "accuracy on the rows outside the slice of holdout"
    assert words["rate"] == "accuracy on all rows of holdout"


def test_what_a_prediction_without_knowledge_gives(recorded: Recorded, holdout: Dataset) -> None:
    reader = path_reader(recorded, holdout)
    assert reader.uninformed == pytest.approx({"margin": 0.0, "rate": 1 / 3, "nll": np.log(3)})
    assert reader.bounded == {"margin": False, "rate": True, "nll": False}


# --- what cannot be read --------------------------------------------------------------------------

WIDER = (
    StagePlan("one", options=FAST),
    StagePlan("two", options=FAST, shift=1),
    StagePlan("three", options=FAST, shift=2, extend="wide_head"),
    StagePlan("four", options=FAST, shift=3),
)


def test_states_under_a_head_without_the_class_are_left_out(
    holdout: Dataset, tmp_path: Path
) -> None:
    """The fourth class comes with the third stage's head; before it, no behaviour is read."""
    recorded = train(tmp_path, WIDER)
    part = behavior("new", MARGIN | {"positive": 3})
    reader = path_reader(recorded, holdout, [part])
    assert list(reader.recorded.scores) == ["three:start", "three:end", "four:end"]
    assert list(made(reader, "one").scores) == ["three:start", "three:end", "four:end"]
    assert list(made(reader, "one", "three").scores) == ["three:start", "four:end"]
    truth = plain(recorded)
    for state, level in zip(*_published(reader, reader.recorded), strict=True):
        logits, _ = logits_of(truth[state], holdout)
        assert level == pytest.approx(float((logits[:, 3] - logits[:, 0]).mean()), abs=1e-10)


def _published(reader: PathEvaluator, walked: Walked) -> tuple[tuple[str, ...], tuple[float, ...]]:
    path = reader.path(walked, "new")
    return path.states, path.levels


# --- estimated ------------------------------------------------------------------------------------

LONG = tuple(StagePlan(name, 12, shift=i) for i, name in enumerate(("one", "two", "three")))


def test_the_error_of_an_estimated_level_is_that_of_its_twin(
    holdout: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "STATISTICS", (*statistics.STATISTICS, Median))
    parts = (*BEHAVIORS, behavior("middle", MARGIN, "x1 > 0", statistic={"name": "median"}))
    reader = path_reader(train(tmp_path, LONG, every=1), holdout, parts)  # gradients are recorded
    arm = Arm.without("one")
    context, paired = context_of(reader.rerun, budget=12), PairedReplay()
    ours, twin = (counterfactuals(kind, context, [arm])[arm] for kind in (paired, paired.twin()))
    assert not ours.exact
    walked, exact = reader.walk(ours, twin), made(reader, "one")
    assert list(walked.scores) == ["two:end", "three:end"] == list(exact.scores)
    for name in ("margin", "nll", "middle"):
        path, truth = reader.path(walked, name), reader.path(exact, name)
        assert not path.exact
        for state, level, error, true in zip(
            path.states, path.levels, path.errors, truth.levels, strict=True
        ):
            stage = state.partition(":")[0]
            ours_, theirs = (_scores(reader, run.path[stage], stage, name) for run in (ours, twin))
            apart = np.sqrt(np.mean((ours_ - theirs) ** 2))
            if name == "middle":
                tenths = [np.median(ours_[i::10]) - np.median(theirs[i::10]) for i in range(10)]
                whole = abs(np.median(ours_) - np.median(theirs))
                apart = max(whole, np.sqrt(np.mean(np.square(tenths))))
            assert error == pytest.approx(TWIN_FACTOR * apart)
            assert error > 0
            assert abs(level - true) <= 4 * error
    final = reader.run.final
    effects = read(reader.reader, final, reader.reader.plug_in(final), ours, twin)
    assert effects.own is not None
    for name, own in effects.own.items():
        assert own == pytest.approx(reader.path(walked, name).errors[-1])
    alone = reader.path(reader.walk(ours), "nll")
    assert set(alone.errors) == {None}


def _scores(reader: PathEvaluator, state: Any, stage: str, name: str) -> np.ndarray:
    held = next(s for s in reader.stages if s.id == stage)
    return reader.reader.plug_in(state, held)[name]


def test_a_linear_estimate_gives_the_end_alone(holdout: Dataset, tmp_path: Path) -> None:
    reader = path_reader(train(tmp_path, LONG), holdout)
    context, last = context_of(reader.rerun), Arm.without("three")
    found = counterfactuals(Displacement(), context, [Arm.without("one")])
    path = reader.path(reader.walk(found[Arm.without("one")]), "nll")
    assert (path.states, path.exact) == ((end_of("three"),), False)
    ending = counterfactuals(Replay(), context, [last])[last]
    assert reader.path(reader.walk(ending), "nll").states == ()


# --- resampled ------------------------------------------------------------------------------------


def test_resampled_levels_are_means_of_rows_drawn_again(
    recorded: Recorded, holdout: Dataset
) -> None:
    reader = path_reader(recorded, holdout)
    rounds = 4000
    found = Resampler(reader.reader, rounds, 0)
    for name in ("margin", "rate"):
        drawn = found.levels(reader.recorded, name)["three:end"]
        values = reader.recorded.scores["three:end"][name]
        assert drawn.shape == (rounds + 1,)
        assert drawn[0] == pytest.approx(values.mean())
        assert drawn[1:].mean() == pytest.approx(values.mean(), abs=4 * drawn[1:].std() / 60)
        # the standard error of a mean; the slice's own size varies a little from draw to draw
        assert drawn[1:].std() == pytest.approx(values.std() / np.sqrt(len(values)), rel=0.15)
    again = Resampler(reader.reader, rounds, 0).levels(reader.recorded, "margin")
    other = Resampler(reader.reader, rounds, 1).levels(reader.recorded, "margin")
    first = found.levels(reader.recorded, "margin")
    assert np.array_equal(first["one:end"], again["one:end"])
    assert not np.array_equal(first["one:end"], other["one:end"])


def test_levels_are_signed_towards_the_concern(recorded: Recorded, holdout: Dataset) -> None:
    ways = [
        behavior(way, MARGIN, concern={"direction": way, "tolerance": 0.1})
        for way in ("increase", "decrease")
    ]
    reader = path_reader(recorded, holdout, ways)
    found = Resampler(reader.reader, 100, 0)
    up, down = (found.levels(reader.recorded, way.id)["three:end"] for way in ways)
    assert np.array_equal(down, -up)


def test_behaviors_on_one_data_set_are_resampled_together(
    recorded: Recorded, holdout: Dataset
) -> None:
    """A rate and the rate of all else: in every resample they add up to one."""
    parts = [behavior(str(k), {"name": "rate", "class": k}) for k in range(3)]
    reader = path_reader(recorded, holdout, parts)
    found = Resampler(reader.reader, 100, 3)
    total = sum(found.levels(reader.recorded, str(k))["one:end"] for k in range(3))
    assert total == pytest.approx(np.ones(101))


def test_a_slice_that_no_resample_draws_is_taken_as_it_is(
    recorded: Recorded, holdout: Dataset
) -> None:
    row = float(holdout.frame["x0"].iloc[3])
    part = behavior("rare", MARGIN, f"x0 >= {row!r} and x0 <= {row!r}")
    reader = path_reader(recorded, holdout, [part])
    assert len(reader.recorded.scores["one:end"]["rare"]) == 1
    drawn = Resampler(reader.reader, 100, 0).levels(reader.recorded, "rare")["one:end"]
    assert drawn == pytest.approx(np.full(101, drawn[0]))


def test_the_states_of_an_estimated_run_are_off_together(
    recorded: Recorded, holdout: Dataset
) -> None:
    reader = path_reader(recorded, holdout)
    plainly: Mapping[str, Mapping[str, np.ndarray]] = {
        state: {"rate": np.zeros(len(holdout.frame))} for state in ("two:end", "three:end")
    }
    errors = {"two:end": {"rate": 0.1}, "three:end": {"rate": 0.3}}

    def drawn(arm: Arm, held: Mapping[str, Mapping[str, float]]) -> dict[str, np.ndarray]:
        walked = Walked(arm, plainly, exact=False, errors=held)  # type: ignore[arg-type]
        return Resampler(reader.reader, 2000, 0).levels(walked, "rate")

    found = drawn(Arm.without("one"), errors)
    off = found["two:end"][1:]
    assert found["two:end"][0] == 0.0
    assert off.std() == pytest.approx(0.1 / COVERED, rel=0.1)
    assert np.mean(np.abs(off) <= 0.1) == pytest.approx(0.9, abs=0.03)
    assert found["three:end"][1:] == pytest.approx(3 * off)
    other = drawn(Arm.without("two"), errors)["two:end"][1:]
    assert abs(np.corrcoef(off, other)[0, 1]) < 0.1
    unknown = {state: {"rate": float("inf")} for state in errors}
    assert not drawn(Arm.without("one"), unknown)["two:end"].any()
