"""Scores of every metric of classes against the hand computation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from measures import metric_of, scores

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [-1.0, 0.0, 3.0], [0.25, 0.0, -0.25]], dtype=torch.float64)
LABELS = torch.tensor([1, 0, 2])


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
    fields: dict[str, Any], expected: list[float]
) -> None:
    assert scores(metric_of(**fields), LOGITS, LABELS).tolist() == pytest.approx(
        expected, abs=1e-14
    )


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1000.0, -1000.0]], dtype=torch.float64)
    assert scores(metric_of("nll"), logits, torch.tensor([1])).tolist() == [2000.0]
    assert scores(metric_of("probability"), logits, torch.tensor([0])).tolist() == [1.0]


def test_a_masked_class_may_have_no_logit_at_all() -> None:
    logits = torch.tensor([[0.0, -torch.inf]])
    assert scores(metric_of("probability", **{"class": 1}), logits).tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "options", "labelled"),
    [
        ("nll", {}, True),
        ("accuracy", {}, True),
        ("probability", {}, True),
        ("probability", {"class": 0}, False),
        ("logit-margin", {"positive": 0, "negative": 1}, False),
        ("rate", {"class": 0}, False),
    ],
)
def test_a_metric_knows_whether_it_needs_the_true_class(
    name: str, options: dict[str, int], labelled: bool
) -> None:
    assert metric_of(name, **options).labelled is labelled


def test_shares_and_probabilities_are_bounded_and_logits_are_not() -> None:
    assert metric_of("nll").bounds == (0.0, math.inf)
    assert metric_of("accuracy").bounds == metric_of("probability").bounds == (0.0, 1.0)
    assert metric_of("rate", **{"class": 0}).bounds == (0.0, 1.0)
    margin = metric_of("logit-margin", positive=0, negative=1)
    assert margin.bounds == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("name", "options", "words", "unit"),
    [
        ("nll", {}, "negative log-likelihood of the true class", "nats"),
        ("accuracy", {}, "share of examples classified correctly", "share"),
        ("probability", {}, "probability of the true class", "probability"),
        ("probability", {"class": 0}, "probability of class 0", "probability"),
        (
            "logit-margin",
            {"positive": 8, "negative": 3},
            "logit of class 8 minus logit of class 3",
            "logits",
        ),
        ("rate", {"class": 2}, "share of examples classified as 2", "share"),
    ],
)
def test_metrics_in_words(name: str, options: dict[str, int], words: str, unit: str) -> None:
    metric = metric_of(name, **options)
    assert (metric.words, metric.unit) == (words, unit)
