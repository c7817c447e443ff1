"""Linear readings of behaviours: their slopes at a state, and along displacements of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from auditspec.attempt import NotRun, attempt
from auditspec.behaviors.bound import Scores, Slice
from auditspec.behaviors.scoring import Scoring
from auditspec.engine.hessian_products import require_second_derivatives
from auditspec.errors import EstimationError
from auditspec.record.numerics import twice_differentiable
from auditspec.record.state import State, restore
from auditspec.record.uncompiled import pulled_back

Found = TypeVar("Found")


@dataclass(frozen=True)
class Linear:
    """Reads behaviours by their derivatives."""

    scoring: Scoring
    slices: Mapping[str, Slice]
    """The behaviours, by id."""

    def along(
        self, state: State, deltas: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, dict[str, Scores] | NotRun]:
        """Grad gamma(theta) . delta per example, for every differentiable behaviour and stage.

        The directional derivative is taken by differentiating the vector-Jacobian product once
        more, which needs reverse mode only. A custom metric without a gradient is left out, and so
        is one whose slope is NaN or infinite; one whose slope cannot be computed says why.

        Args:
            state: theta, where the derivative is taken.
            deltas: a displacement of the parameters for each stage.
        """
        parameters = self._put_to(state)
        with self.scoring.evaluating(), torch.enable_grad(), twice_differentiable():
            return self._of_differentiable(lambda part: self._along(part, parameters, deltas))

    def _put_to(self, state: State) -> dict[str, nn.Parameter]:
        """Put the last stage's model to a state; what a behaviour can move with."""
        rerun = self.scoring.rerun
        # A parameter that is frozen at the end may have been trained before, and moves gamma too.
        rerun.enter(rerun.trajectory.stages[-1], differentiate=True)
        restore(state, rerun.model)
        return {n: p for n, p in rerun.model.named_parameters() if p.requires_grad}

    def _along(
        self,
        part: Slice,
        parameters: Mapping[str, Tensor],
        deltas: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Scores]:
        """A behaviour's slope along each displacement; empty where there is none."""
        slopes: dict[str, list[Tensor]] = {stage: [] for stage in deltas}
        for rows in self.scoring.batches(part):
            gamma = self.scoring.score(part, rows)
            if not gamma.requires_grad:
                return {}
            for stage, slope in _directional(gamma, parameters, deltas).items():
                slopes[stage].append(slope.double().cpu())
        whole = {stage: torch.cat(parts).numpy() for stage, parts in slopes.items()}
        return whole if all(np.isfinite(slope).all() for slope in whole.values()) else {}

    def _of_differentiable(
        self, compute: Callable[[Slice], dict[str, Found]]
    ) -> dict[str, dict[str, Found] | NotRun]:
        """Something of each differentiable behaviour that has it, or why it could not be computed."""
        computed = {
            name: attempt(partial(compute, part))
            for name, part in self.slices.items()
            if part.metric.differentiable
        }
        return {
            name: result
            for name, result in computed.items()
            if isinstance(result, NotRun) or result
        }

    def slopes(self, state: State) -> dict[str, dict[str, Tensor] | NotRun]:
        """Grad of each differentiable behaviour's level at theta, per parameter.

        A behaviour is left out, or says why it has none, as in `linear`.

        Args:
            state: theta, where the derivative is taken.
        """
        parameters = self._put_to(state)
        with self.scoring.evaluating(), torch.enable_grad():
            return self._of_differentiable(lambda part: self._slope(part, parameters))

    def _slope(self, part: Slice, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of a behaviour's level; empty where there is none."""
        scores = np.zeros(len(part.ids))
        if not part.statistic.statistic.linear:  # else they do not matter
            with torch.no_grad():
                for rows in self.scoring.batches(part):
                    scores[rows] = self.scoring.score(part, rows).double().cpu().numpy()
        weights = part.statistic.weights(scores)
        if weights is None:
            words = part.behavior.statistic.words
            raise EstimationError(
                f"the slope of '{part.behavior.id}' is not known, since its statistic is the {words}",
                "leave out estimator.contributions",
            )
        total = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for rows in self.scoring.batches(part):
            gamma = self.scoring.score(part, rows)
            if not gamma.requires_grad:
                return {}
            gradients = pulled_back(
                gamma,
                list(parameters.values()),
                grad_outputs=torch.from_numpy(weights[rows]).to(gamma),
                allow_unused=True,
            )
            for n, g in zip(parameters, gradients, strict=True):
                if g is not None:
                    total[n] += g
        return total if all(bool(torch.isfinite(g).all()) for g in total.values()) else {}


def _directional(
    gamma: Tensor, parameters: Mapping[str, Tensor], deltas: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """D gamma / d theta . delta for each stage, [B]."""
    probe = torch.zeros_like(gamma, requires_grad=True)
    pulled = pulled_back(
        gamma, list(parameters.values()), grad_outputs=probe, create_graph=True, allow_unused=True
    )
    reached = {n: g for n, g in zip(parameters, pulled, strict=True) if g is not None}
    require_second_derivatives(reached)
    slopes = {}
    for stage, delta in deltas.items():
        directions = [delta[n].to(g) for n, g in reached.items()]
        (slopes[stage],) = pulled_back(
            list(reached.values()), probe, grad_outputs=directions, retain_graph=True
        )
    return slopes
