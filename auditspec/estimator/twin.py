"""The error of paired replay, from a twin: the same estimate with other steps sampled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from auditspec.errors import EstimationError

TWIN_FACTOR = 1.7
"""Error of the estimate in units of its root-mean-square distance from the twin: the 95 % quantile
over stages of the five digits settings, seeds 300-304 (docs/method.md)."""


def twin_error(effects: np.ndarray[Any, Any], twin: np.ndarray[Any, Any]) -> float:
    """Estimated error of a stage's effects: `TWIN_FACTOR` * RMS over examples of effects - twin.

    The twin samples other steps, so that the two estimates' sampling errors differ; what they share
    (a bias of the interpolation) it does not see, which the factor has to cover.

    Args:
        effects: effect per evaluation example [n].
        twin: the same from `paired_replay(..., shift=0.5)`.

    Returns:
        Estimated root-mean-square error over examples, in the behaviour's unit.

    Raises:
        EstimationError: if the two are not of the same examples.
    """
    if effects.shape != twin.shape or effects.ndim != 1 or not len(effects):
        raise EstimationError(
            f"an estimate of shape {effects.shape} has a twin of shape {twin.shape}",
            "read both on the same evaluation examples",
        )
    return TWIN_FACTOR * math.sqrt(float(np.mean((effects - twin) ** 2)))


def steadied(errors: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Twin errors, none of them small by chance alone.

    Two estimates may come close to each other by chance. No error is taken to be less, beside the size
    of its effect, than the median over all effects of the audit whose error is finite.

    Args:
        errors: estimated errors of several effects [n], from `twin_error`.
        sizes: root mean square over examples of each effect [n], in the same unit.

    Returns:
        The errors [n].
    """
    sized = (sizes > 0) & np.isfinite(errors)
    if not sized.any():
        return errors
    typical = float(np.median(errors[sized] / sizes[sized]))
    held: np.ndarray[Any, Any] = np.maximum(errors, typical * sizes)
    return held
