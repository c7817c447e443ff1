"""On how many examples a check reads again where the spec does not say: of large models on few, or it would take longer than training."""

from __future__ import annotations

from auditspec.estimator.forecast import parameters_of
from auditspec.estimator.replay.replay import LARGEST
from auditspec.record.trajectory import Trajectory
from auditspec.spec.checks import EXAMPLES

FEW = 16
"""Examples of a behaviour where the model has more than a million parameters."""


def most_examples(asked: int | None, record: Trajectory) -> int:
    """Examples of a behaviour that are read, at most.

    Args:
        asked: by the spec.
        record: of the model.
    """
    if asked is not None:
        return asked
    return FEW if parameters_of(record) > LARGEST else EXAMPLES
