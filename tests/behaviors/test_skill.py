"""What a model can do, as a share of the way from knowing nothing; numbers by hand and by plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from said import said
from training import FEATURES, Recorded, predict, table, train

from auditspec import Dataset
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.skill import (
    FEWEST_ROWS,
    Skill,
    accuracies,
    skill_of,
)
from auditspec.spec import models as spec

LABELS = {"holdout": "y"}
SCORED = {"s": np.array([1.0])}


def behavior(metric: dict[str, Any], where: str | None = None, **more: Any) -> spec.Behavior:
    facts = {"id": "b", "description": "d", "data": "holdout", "where": where} | more
    concern = {"direction": "increase", "tolerance": 0.1} | facts.pop("concern", {})
    return spec.Behavior.model_validate(facts | {"metric": metric, "concern": concern})


MARGIN = {"name": "logit-margin", "positive": 2, "negative": 0}
CUSTOM = {"name": "custom", "entrypoint": "m:score", "unit": "u"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"))


@pytest.fixture
def holdout(tmp_path: Path) -> Dataset:
    table(seed=7).to_parquet(tmp_path / "holdout.parquet")
    return Dataset.open(tmp_path / "holdout.parquet")


def reader(
    recorded: Recorded,
    holdout: Dataset,
    *behaviors: spec.Behavior,
    labels: dict[str, str | None] | None = None,
) -> Evaluator:
    custom = {"m:score": lambda model, batch: predict(model, batch)[:, 0]}
    held: Any = LABELS if labels is None else labels
    return Evaluator(recorded.rerun(), behaviors, {"holdout": holdout}, held, custom)


# --- the share ------------------------------------------------------------------------------------


def shares(best: float, *, nothing: float | None = 0.5, top: float | None = 1.0) -> Any:
    """Skill at goodness 0.5, 0.6, and 0.4, where the best recorded end has `best`."""
    skill = Skill("w", lambda scores: float(scores["s"][0]), nothing, top)
    states = {name: {"s": np.array([v])} for name, v in (("a", 0.5), ("b", 0.6), ("c", 0.4))}
    run = {"initial": 0.3, "one:end": 0.45, "two:start": 0.99, "two:end": best, "three:end": 0.2}
    return skill.shares(states, {name: {"s": np.array([v])} for name, v in run.items()})


def test_skill_is_the_share_of_the_way_to_the_best_recorded_end() -> None:
    assert shares(0.9) == pytest.approx({"a": 0.0, "b": 0.25, "c": -0.25})
    assert shares(0.9, nothing=None) == pytest.approx({"a": 1 / 3, "b": 0.5, "c": 1 / 6})


@pytest.mark.parametrize(
    ("best", "nothing", "top", "read"),
    [
        (0.55, 0.5, 1.0, True),
        (0.524, 0.5, 1.0, False),  # a twentieth of the way to perfection is no skill
        (0.526, 0.5, 1.0, True),
        (0.501, 0.5, None, True),  # where perfection is unknown, any way will do
        (0.5, 0.5, None, False),
        (0.46, 0.5, None, False),
    ],
)
def test_where_the_run_learned_nothing_skill_cannot_be_read(
    best: float, nothing: float, top: float | None, read: bool
) -> None:
    found = shares(best, nothing=nothing, top=top)
    assert [value is None for value in found.values()] == [not read] * 3


def test_without_ends_or_a_start_skill_cannot_be_read() -> None:
    skill = Skill("w", lambda scores: float(scores["s"][0]), None)
    assert skill.shares({"a": SCORED}, {"initial": SCORED}) == {"a": None}
    assert skill.shares({"a": SCORED}, {"one:end": SCORED}) == {"a": None}


# --- by accuracy ----------------------------------------------------------------------------------


def skill_on(recorded: Recorded, holdout: Dataset, part: spec.Behavior) -> tuple[Evaluator, Skill]:
    read = reader(recorded, holdout, part)
    found = skill_of(part, read, LABELS, {})
    assert found is not None
    return read, found


@pytest.mark.parametrize(
    ("where", "outside"),
    [
        ("x1 > 0", True),
        ("x1 > -0.8", False),  # too few rows outside
        (None, False),
        ("y != 1", False),  # one class outside
    ],
)
def test_accuracy_is_read_outside_the_slice_where_there_is_enough(
    recorded: Recorded, holdout: Dataset, where: str | None, outside: bool
) -> None:
    read, skill = skill_on(recorded, holdout, behavior(MARGIN, where))
    frame = holdout.frame
    inside = np.ones(len(frame), bool) if where is None else frame.eval(where).to_numpy()
    rows = ~inside if outside else np.ones(len(frame), bool)
    left = frame["y"][~inside]
    assert outside is (len(left) >= FEWEST_ROWS and left.nunique() > 1)
    assert (skill.words.code == "accuracy-outside") is outside
    counts = np.bincount(frame["y"][rows])
    assert skill.nothing == pytest.approx(counts.max() / counts.sum())
    found = read.of(accuracies(read, LABELS), LABELS)
    state = recorded.trajectory.stages[-1].last
    scores = found.plug_in(state)
    weights = state.parameters
    x = torch.tensor(frame[FEATURES].to_numpy(copy=True))
    hidden = torch.tanh(x @ weights["one.weight"].T + weights["one.bias"])
    guessed = (hidden @ weights["two.weight"].T + weights["two.bias"]).argmax(1).numpy()
    right = (guessed == frame["y"].to_numpy())[rows].mean()
    assert skill.goodness(scores) == pytest.approx(right)


def test_each_labelled_data_set_is_read_once_and_whole(
    recorded: Recorded, holdout: Dataset
) -> None:
    two = (behavior(MARGIN, "x1 > 0"), behavior(MARGIN, "x1 < 0", id="c"))
    read = reader(recorded, holdout, *two)
    (found,) = accuracies(read, LABELS)
    assert (found.where, found.metric.name, found.data) == (None, "accuracy", "holdout")


def test_there_is_no_accuracy_without_labels_or_classes(
    recorded: Recorded, holdout: Dataset
) -> None:
    margin, custom = behavior(MARGIN), behavior(CUSTOM)
    read = reader(recorded, holdout, margin, labels={"holdout": None})
    assert accuracies(read, {"holdout": None}) == []
    assert skill_of(margin, read, {"holdout": None}, {}) is None
    read = reader(recorded, holdout, custom)
    assert accuracies(read, LABELS) == []
    assert skill_of(custom, read, LABELS, {}) is None


# --- by another behaviour -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "uninformed", "nothing"),
    [("increase", 2.0, -2.0), ("decrease", 2.0, 2.0), ("increase", None, None)],
)
def test_skill_by_another_behavior_goes_by_its_concern(
    recorded: Recorded, holdout: Dataset, direction: str, uninformed: float | None, nothing: Any
) -> None:
    """An error that must not rise: less of it is better. A score that must not fall: more is."""
    concern = {"direction": direction}
    able = behavior(CUSTOM, id="able", concern=concern)
    part = behavior(CUSTOM, skill="able")
    read = reader(recorded, holdout, able, part)
    skill = skill_of(part, read, LABELS, {"able": uninformed})
    assert skill is not None
    assert (said(skill.words), skill.nothing) == ("'able'", nothing)
    sign = -1 if direction == "increase" else 1
    assert skill.goodness({"able": np.array([1.0, 4.0])}) == sign * 2.5
    assert accuracies(read, LABELS) == []
