"""The error of a model that predicts a number."""

from __future__ import annotations

import pytest
import torch
from measures import metric_of, scores

from auditspec.errors import EstimationError

ERROR = metric_of("error", unit="years")


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_it_is_the_prediction_less_the_truth(shape: tuple[int, ...]) -> None:
    given, truth = torch.tensor([1.5, 2.0, -1.0]).reshape(shape), torch.tensor([1.0, 4.0, -1.0])
    found = scores(ERROR, given, truth, "values")
    assert found.tolist() == [0.5, -2.0, 0.0]
    assert found.dtype == torch.float64
    assert (ERROR.words, ERROR.unit) == ("predicted less true value", "years")


def test_it_refuses_more_than_one_value_an_example() -> None:
    with pytest.raises(EstimationError, match=r"shape \(3, 2\)"):
        scores(ERROR, torch.zeros(3, 2), torch.zeros(3), "values")
