"""What every metric promises, whatever it scores."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from factories import minimal_spec
from measures import CLASSES, METRIC_OPTIONS, every_metric, scores
from torch import Tensor

from auditspec.behaviors.metrics import METRICS, Metric, classes
from auditspec.errors import EstimationError
from auditspec.spec.measures import AS_DECLARED, DeclaredMetric, OutputKind
from auditspec.spec.models import Spec
from auditspec.spec.rules import broken_rules

ROWS = 40
EVERY = pytest.mark.parametrize(
    "metric", every_metric(), ids=lambda m: f"{m.name}-{m.words.replace(' ', '-')}"
)


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(ROWS) % CLASSES


def known(metric: Metric, labels: Tensor) -> Tensor | None:
    return labels if metric.labelled else None


def test_every_metric_is_held_to_this_and_has_its_own_name() -> None:
    assert [metric.name for metric in METRICS] == list(METRIC_OPTIONS) == list(classes())


@EVERY
def test_it_says_what_it_is(metric: Metric) -> None:
    assert metric.words
    assert metric.unit
    assert type(metric).__doc__
    assert set(metric.functions) | set(metric.named_classes) <= {
        field.alias or name for name, field in type(metric).model_fields.items()
    }


@EVERY
def test_a_spec_reads_it_and_writes_it_again(metric: Metric) -> None:
    declared = metric.model_dump(by_alias=True, mode="json")
    data = minimal_spec()
    data["behaviors"][0]["metric"] = declared
    spec = Spec.model_validate_json(json.dumps(data), strict=True)
    assert spec.behaviors[0].metric == metric
    assert json.loads(spec.model_dump_json(by_alias=True))["behaviors"][0]["metric"] == declared
    plain: Any = Spec.model_validate(data, context=AS_DECLARED).behaviors[0].metric
    assert not isinstance(plain, DeclaredMetric)
    assert plain.model_dump() == declared
    assert DeclaredMetric.of(declared) == metric
    assert DeclaredMetric.of(declared | {"no-such-option": 1}) is None


@EVERY
def test_it_scores_every_example_by_itself(metric: Metric, logits: Tensor, labels: Tensor) -> None:
    y = known(metric, labels)
    whole = scores(metric, logits, y)
    assert whole.shape == (ROWS,)
    assert whole.dtype == torch.float64
    assert torch.isfinite(whole).all()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    assert torch.equal(scores(metric, logits[order], None if y is None else y[order]), whole[order])
    alone = [
        scores(metric, logits[i : i + 1], None if y is None else y[i : i + 1]) for i in range(9)
    ]
    assert torch.cat(alone).tolist() == pytest.approx(whole[:9].tolist(), rel=1e-12)


@EVERY
def test_its_scores_are_what_it_declares(metric: Metric, logits: Tensor, labels: Tensor) -> None:
    found = scores(metric, 5 * logits, known(metric, labels)).numpy()
    least, most = metric.bounds
    assert least <= found.min() < found.max() <= most
    assert metric.binary == bool(np.isin(found, (0.0, 1.0)).all())
    if metric.binary:
        assert (least, most) == (0.0, 1.0)


@EVERY
def test_it_needs_labels_where_it_says_so(metric: Metric, logits: Tensor, labels: Tensor) -> None:
    ours, others = (scores(metric, logits, y) for y in (labels, (labels + 1) % CLASSES))
    assert torch.equal(ours, others) is not metric.labelled


@EVERY
def test_its_slope_is_the_central_difference(
    metric: Metric, logits: Tensor, labels: Tensor
) -> None:
    y, eps = known(metric, labels), 1e-6
    probe = logits.clone().requires_grad_()
    found = scores(metric, probe, y)
    assert found.requires_grad is metric.differentiable
    if not metric.differentiable:
        return
    (slope,) = torch.autograd.grad(found.sum(), probe)
    for column in range(CLASSES):
        step = torch.zeros_like(logits)
        step[:, column] = eps
        difference = (scores(metric, logits + step, y) - scores(metric, logits - step, y)) / (
            2 * eps
        )
        assert slope[:, column].tolist() == pytest.approx(difference.tolist(), abs=1e-8)


@EVERY
@pytest.mark.parametrize("count", [CLASSES, 7])
def test_the_uninformed_score_is_that_of_a_flat_prediction(metric: Metric, count: int) -> None:
    """Ties broken at random: over many predictions that are flat but for a hair."""
    generator = torch.Generator().manual_seed(0)
    flat = 1e-6 * torch.randn(20_000, count, generator=generator, dtype=torch.float64)
    expected = metric.uninformed(count)
    if metric.of_classes:
        mean = float(scores(metric, flat, torch.arange(len(flat)) % count).mean())
        assert expected == pytest.approx(mean, abs=0.01)
    else:
        assert expected is None


@EVERY
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, CLASSES, 1), ()])
def test_one_of_classes_refuses_other_outputs(
    metric: Metric, shape: tuple[int, ...], labels: Tensor
) -> None:
    if metric.of_classes:
        with pytest.raises(EstimationError, match=r"shape \("):
            scores(metric, torch.zeros(shape), labels)


@EVERY
def test_one_of_classes_refuses_nan_even_where_the_largest_logit_would_hide_it(
    metric: Metric, logits: Tensor, labels: Tensor
) -> None:
    if metric.of_classes:
        logits[1, 2] = torch.nan
        with pytest.raises(EstimationError, match="NaN"):
            scores(metric, logits, labels)


@EVERY
def test_one_of_classes_names_the_class_that_the_model_lacks(
    metric: Metric, logits: Tensor
) -> None:
    needed = max(metric.named_classes.values(), default=None)
    labels = None
    if needed is None and metric.labelled and metric.of_classes:
        needed, labels = 2, torch.full((ROWS,), 2)
    if needed is not None:
        with pytest.raises(EstimationError, match=f"class {needed} .*classes 0 to {needed - 1}"):
            scores(metric, logits[:, :needed], labels)


@EVERY
def test_it_scores_the_same_whichever_kind_of_outputs_tells_it(
    metric: Metric, logits: Tensor, labels: Tensor
) -> None:
    told: dict[OutputKind, Tensor] = {
        "logits": logits,
        "log-probabilities": logits.log_softmax(1),
        "probabilities": logits.softmax(1),
        "values": logits[:, 0],
        "token-logits": logits[:, None],
    }
    if metric.predicts:
        y, expected = known(metric, labels), scores(metric, logits, known(metric, labels))
        for kind in metric.reads:
            assert scores(metric, told[kind], y, kind).tolist() == pytest.approx(
                expected.tolist(), abs=1e-12
            )
        for kind in set(told) - set(metric.reads):
            data = minimal_spec()
            data["model"]["outputs"] = kind
            data["behaviors"][0]["metric"] = metric.model_dump(by_alias=True)
            broken = [b for b in broken_rules(data) if b.code == "AS053"]
            assert [b.location for b in broken] == [("behaviors", 0, "metric", "name")]
            assert kind in broken[0].message
            assert repr(metric.name) in broken[0].message
