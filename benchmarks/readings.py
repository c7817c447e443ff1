"""From counterfactuals to effects: what an estimate says of examples and behaviours.

Plug-in: gamma(theta_K) - gamma(theta_K + delta_K). Linear: -grad gamma(theta_K) · delta_K, by one
Jacobian-vector product of the logits over all evaluation rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from auditspec.record.state import State, restore

from .metrics import Array
from .settings import Behaviour, Run
from .settings.pipeline import log_probability

Score = Callable[[Tensor], Tensor]


@dataclass
class Effects:
    """Effects of the stages but the last, [stages, rows of its own]."""

    examples: Array
    """On the log-probability of each evaluation row's true label."""
    behaviours: list[Array]
    """Of each behaviour, on its rows, signed towards its concern."""

    @classmethod
    def zeros(cls, run: Run) -> Effects:
        """No effect of any stage."""
        n = len(run.stages) - 1
        found = run.evaluation
        rows = [np.zeros((n, len(b.rows))) for b in found.behaviours]
        return cls(np.zeros((n, len(found.y))), rows)


class Evaluator:
    """Reads states and directions on a run's evaluation rows."""

    def __init__(self, run: Run) -> None:
        self.run = run
        with torch.random.fork_rng():
            self.model: nn.Module = run.functions.factory()
        self.model.eval()
        self.final = run.trajectory.stages[-1].last
        self.logits = self.read(self.final)
        """[N, C] of the trained model, float64."""

    def read(self, state: State) -> Tensor:
        """Logits [N, C] of a state, in eval mode, float64 from there on."""
        restore(state, self.model)
        data = self.run.evaluation
        with torch.no_grad():
            return self.run.functions.predict(self.model, (data.x, data.y)).double()

    def tangent(self, state: State, direction: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [N, C] of a state, and their derivative in a direction of its parameters."""
        restore(state, self.model)
        data = self.run.evaluation
        held = dict(self.model.named_parameters())
        theta = {n: p.detach() for n, p in held.items()}
        along = {
            n: direction[n].to(p) if n in direction else torch.zeros_like(p)
            for n, p in held.items()
        }

        def logits(parameters: dict[str, Tensor]) -> Tensor:
            return self.run.functions.predict(_Called(self.model, parameters), (data.x, data.y))

        value, slope = cast(tuple[Tensor, Tensor], torch.func.jvp(logits, (theta,), (along,)))
        return value.double(), slope.double()

    def plug_in(self, states: Mapping[str, State]) -> Effects:
        """Effects from the counterfactual states of the stages but the last."""
        logits = [self.read(states[stage]) for stage in self.run.stages[:-1]]

        def difference(score: Score) -> Array:
            whole = score(self.logits)
            return np.stack([(whole - score(without)).numpy() for without in logits])

        return self._effects(difference)

    def linear(self, deltas: Mapping[str, Mapping[str, Tensor]]) -> Effects:
        """Effects from the stage embeddings delta_K of the stages but the last."""
        slopes = [self.tangent(self.final, deltas[s])[1] for s in self.run.stages[:-1]]

        def slope(score: Score) -> Array:
            return np.stack(
                [-torch.func.jvp(score, (self.logits,), (d,))[1].numpy() for d in slopes]
            )

        return self._effects(slope)

    def add(self, total: Effects, row: int, logits: Tensor, slope: Tensor) -> None:
        """Add a first-order change of the logits at some state to one stage's effects."""

        def change(score: Score) -> Any:
            return torch.func.jvp(score, (logits,), (slope,))[1].numpy()

        found = self._effects(change)
        total.examples[row] += found.examples
        for held, new in zip(total.behaviours, found.behaviours, strict=True):
            held[row] += new

    def _effects(self, measure: Callable[[Score], Array]) -> Effects:
        data = self.run.evaluation

        def score_of(behaviour: Behaviour) -> Score:
            return lambda logits: behaviour.scores(logits, data.y)

        return Effects(
            measure(lambda logits: log_probability(logits, data.y)),
            [b.concern * measure(score_of(b)) for b in data.behaviours],
        )


class _Called(nn.Module):
    """A model called with other parameters."""

    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self._call = lambda *inputs: torch.func.functional_call(model, parameters, inputs)

    def forward(self, *inputs: Any) -> Any:
        return self._call(*inputs)
