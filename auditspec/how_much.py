"""How much is read and trained again beside the estimates where the spec does not say: of large models little, or it would take longer than
training.
"""

from __future__ import annotations

from auditspec.estimator.forecast import parameters_of
from auditspec.estimator.replay.replay import LARGEST
from auditspec.record.trajectory import Trajectory
from auditspec.spec.checks import EXAMPLES, STEPS

FEW_EXAMPLES, FEW_STEPS = 8, 5
"""Examples of a behaviour, and steps in two precisions, where the model has more than a million parameters."""


def is_large(record: Trajectory) -> bool:
    """Whether a model has more than a million parameters; then nothing is read linearly on which no effect rests."""
    return parameters_of(record) > LARGEST


def most_examples(asked: int | None, record: Trajectory) -> int:
    """Examples of a behaviour that are read, at most.

    Args:
        asked: by the spec.
        record: of the model.
    """
    return _unless(asked, record, EXAMPLES, FEW_EXAMPLES)


def most_steps(asked: int | None, record: Trajectory) -> int:
    """Steps that are made in two precisions, at most; arguments as of `most_examples`."""
    return _unless(asked, record, STEPS, FEW_STEPS)


def _unless(asked: int | None, record: Trajectory, many: int, few: int) -> int:
    if asked is not None:
        return asked
    return few if is_large(record) else many
