"""Readings against direct evaluation and central finite differences in float64."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from training import (
    Recorded,
    StagePlan,
    build_dropped,
    build_normed,
    cross_entropy,
    predict,
    table,
    train,
)

from auditspec import Dataset
from auditspec.artifacts.remote import RemoteFunction
from auditspec.behaviors import plug_in
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.metrics import Rate
from auditspec.behaviors.metrics.classification import Predicted
from auditspec.errors import EstimationError, EvidenceError
from auditspec.record.state import State, restore
from auditspec.spec import models as spec


def behavior(metric: dict[str, Any], where: str | None = None, id_: str = "b") -> spec.Behavior:
    concern = {"direction": "increase", "tolerance": 0.1}
    return spec.Behavior.model_validate(
        {
            "id": id_,
            "description": "d",
            "metric": metric,
            "data": "holdout",
            "where": where,
            "concern": concern,
        }
    )


NLL = behavior({"name": "nll"}, "token < 4", "nll")
MARGIN = behavior({"name": "logit-margin", "positive": 2, "negative": 0}, "x0 > 0", "margin")
RATE = behavior({"name": "rate", "class": 1}, None, "rate")
PROBABILITY = behavior({"name": "probability"}, None, "probability")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"))


@pytest.fixture
def holdout(tmp_path: Path) -> Dataset:
    table(seed=7).to_parquet(tmp_path / "holdout.parquet")
    return Dataset.open(tmp_path / "holdout.parquet")


def reader(recorded: Recorded, holdout: Dataset, *behaviors: spec.Behavior, **options: Any):
    labels = options.pop("labels", {"holdout": "y"})
    custom = options.pop("custom", {})
    return Evaluator(recorded.rerun(), behaviors, {"holdout": holdout}, labels, custom, **options)


def last(recorded: Recorded) -> State:
    return recorded.trajectory.stages[-1].last


def test_plug_in_is_the_metric_of_the_model_on_the_slice(
    recorded: Recorded, holdout: Dataset
) -> None:
    state = recorded.trajectory.stages[0].last  # not the model's own present weights
    found = reader(recorded, holdout, NLL, MARGIN, RATE).plug_in(state)
    frame = holdout.frame
    x = torch.tensor(frame[["x0", "x1", "x2", "x3"]].to_numpy())
    p = state.parameters
    hidden = torch.tanh(x @ p["one.weight"].T + p["one.bias"])
    logits = hidden @ p["two.weight"].T + p["two.bias"]
    rows = np.flatnonzero(frame["token"] < 4)
    nll = -logits.log_softmax(1)[rows, frame["y"].to_numpy()[rows]]
    assert found["nll"] == pytest.approx(nll.numpy(), rel=1e-12)
    margin = (logits[:, 2] - logits[:, 0])[np.flatnonzero(frame["x0"] > 0)]
    assert found["margin"] == pytest.approx(margin.numpy(), rel=1e-12)
    assert found["rate"].tolist() == (logits.argmax(1) == 1).double().tolist()
    assert 0 < len(rows) < len(frame)


class Far(RemoteFunction):
    """A `predict` of another process; counts its questions."""

    questions = 0
    named_files = unregistered = widened = batched = through_output = expect = None  # type: ignore[assignment]

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        raise AssertionError("asked alone")

    def outputs(self, model: nn.Module, states: Any, batches: Any) -> list[list[Tensor]]:
        self.questions += 1
        found = []
        for state in states:
            restore(state, model)
            found.append([predict(model, batch) for batch in batches])
        return found


@pytest.mark.parametrize(
    ("size", "room", "questions"), [(48, 2**24, 2), (48, 1, 9), (1, 2**24, None)]
)
def test_many_states_are_read_as_each_alone(
    recorded: Recorded,
    holdout: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    room: int,
    questions: int | None,
) -> None:
    monkeypatch.setattr(plug_in, "TOGETHER_BYTES", room)
    near = reader(recorded, holdout, NLL, MARGIN, RATE, batch_size=size)
    far = reader(recorded, holdout, NLL, MARGIN, RATE, batch_size=size)
    asked = Far()
    far.rerun.functions = replace(far.rerun.functions, predict=asked)
    states = [
        State({n: (1 + s / 10) * p for n, p in last(recorded).parameters.items()}, {})
        for s in range(9)
    ]
    alone = [near.plug_in(state) for state in states]
    for together in (near.plug_ins(states), far.plug_ins(states)):
        for one, other in zip(alone, together, strict=True):
            assert all(np.array_equal(one[n], other[n]) for n in one)
    assert questions in (None, asked.questions)


@pytest.mark.parametrize("size", [1, 7, 48, 1000])
def test_batch_size_does_not_matter(recorded: Recorded, holdout: Dataset, size: int) -> None:
    state = last(recorded)
    delta = {"one": {n: torch.ones_like(p) for n, p in state.parameters.items()}}
    ours = reader(recorded, holdout, NLL, MARGIN, batch_size=size)
    whole = reader(recorded, holdout, NLL, MARGIN, batch_size=10_000)
    for name in ("nll", "margin"):
        assert ours.plug_in(state)[name] == pytest.approx(whole.plug_in(state)[name], rel=1e-12)
        slopes = [r.linear(state, delta)[name]["one"] for r in (ours, whole)]
        assert slopes[0] == pytest.approx(slopes[1], rel=1e-12)


def test_linear_is_the_central_difference_of_plug_in(recorded: Recorded, holdout: Dataset) -> None:
    """Two directions at once, of which one is as long as the weights; error of order eps^2."""
    read = reader(recorded, holdout, NLL, MARGIN, PROBABILITY, RATE)
    state, eps = last(recorded), 1e-5
    generator = torch.Generator().manual_seed(0)
    deltas = {
        stage: {
            n: scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for n, p in state.parameters.items()
        }
        for stage, scale in (("long", 1.0), ("short", 1e-3))
    }
    slopes = read.linear(state, deltas)
    assert set(slopes) == {"nll", "margin", "probability"}  # a rate has no slope
    for stage, delta in deltas.items():
        up, down = (
            read.plug_in(State({n: p + s * delta[n] for n, p in state.parameters.items()}, {}))
            for s in (eps, -eps)
        )
        for name, by_stage in slopes.items():
            difference = (up[name] - down[name]) / (2 * eps)
            scale = np.abs(difference).max()
            assert scale > 0
            assert by_stage[stage] == pytest.approx(difference, abs=1e-6 * scale)


def test_the_slope_counts_parameters_that_are_frozen_in_the_end(
    tmp_path: Path, holdout: Dataset
) -> None:
    plan = (StagePlan("one"), StagePlan("two", shift=1, frozen=("one",)))
    read = reader(train(tmp_path, plan), holdout, NLL)
    state, eps = last(train(tmp_path / "again", plan)), 1e-5
    delta = {n: torch.ones_like(p) * n.startswith("one") for n, p in state.parameters.items()}
    up, down = (
        read.plug_in(State({n: p + s * delta[n] for n, p in state.parameters.items()}, {}))["nll"]
        for s in (eps, -eps)
    )
    slope = read.linear(state, {"one": delta})["nll"]["one"]
    assert np.abs(slope).max() > 1e-3
    assert slope == pytest.approx((up - down) / (2 * eps), abs=1e-6 * np.abs(slope).max())


@pytest.mark.parametrize(
    ("metric", "statistic"),
    [
        ({"name": "nll"}, {"name": "difference", "by": "odd"}),
        ({"name": "nll"}, {"name": "difference", "by": "odd", "group": 1}),
        ({"name": "nll"}, {"name": "ratio", "by": "odd"}),
        ({"name": "nll"}, {"name": "worst-group", "by": "odd", "worst": "highest"}),
        (
            {"name": "probability", "class": 1},
            {"name": "equalized-odds", "by": "odd", "truth": "y"},
        ),
        ({"name": "probability", "class": 1}, {"name": "ece", "truth": "y", "bins": 3}),
        ({"name": "nll"}, {"name": "quantile", "q": 0.7}),
    ],
)
def test_the_slope_of_a_level_is_its_finite_difference(
    recorded: Recorded, holdout: Dataset, metric: dict[str, Any], statistic: dict[str, Any]
) -> None:
    holdout.frame.assign(odd=np.arange(len(holdout.frame)) % 2).to_parquet(holdout.path)
    level_of = spec.Behavior.model_validate(
        behavior(metric).model_dump(by_alias=True) | {"statistic": statistic}
    )
    read = reader(recorded, Dataset.open(holdout.path), level_of)
    assert read.slices["b"].statistic.statistic.misfit(read.slices["b"].statistic.columns) is None
    state, eps = last(recorded), 1e-6
    generator = torch.Generator().manual_seed(0)
    delta = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in state.parameters.items()
    }
    up, down = (
        read.slices["b"].statistic.level(
            read.plug_in(State({n: p + s * delta[n] for n, p in state.parameters.items()}, {}))["b"]
        )
        for s in (eps, -eps)
    )
    slopes = read.slopes(state)["b"]
    slope = sum(float((slopes[n] * delta[n]).sum()) for n in delta)
    assert abs(slope) > 1e-4
    assert slope == pytest.approx((up - down) / (2 * eps), rel=1e-4)


def test_eval_mode_is_used_and_put_back(tmp_path: Path, holdout: Dataset) -> None:
    """Dropout would make two readings differ; BatchNorm would change its statistics."""
    dropped = reader(train(tmp_path / "dropped", build=build_dropped), holdout, NLL)
    state = last(train(tmp_path / "again", build=build_dropped))
    one, two = dropped.plug_in(state)["nll"], dropped.plug_in(state)["nll"]
    assert one.tolist() == two.tolist()
    for mode in (True, False):
        dropped.rerun.model.train(mode)
        dropped.plug_in(state)
        dropped.linear(state, {"one": state.parameters})
        assert all(m.training is mode for m in dropped.rerun.model.modules())
    normed_run = train(tmp_path / "normed", build=build_normed)
    normed = reader(normed_run, holdout, NLL)
    before = normed.plug_in(last(normed_run))["nll"]
    kept = {n: b.clone() for n, b in normed.rerun.model.named_buffers()}
    normed.linear(last(normed_run), {"one": last(normed_run).parameters})
    assert all(torch.equal(b, kept[n]) for n, b in normed.rerun.model.named_buffers())
    assert normed.plug_in(last(normed_run))["nll"].tolist() == before.tolist()


def test_the_mode_is_put_back_after_a_failure(recorded: Recorded, holdout: Dataset) -> None:
    read = reader(recorded, holdout, behavior({"name": "rate", "class": 9}))
    read.rerun.model.train(True)
    with pytest.raises(EstimationError, match="class 9"):
        read.plug_in(last(recorded))
    assert read.rerun.model.training


def test_a_reading_is_of_the_state_and_not_of_what_was_read_before(
    recorded: Recorded, holdout: Dataset
) -> None:
    read = reader(recorded, holdout, NLL)
    first, final = recorded.trajectory.stages[0].first, last(recorded)
    one = read.plug_in(final)["nll"]
    other = read.plug_in(first)["nll"]
    assert read.plug_in(final)["nll"].tolist() == one.tolist()
    assert np.abs(one - other).max() > 0.01


# --- custom metrics -----------------------------------------------------------------------------

CUSTOM = {"name": "custom", "entrypoint": "train:score", "unit": "points"}
Score = Callable[[nn.Module, Any], Tensor]


def squares(model: nn.Module, batch: Any) -> Tensor:
    return predict(model, batch).square().sum(1)


def test_a_custom_metric_is_called_with_model_and_batch(
    recorded: Recorded, holdout: Dataset
) -> None:
    custom = {"train:score": squares}
    read = reader(recorded, holdout, behavior(CUSTOM, "y == 1"), custom=custom, labels={})
    state = last(recorded)
    found = read.plug_in(state)["b"]
    reference = reader(
        recorded,
        holdout,
        *(
            behavior({"name": "logit-margin", "positive": c, "negative": d}, "y == 1", f"m{c}{d}")
            for c, d in ((0, 1), (1, 2))
        ),
    ).plug_in(state)
    assert len(found) == len(reference["m01"]) == int((holdout.frame["y"] == 1).sum())
    # sum of squares >= (largest difference)^2 / 2: a property that ties the two readings together
    assert (found >= (reference["m01"] + reference["m12"]) ** 2 / 2 - 1e-12).all()
    slope = read.linear(state, {"one": state.parameters})["b"]["one"]
    eps = 1e-6
    up, down = (
        read.plug_in(State({n: p * (1 + s) for n, p in state.parameters.items()}, {}))["b"]
        for s in (eps, -eps)
    )
    assert slope == pytest.approx((up - down) / (2 * eps), rel=1e-6)


@pytest.mark.parametrize(
    "score",
    [
        lambda model, batch: predict(model, batch).argmax(1),
        lambda model, batch: predict(model, batch).detach().sum(1),
        torch.no_grad()(squares),
    ],
    ids=["argmax", "detached", "no_grad"],
)
def test_a_custom_metric_without_a_gradient_has_no_linear_reading(
    recorded: Recorded, holdout: Dataset, score: Score
) -> None:
    read = reader(recorded, holdout, NLL, behavior(CUSTOM), custom={"train:score": score})
    state = last(recorded)
    assert set(read.linear(state, {"one": state.parameters})) == {"nll"}
    assert np.isfinite(read.plug_in(state)["b"]).all()


def test_a_slope_that_is_not_finite_is_left_out(recorded: Recorded, holdout: Dataset) -> None:
    def root(model: nn.Module, batch: Any) -> Tensor:
        return (squares(model, batch) * 0).sqrt()

    read = reader(recorded, holdout, NLL, behavior(CUSTOM), custom={"train:score": root})
    state = last(recorded)
    assert (read.plug_in(state)["b"] == 0).all()
    assert set(read.linear(state, {"one": state.parameters})) == {"nll"}


def test_a_binary_custom_metric_is_not_differentiated(recorded: Recorded, holdout: Dataset) -> None:
    right = behavior({**CUSTOM, "binary": True})
    read = reader(
        recorded,
        holdout,
        right,
        custom={"train:score": lambda m, b: (predict(m, b).argmax(1) == b[2]).double()},
    )
    assert read.slices["b"].metric.binary
    assert read.linear(last(recorded), {"one": last(recorded).parameters}) == {}


@pytest.mark.parametrize("shape", [(), (1,), (47,), (48, 1)])
def test_one_number_per_example_is_asked_for(
    recorded: Recorded, holdout: Dataset, shape: tuple[int, ...]
) -> None:
    custom = {"train:score": lambda model, batch: torch.zeros(shape)}
    read = reader(recorded, holdout, behavior(CUSTOM), custom=custom)
    with pytest.raises(EstimationError, match="for 48 examples"):
        read.plug_in(last(recorded))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(
    recorded: Recorded, holdout: Dataset, value: float
) -> None:
    def score(model: nn.Module, batch: Any) -> Tensor:
        scores = torch.zeros(len(batch[2]))
        scores[-1] = value
        return scores

    read = reader(recorded, holdout, behavior(CUSTOM), custom={"train:score": score})
    with pytest.raises(EstimationError, match="'b' gave NaN or infinity"):
        read.plug_in(last(recorded))


# --- predictions that metrics share -------------------------------------------------------------

SAME_ROWS = (
    behavior({"name": "nll"}, None, "nll"),
    behavior({"name": "accuracy"}, None, "accuracy"),
    behavior(CUSTOM, None, "custom"),
    RATE,
    behavior({"name": "probability"}, "token < 99", "all"),
)
OTHER_ROWS = (
    MARGIN,
    behavior({"name": "probability", "class": 1}, "x0 > 0", "one"),
    behavior({"name": "nll"}, "token < 4", "few"),
)


class Counted:
    """A `predict` that counts its calls, and the outputs of earlier ones that are still there."""

    def __init__(self, called: Callable[[nn.Module, Any], Tensor] = predict) -> None:
        self.called = called
        self.calls, self.most = 0, 0
        self._outputs: list[weakref.ref[Tensor]] = []

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        self.most = max(self.most, sum(r() is not None for r in self._outputs))
        outputs = self.called(model, batch)
        self._outputs.append(weakref.ref(outputs))
        return outputs


class FarCounted(Far):
    """The same in another process; draws what `called` draws."""

    def __init__(self, called: Callable[[nn.Module, Any], Tensor] = predict) -> None:
        self.called, self.calls = called, 0

    def outputs(self, model: nn.Module, states: Any, batches: Any) -> list[list[Tensor]]:
        found, began = [], torch.get_rng_state()
        for state in states:
            torch.set_rng_state(began)
            restore(state, model)
            found.append([self.called(model, batch) for batch in batches])
            self.calls += len(batches)
        return found


def alone(
    recorded: Recorded, holdout: Dataset, behaviors: Iterable[spec.Behavior], **options: Any
) -> dict[str, np.ndarray]:
    """Each behaviour read by a reader of its own."""
    state = last(recorded)
    return {b.id: reader(recorded, holdout, b, **options).plug_in(state)[b.id] for b in behaviors}


def predicting(read: Evaluator, function: Any) -> Evaluator:
    read.rerun.functions = replace(read.rerun.functions, predict=function)
    return read


def test_metrics_of_the_same_rows_share_predictions(recorded: Recorded, holdout: Dataset) -> None:
    """48 rows in batches of 20 are 3 calls, whatever number of metrics reads them."""
    own, counted = Counted(squares), Counted()
    options = {"custom": {"train:score": own}, "batch_size": 20}
    behaviors = (*SAME_ROWS, *OTHER_ROWS)
    read = predicting(reader(recorded, holdout, *behaviors, **options), counted)
    found = read.plug_in(last(recorded))
    few = [len(read.slices[n].ids) for n in ("margin", "few")]
    assert counted.calls == 3 + sum(-(-n // 20) for n in few)
    assert own.calls == 3  # what it calls itself is its own affair
    assert counted.most == 0  # outputs of one batch at a time
    assert list(found) == [b.id for b in behaviors]
    for name, scores in alone(recorded, holdout, behaviors, **options).items():
        assert np.array_equal(found[name], scores)


def test_predictions_in_another_precision_are_shared(recorded: Recorded, holdout: Dataset) -> None:
    def narrow(*behaviors: spec.Behavior) -> Evaluator:
        rerun = recorded.rerun(dtype=torch.float32)
        labels = {"holdout": "y"}
        return Evaluator(rerun, behaviors, {"holdout": holdout}, labels, {}, batch_size=20)

    counted, three = Counted(), (SAME_ROWS[0], SAME_ROWS[1], RATE)
    found = predicting(narrow(*three), counted).plug_in(last(recorded))
    assert counted.calls == 3
    for b in three:
        assert np.array_equal(found[b.id], narrow(b).plug_in(last(recorded))[b.id])


@pytest.mark.parametrize("size", [1, 20])
def test_predictions_of_another_process_are_shared(
    recorded: Recorded, holdout: Dataset, size: int
) -> None:
    behaviors = [b for b in (*SAME_ROWS, *OTHER_ROWS) if b.metric.predicts]
    states = [last(recorded), recorded.trajectory.stages[0].last]
    far = FarCounted()
    read = predicting(reader(recorded, holdout, *behaviors, batch_size=size), far)
    few = [len(read.slices[n].ids) for n in ("nll", "margin", "few")]
    each = sum(-(-n // size) for n in few)
    near = reader(recorded, holdout, *behaviors, batch_size=size)
    for found, state in zip(read.plug_ins(states), states, strict=True):
        wanted = near.plug_in(state)
        assert all(np.array_equal(found[n], wanted[n]) for n in wanted)
    assert far.calls == 2 * each
    read.plug_in(states[0])
    assert far.calls == 3 * each


def drawing(model: nn.Module, batch: Any) -> Tensor:
    logits = predict(model, batch)
    return logits + torch.rand_like(logits)


@pytest.mark.parametrize("kind", [Counted, FarCounted])
@pytest.mark.parametrize("thin", [False, True])
def test_a_predict_that_draws_numbers_draws_them_for_every_metric(
    recorded: Recorded, holdout: Dataset, kind: type[Any], thin: bool
) -> None:
    """Held against the passes in the order of behaviours, with one stream of numbers."""
    three = (behavior({"name": "nll"}, None, "nll"), MARGIN, behavior({"name": "probability"}))
    read = reader(recorded, holdout, *three, batch_size=20)
    read = read.thinned(read.rerun, 30)[0] if thin else read
    predicting(read, kind(drawing))
    state, frame = last(recorded), holdout.frame
    found = [read.plug_in(state), next(read.plug_ins([state]))]
    model = read.rerun.model
    restore(state, model)
    torch.manual_seed(0)
    wanted: dict[str, list[Tensor]] = {b.id: [] for b in three}
    for name, kept in wanted.items():
        ids = read.slices[name].ids
        for start in range(0, len(ids), 20):
            rows = ids[start : start + 20]
            with torch.no_grad():
                logits = drawing(model.eval(), read.rerun.load(holdout, rows.tolist()))
            y = torch.from_numpy(frame["y"].to_numpy()[rows])
            scores = {
                "nll": lambda z, y: nn.functional.cross_entropy(z, y, reduction="none"),
                "margin": lambda z, y: z[:, 2] - z[:, 0],
                "b": lambda z, y: z.softmax(1).gather(1, y[:, None])[:, 0],
            }[name](logits, y)
            kept.append(scores.double())
    for scores in found:
        assert all(np.array_equal(scores[n], torch.cat(w).numpy()) for n, w in wanted.items())


def test_what_loading_draws_is_drawn_for_every_metric(recorded: Recorded, holdout: Dataset) -> None:
    def loading(data: Any, ids: Any) -> Any:
        x, token, y = recorded.functions.load_batch(data, ids)
        return x + torch.rand_like(x), token, y

    def read(*behaviors: spec.Behavior, thin: bool) -> Evaluator:
        made = reader(recorded, holdout, *behaviors, batch_size=20)
        made.rerun.functions = replace(made.rerun.functions, load_batch=loading)
        return made.thinned(made.rerun, 48)[0] if thin else made

    state, two = last(recorded), (RATE, behavior({"name": "nll"}, None, "nll"))
    found = [read(*two, thin=thin).plug_in(state) for thin in (False, True)]
    torch.manual_seed(0)
    batches = [loading(holdout, ids) for _ in two for ids in np.split(np.arange(48), (20, 40))]
    model = read(RATE, thin=False).rerun
    model.enter(recorded.trajectory.stages[-1])
    restore(state, model.model)
    with torch.no_grad():
        logits = [predict(model.model.eval(), batch) for batch in batches]
    rate = torch.cat(logits[:3]).argmax(1) == 1
    labels = torch.tensor(holdout.frame["y"].to_numpy())
    nll = [
        nn.functional.cross_entropy(z, y, reduction="none")
        for z, y in zip(logits[3:], labels.split(20), strict=True)
    ]
    for scores in found:
        assert scores["rate"].tolist() == rate.double().tolist()
        assert scores["nll"].tolist() == torch.cat(nll).tolist()


@pytest.mark.parametrize("kind", [Counted, FarCounted])
def test_a_metric_that_works_in_place_spoils_no_other(
    recorded: Recorded, holdout: Dataset, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    three = (RATE, SAME_ROWS[0], SAME_ROWS[1])
    wanted = alone(recorded, holdout, three)
    original = Rate.of_said

    def spoiling(self: Rate, said: Predicted, labels: Tensor) -> Tensor:
        scores = original(self, said, labels)
        said.outputs.fill_(torch.nan)
        return scores

    monkeypatch.setattr(Rate, "of_said", spoiling)
    found = predicting(reader(recorded, holdout, *three), kind()).plug_in(last(recorded))
    assert all(np.array_equal(found[n], wanted[n]) for n in wanted)


def test_what_inference_mode_gives_is_shared(recorded: Recorded, holdout: Dataset) -> None:
    three = (SAME_ROWS[0], SAME_ROWS[1], RATE)
    counted = Counted(torch.inference_mode()(predict))
    found = predicting(reader(recorded, holdout, *three), counted).plug_in(last(recorded))
    assert counted.calls == 1
    wanted = alone(recorded, holdout, three)
    assert all(np.array_equal(found[n], wanted[n]) for n in wanted)


# --- labels and slices --------------------------------------------------------------------------


def with_labels(tmp_path: Path, values: Any) -> Dataset:
    frame = table(seed=7)
    frame["y2"] = values
    frame.to_parquet(tmp_path / "holdout.parquet")
    return Dataset.open(tmp_path / "holdout.parquet")


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 2, 48),
        np.full(48, -1),
        ["a"] * 48,
        [True, False] * 24,
        pd.array([None, 1] * 24, dtype="Int64"),
    ],
    ids=["fractions", "negative", "text", "truth", "missing"],
)
def test_labels_that_are_no_classes_are_refused(
    recorded: Recorded, tmp_path: Path, values: Any
) -> None:
    data = with_labels(tmp_path, values)
    with pytest.raises(EvidenceError, match=r"'y2' .*does not hold classes"):
        reader(recorded, data, behavior({"name": "nll"}), labels={"holdout": "y2"})
    # A metric that needs no true class does not care.
    read = reader(recorded, data, MARGIN, labels={"holdout": "y2"})
    assert len(read.plug_in(last(recorded))["margin"])


def test_unsigned_labels_and_labels_beyond_the_model(recorded: Recorded, tmp_path: Path) -> None:
    same = with_labels(tmp_path, table(seed=7)["y"].astype("uint8"))
    ours, theirs = (
        reader(recorded, same, behavior({"name": "nll"}), labels={"holdout": column})
        for column in ("y2", "y")
    )
    state = last(recorded)
    assert ours.plug_in(state)["b"].tolist() == theirs.plug_in(state)["b"].tolist()
    other = with_labels(tmp_path, np.full(48, 3))
    with pytest.raises(EstimationError, match="class 3"):
        reader(recorded, other, behavior({"name": "nll"}), labels={"holdout": "y2"}).plug_in(state)
    reader(recorded, other, RATE, labels={"holdout": "y2"}).plug_in(state)


def test_missing_columns_and_empty_slices(recorded: Recorded, holdout: Dataset) -> None:
    with pytest.raises(EvidenceError, match="no column 'class'"):
        reader(recorded, holdout, NLL, labels={"holdout": "class"})
    with pytest.raises(EvidenceError, match="no row"):
        reader(recorded, holdout, behavior({"name": "nll"}, "token == 99"))


def test_the_reading_is_the_loss_that_trained(recorded: Recorded, holdout: Dataset) -> None:
    """Mean nll over all rows = the objective on one batch of all rows."""
    read = reader(recorded, holdout, behavior({"name": "nll"}))
    mean = read.plug_in(last(recorded))["b"].mean()
    batch = read.rerun.load(holdout, range(48))
    assert mean == pytest.approx(float(cross_entropy(read.rerun.model, batch).detach()), rel=1e-12)
