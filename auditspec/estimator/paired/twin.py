"""The error of paired replay, from a twin: the same estimate with other steps sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from auditspec.estimator.interventions import Arm
from auditspec.messages import Message, message

TWIN_FACTOR = 1.7
"""Error of an estimate in units of its distance from the twin (`Statistic.distance`; of means, the root mean
square over examples): the 95 % quantile over stages of the five digits settings, seeds 300-304
(docs/method.md). The twin samples other steps, so that the two estimates' sampling errors differ; what they
share, a bias of the interpolation, it does not see, which the factor has to cover."""

FORETOLD = 0.3
"""Least c of paired replay with which the twin of an arm from untrained weights knows its error
(docs/method.md, Error)."""


ASTRAY = 0.8
"""Share of |h|^2 that may be foretold wrongly where |h|^2 exceeds the recorded |g|^2: above, the arm has left the region in
which an interpolation is stable (docs/method.md, Error)."""

OUTGROWN = 1.0
"""|h|^2 in units of |g|^2 beyond which that counts."""


def unreliable(arm: Arm, diagnostics: Mapping[str, float]) -> Message | None:
    """Why the twin of a counterfactual does not know its error; None where it does.

    An arm that starts from untrained weights goes through a phase of training that the recorded run has
    behind it. Where the recorded gradients no longer foretell the arm's (c), what happens between two
    samples is anyone's guess, and small differences grow: an arm that stays on the plateau of an
    untrained network has a twin that stays there too.

    Any arm may be driven off: what one minibatch says, held over a window, pushes the weights the same wrong way, gradients
    grow beyond the recorded ones, and nothing foretells them any more.

    Args:
        arm: what was left out.
        diagnostics: of paired replay.
    """
    if (stage := astray(diagnostics)) is not None:
        return message(
            "gone-astray",
            stages=sorted(arm.omitted),
            stage=stage,
            missed=diagnostics[f"{stage}: missed"],
            size=diagnostics[f"{stage}: size"],
        )
    if not diagnostics.get("untrained"):
        return None
    c = {key.removesuffix(": c"): v for key, v in diagnostics.items() if key.endswith(": c")}
    lost = [stage for stage, value in c.items() if value < FORETOLD]
    if not lost:
        return None
    return message(
        "error-not-foretold",
        stages=sorted(arm.omitted),
        stage=lost[0],
        foretold=c[lost[0]],
        least=FORETOLD,
    )


def astray(diagnostics: Mapping[str, float]) -> str | None:
    """The first later stage in which an arm's gradients outgrew the recorded ones and were foretold by nothing."""
    stages = [key.removesuffix(": missed") for key in diagnostics if key.endswith(": missed")]
    for stage in stages:
        missed, size = diagnostics[f"{stage}: missed"], diagnostics[f"{stage}: size"]
        if missed > ASTRAY and size > OUTGROWN:
            return stage
    return None


def steadied(errors: np.ndarray[Any, Any], sizes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Twin errors, none of them small by chance alone.

    Two estimates may come close to each other by chance. No error is taken to be less, beside the size
    of its effect, than the median over all effects of the audit whose error is finite.

    Args:
        errors: estimated errors of several effects [n]: `TWIN_FACTOR` times the distance to the twin.
        sizes: how far each effect is from none [n], in the same unit.

    Returns:
        The errors [n].
    """
    sized = (sizes > 0) & np.isfinite(errors)
    if not sized.any():
        return errors
    typical = float(np.median(errors[sized] / sizes[sized]))
    steady: np.ndarray[Any, Any] = np.maximum(errors, typical * sizes)
    return steady
