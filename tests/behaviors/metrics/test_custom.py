"""A metric of the audited code is what the spec says of it."""

from __future__ import annotations

import math

import torch
from measures import metric_of, scores

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [-1.0, 0.0, 3.0]], dtype=torch.float64)


def test_it_calls_the_function_that_it_names() -> None:
    metric = metric_of("custom", entrypoint="train:right", unit="share", binary=True)
    assert scores(metric, LOGITS).tolist() == [1.0, 0.0]
    assert metric.functions == {"entrypoint": "train:right"}
    assert (metric.words, metric.unit) == ("custom metric train:right", "share")


def test_nothing_is_known_of_it_but_what_the_spec_says() -> None:
    metric = metric_of("custom", entrypoint="train:score", unit="points")
    assert (metric.bounds, metric.binary, metric.differentiable) == (
        (-math.inf, math.inf),
        False,
        True,
    )
    assert metric.uninformed(3) is None
    assert not metric.predicts
    share = metric_of("custom", entrypoint="train:right", unit="share", binary=True)
    assert (share.bounds, share.binary, share.differentiable) == ((0.0, 1.0), True, False)
