from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from auditspec.behaviors.metrics import Metric, metric_of
from auditspec.errors import EstimationError
from auditspec.spec import models as spec

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [-1.0, 0.0, 3.0], [0.25, 0.0, -0.25]], dtype=torch.float64)
LABELS = torch.tensor([1, 0, 2])


def named(**fields: object) -> Metric:
    behavior = spec.Behavior.model_validate(
        {
            "id": "b",
            "description": "d",
            "metric": fields,
            "data": "holdout",
            "concern": {"direction": "increase", "tolerance": 0.1},
        }
    )
    metric = metric_of(behavior.metric)
    assert metric is not None
    return metric


def softmax(row: list[float]) -> list[float]:
    exps = [math.exp(value) for value in row]
    return [e / sum(exps) for e in exps]


P = [softmax(row) for row in LOGITS.tolist()]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "nll"}, [-math.log(P[0][1]), -math.log(P[1][0]), -math.log(P[2][2])]),
        ({"name": "accuracy"}, [1.0, 0.0, 0.0]),
        ({"name": "probability"}, [P[0][1], P[1][0], P[2][2]]),
        ({"name": "probability", "class": 2}, [P[0][2], P[1][2], P[2][2]]),
        ({"name": "probability", "class": 0}, [P[0][0], P[1][0], P[2][0]]),
        ({"name": "logit-margin", "positive": 2, "negative": 0}, [-0.5, 4.0, -0.5]),
        ({"name": "rate", "class": 0}, [0.0, 0.0, 1.0]),
        ({"name": "rate", "class": 2}, [0.0, 1.0, 0.0]),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_a_metric_equals_the_hand_computation(
    fields: dict[str, object], expected: list[float]
) -> None:
    metric = named(**fields)
    assert metric(LOGITS, LABELS).tolist() == pytest.approx(expected, abs=1e-14)
    # One example at a time gives the same numbers: no metric looks at its neighbours.
    single = [float(metric(LOGITS[i : i + 1], LABELS[i : i + 1])[0]) for i in range(3)]
    assert single == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", ["accuracy", "rate"])
def test_shares_are_binary_and_have_no_slope(name: str) -> None:
    metric = named(name=name) if name == "accuracy" else named(name=name, **{"class": 1})
    assert metric.binary
    assert not metric.differentiable
    assert set(metric(torch.randn(50, 4), torch.zeros(50, dtype=torch.int64)).tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("fields", "labelled"),
    [
        ({"name": "nll"}, True),
        ({"name": "accuracy"}, True),
        ({"name": "probability"}, True),
        ({"name": "probability", "class": 0}, False),
        ({"name": "logit-margin", "positive": 0, "negative": 1}, False),
        ({"name": "rate", "class": 0}, False),
    ],
)
def test_a_metric_knows_whether_it_needs_the_true_class(
    fields: dict[str, object], labelled: bool
) -> None:
    metric = named(**fields)
    assert metric.labelled is labelled
    if not labelled:
        assert metric(LOGITS, torch.empty(0, dtype=torch.int64)).shape == (3,)


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1000.0, -1000.0]], dtype=torch.float64)
    assert named(name="nll")(logits, torch.tensor([1])).tolist() == [2000.0]
    assert named(name="probability")(logits, torch.tensor([0])).tolist() == [1.0]


@pytest.mark.parametrize("shape", [(3,), (3, 3, 1), ()])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EstimationError, match=r"shape \("):
        named(name="nll")(torch.zeros(shape), LABELS)


@pytest.mark.parametrize(
    ("fields", "labels", "missing"),
    [
        ({"name": "rate", "class": 3}, LABELS, 3),
        ({"name": "logit-margin", "positive": 0, "negative": 7}, LABELS, 7),
        ({"name": "nll"}, torch.tensor([0, 3, 1]), 3),
        ({"name": "accuracy"}, torch.tensor([0, 5, 1]), 5),
    ],
)
def test_a_class_that_the_model_lacks_is_named(
    fields: dict[str, object], labels: Tensor, missing: int
) -> None:
    with pytest.raises(EstimationError, match=f"class {missing} .*classes 0 to 2"):
        named(**fields)(LOGITS, labels)


@pytest.mark.parametrize("fields", [{"name": "accuracy"}, {"name": "rate", "class": 0}])
def test_nan_logits_are_refused_where_argmax_would_hide_them(fields: dict[str, object]) -> None:
    logits = LOGITS.clone()
    logits[1, 2] = torch.nan
    with pytest.raises(EstimationError, match="NaN"):
        named(**fields)(logits, LABELS)


def test_a_masked_class_may_have_no_logit_at_all() -> None:
    logits = torch.tensor([[0.0, -torch.inf]])
    assert named(name="probability", **{"class": 1})(logits, LABELS[:0]).tolist() == [0.0]


def test_a_custom_metric_scores_by_itself() -> None:
    assert metric_of(spec.Custom(name="custom", entrypoint="train:score", unit="words")) is None
