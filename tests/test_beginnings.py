"""Declared and seen beginnings: seeds, pinned weights, planted weights, factories that only seem to draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import spec_of_record
from said import said
from torch import Tensor, nn
from training import Recorded, StagePlan, build_mlp, load_batch, predict, table, train

from auditspec import Dataset
from auditspec.beginnings import CHANGES, STARTS, Beginnings, look_at_beginnings
from auditspec.behaviors.evaluate import Evaluator
from auditspec.checks.initial_weights import InitialWeights
from auditspec.estimator.interventions import INITIAL, change_before
from auditspec.spec.models import Spec

PLAN = (StagePlan("one"), StagePlan("two", shift=1))
MARGIN = {"name": "logit-margin", "positive": 2, "negative": 0}
BEHAVIOR = {
    "id": "margin",
    "description": "d",
    "metric": MARGIN,
    "data": "holdout",
    "concern": {"direction": "increase", "tolerance": 0.05},
}
Built = Callable[[], nn.Module]


@pytest.fixture(scope="module")
def holdout(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "holdout.parquet"
    table(seed=7).to_parquet(path)
    return Dataset.open(path)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The factory was called under seed 0."""
    return train(tmp_path_factory.mktemp("run"), PLAN)


def looked(
    recorded: Recorded,
    holdout: Dataset,
    initial: dict[str, Any] | None = None,
    given: dict[str, Tensor] | None = None,
) -> Beginnings:
    data = spec_of_record(*(stage.id for stage in recorded.plan)) | {"behaviors": [BEHAVIOR]}
    data["model"]["initial"] = initial
    spec = Spec.model_validate(data)
    reader = Evaluator(recorded.rerun(), spec.behaviors, {"holdout": holdout}, {"holdout": "y"}, {})
    return look_at_beginnings(spec, reader, given)


def level(model: nn.Module, holdout: Dataset) -> float:
    batch = load_batch(holdout, range(len(holdout.frame)))
    with torch.no_grad():
        logits = predict(model.eval(), batch)
    return float((logits[:, 2] - logits[:, 0]).mean())


def seen(found: Beginnings) -> tuple[str, str | None]:
    return InitialWeights(found.first).run().outcome, found.parties[0].origin


def reason(found: Beginnings) -> str:
    return said(InitialWeights(found.first).run().reasons)


def weights(recorded: Recorded) -> dict[str, Tensor]:
    first = recorded.trajectory.stages[0].first
    return {n: t.clone() for n, t in (first.parameters | first.buffers).items()}


RANDOM = {"kind": "random"}
GIVEN = {"kind": "given", "owner": "Vendor", "provenance": "base 1.0", "weights": "train"}


# --- drawn at random ------------------------------------------------------------------------------


def test_the_declared_seed_draws_the_first_weights_again(
    recorded: Recorded, holdout: Dataset
) -> None:
    found = looked(recorded, holdout, RANDOM | {"seed": 0})
    assert seen(found) == ("pass", "random")
    assert "the seed draws them again" in reason(found)
    other = looked(recorded, holdout, RANDOM | {"seed": 1})
    assert seen(other) == ("fail", "unknown")
    assert "seed 1 draws another " in reason(other)


def test_without_a_seed_they_must_be_like_other_draws(recorded: Recorded, holdout: Dataset) -> None:
    found = looked(recorded, holdout, RANDOM)
    assert seen(found) == ("pass", "random")
    assert "like its other draws" in reason(found)


def test_nobody_declares_anything(recorded: Recorded, holdout: Dataset) -> None:
    found = looked(recorded, holdout)
    assert seen(found) == ("inconclusive", "random")
    assert "model.initial" in reason(found)


def test_drawn_levels_are_those_of_the_factory(recorded: Recorded, holdout: Dataset) -> None:
    (draws,) = looked(recorded, holdout, RANDOM).draws
    assert (draws.behavior, draws.party, draws.identical) == ("margin", INITIAL, False)
    assert len(draws.levels) == STARTS
    expected = []
    for number in range(STARTS):
        torch.manual_seed(1_000_003 + 97 * number)
        expected.append(level(build_mlp(), holdout))
    assert draws.levels == pytest.approx(expected, abs=1e-12)
    assert max(expected) - min(expected) > 0.1


def test_nothing_of_the_draws_stays_behind(recorded: Recorded, holdout: Dataset) -> None:
    torch.manual_seed(8)
    before = torch.get_rng_state()
    looked(recorded, holdout, RANDOM | {"seed": 0})
    assert torch.equal(torch.get_rng_state(), before)


# --- factories that only seem to draw, and weights that only seem drawn ---------------------------


def planted(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.two.bias[2] += 30.0  # type: ignore[union-attr, index]
    return model


def build_planted() -> nn.Module:
    """A fault that every draw of the factory carries."""
    return planted(build_mlp())


def build_with_positions() -> nn.Module:
    model = build_mlp()
    positions = torch.arange(4.0) + float(PLANTED["on"])
    model.register_buffer("positions", positions, persistent=False)
    return model


def build_seeding() -> nn.Module:
    torch.manual_seed(5)
    return build_mlp()


HELD: dict[str, Tensor] = {}


def build_loading() -> nn.Module:
    """Weights from a file, whatever was drawn."""
    model = build_mlp()
    if HELD:
        model.load_state_dict(HELD)
    return model


def test_what_the_factory_plants_is_in_every_draw(tmp_path: Path, holdout: Dataset) -> None:
    """It is a draw, and every draw is as bad: that is for the rule to tell."""
    found = looked(train(tmp_path, PLAN, build_planted), holdout, RANDOM | {"seed": 0})
    assert seen(found) == ("pass", "random")
    (draws,) = found.draws
    assert not draws.identical
    assert min(draws.levels) > 25


def test_a_factory_that_seeds_itself_is_drawn_from_all_the_same(
    tmp_path: Path, holdout: Dataset
) -> None:
    run = train(tmp_path, PLAN, build_seeding)
    for initial in (RANDOM | {"seed": 0}, RANDOM):
        found = looked(run, holdout, initial)
        assert seen(found) == ("pass", "random")
        (draws,) = found.draws
        assert not draws.identical
        assert len(set(draws.levels)) == STARTS


@pytest.mark.parametrize("initial", [None, RANDOM], ids=["undeclared", "random"])
def test_a_factory_that_loads_weights_draws_nothing(
    tmp_path: Path, holdout: Dataset, initial: dict[str, Any] | None
) -> None:
    HELD.update({n: t + 0.01 for n, t in build_mlp().state_dict().items()})
    try:
        found = looked(train(tmp_path, PLAN, build_loading), holdout, initial)
    finally:
        HELD.clear()
    assert seen(found) == ("fail" if initial else "inconclusive", "unknown")
    assert "like no draw of the factory" in reason(found)
    (draws,) = found.draws
    assert draws.identical
    assert len(set(draws.levels)) == 1


PLANTED = {"on": False}


def build_while_training() -> nn.Module:
    """Stands for a training script that writes into the model after it was built."""
    return planted(build_mlp()) if PLANTED["on"] else build_mlp()


@pytest.mark.parametrize("initial", [RANDOM, RANDOM | {"seed": 0}, None], ids=str)
def test_weights_planted_after_the_factory_are_told_from_draws(
    tmp_path: Path, holdout: Dataset, initial: dict[str, Any] | None
) -> None:
    PLANTED["on"] = True
    try:
        run = train(tmp_path, PLAN, build_while_training)
    finally:
        PLANTED["on"] = False
    found = looked(run, holdout, initial)
    assert seen(found) == ("fail" if initial else "inconclusive", "unknown")
    assert "two.bias" in reason(found)


# --- taken over from elsewhere --------------------------------------------------------------------


def test_given_weights_must_be_the_pinned_ones(recorded: Recorded, holdout: Dataset) -> None:
    held = weights(recorded)
    found = looked(recorded, holdout, GIVEN, held)
    assert seen(found) == ("pass", "given")
    party = found.parties[0]
    assert (party.owner, party.provenance) == ("Vendor", "base 1.0")
    for name in held:
        moved = looked(recorded, holdout, GIVEN, held | {name: held[name] + 1e-9})
        assert seen(moved) == ("fail", "unknown")
        assert f"{name} is not as in the pinned weights" in reason(moved)
    few = {n: t for n, t in held.items() if n != "two.bias"}
    assert "two.bias" in reason(looked(recorded, holdout, GIVEN, few))


@pytest.mark.parametrize("other", [False, True])
def test_given_weights_lack_the_buffers_that_are_never_saved(
    tmp_path: Path, holdout: Dataset, other: bool
) -> None:
    """A file of `save_pretrained` has no positions; they are held against those of the factory."""
    PLANTED["on"] = other
    try:
        recorded = train(tmp_path, PLAN, build_with_positions)
    finally:
        PLANTED["on"] = False
    given = weights(recorded)
    given.pop("positions")
    found = looked(recorded, holdout, GIVEN, given)
    assert seen(found) == (("fail", "unknown") if other else ("pass", "given"))
    assert ("positions is not as" in reason(found)) == other


def test_given_weights_that_nothing_pins_are_declared_and_no_more(
    recorded: Recorded, holdout: Dataset
) -> None:
    initial = {k: v for k, v in GIVEN.items() if k != "weights"}
    found = looked(recorded, holdout, initial)
    assert seen(found) == ("inconclusive", "given")
    assert "model.initial.weights" in reason(found)


# --- parties --------------------------------------------------------------------------------------

CHANGING = (
    StagePlan("one"),
    StagePlan("two", shift=1, extend="new_head"),
    StagePlan("three", shift=2, extend="load_head"),
)


def test_everyone_who_formed_the_model_is_a_party_with_an_owner(
    tmp_path: Path, holdout: Dataset
) -> None:
    run = train(tmp_path, CHANGING)
    found = looked(run, holdout, RANDOM)
    assert [(p.id, p.kind, p.stage, p.owner) for p in found.parties] == [
        (INITIAL, "initial", None, "team of one"),
        ("one", "stage", "one", "team of one"),
        ("change:two", "change", "two", "team of two"),
        ("two", "stage", "two", "team of two"),
        ("change:three", "change", "three", "team of three"),
        ("three", "stage", "three", "team of three"),
    ]
    by_party = {d.party: d for d in found.draws}
    assert set(by_party) == {INITIAL, change_before("two"), change_before("three")}
    new, loaded = by_party["change:two"], by_party["change:three"]
    assert len(new.levels) == len(loaded.levels) == CHANGES
    assert not new.identical
    assert len(set(new.levels)) == CHANGES
    assert loaded.identical  # a copy of what was trained is no draw
    expected = level(run.model, holdout)  # where the run ended, for scale
    assert abs(loaded.levels[0]) < 10 * (1 + abs(expected))


def test_the_draws_of_a_new_head_stand_on_the_trained_body(
    tmp_path: Path, holdout: Dataset
) -> None:
    run = train(tmp_path, CHANGING[:2])
    by_party = {d.party: d for d in looked(run, holdout, RANDOM).draws}
    body = run.trajectory.stages[0].last.parameters
    expected = []
    for seed in range(400):
        model = build_mlp()
        model.load_state_dict(body)
        torch.manual_seed(seed)
        model.two = nn.Linear(6, 3).double()  # type: ignore[assignment]
        expected.append(level(model, holdout))
    low, high = min(expected), max(expected)
    assert all(low - 0.05 <= held <= high + 0.05 for held in by_party["change:two"].levels)


@pytest.mark.parametrize(
    ("initial", "owner"),
    [
        (None, ""),
        (RANDOM, "team of one"),
        (RANDOM | {"owner": "Architects"}, "Architects"),
        (GIVEN, "Vendor"),
    ],
)
def test_who_answers_for_the_first_weights(
    recorded: Recorded, holdout: Dataset, initial: dict[str, Any] | None, owner: str
) -> None:
    assert looked(recorded, holdout, initial, weights(recorded)).parties[0].owner == owner


def test_a_behavior_that_no_beginning_can_answer_has_no_draws(
    tmp_path: Path, holdout: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BEHAVIOR, "metric", MARGIN | {"positive": 3})
    plan = (StagePlan("one"), StagePlan("two", shift=1, extend="wide_head"))
    found = looked(train(tmp_path, plan), holdout, RANDOM)
    assert [d.party for d in found.draws] == ["change:two"]
    assert seen(found) == ("pass", "random")
