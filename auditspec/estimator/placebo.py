"""Placebos: random displacements of the deployed parameters, as long as a stage's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from auditspec.engine.interface import Engine
from auditspec.estimator.counterfactual import difference, norm

MIN_MOVEMENTS, MAX_MOVEMENTS = 8, 32
"""Fewest and most recorded movements of a stage that are given random signs: of few, the signs would
too often be the stage's own."""


def placebos(
    rerun: Engine, stage: str, delta: Mapping[str, Tensor], rounds: Iterable[int], seed: int
) -> Iterator[dict[str, Tensor]]:
    """Random displacements, by turns of two kinds; what one round draws goes by its number alone.

    Isotropic ones have, in every parameter tensor, the norm that `delta` has there. The others are the
    stage's recorded movements with random signs, scaled to the norm of the whole of `delta`; where the
    record holds fewer than `MIN_MOVEMENTS` of them, all are isotropic.

    Args:
        rerun: holds the record.
        stage: whose movements are taken.
        delta: the stage's displacement of the deployed parameters, by name.
        rounds: numbers of the draws.
        seed: of the draws.

    Yields:
        A displacement of each parameter in `delta`, float64 on the CPU.
    """
    wanted = {name: delta[name].detach().cpu().double() for name in sorted(delta)}
    movements = _movements(rerun, stage, wanted)
    for number in rounds:
        mixed = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0] >> 1))
        if number % 2 and movements:
            yield _signed(movements, wanted, generator)
        else:
            noise = {
                n: torch.randn(d.shape, generator=generator, dtype=torch.float64)
                for n, d in wanted.items()
            }
            yield {n: z * _ratio(wanted[n].norm(), z.norm()) for n, z in noise.items()}


def _signed(
    movements: list[dict[str, Tensor]], like: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    signs = torch.randint(0, 2, (len(movements),), generator=generator) * 2 - 1
    total = {n: torch.zeros_like(d) for n, d in like.items()}
    for sign, moved in zip(signs.tolist(), movements, strict=True):
        for name, tensor in moved.items():
            total[name] += sign * tensor
    scale = _ratio(norm(like), norm(total))
    return {n: t * scale for n, t in total.items()}


def _ratio(wanted: Tensor | float, size: Tensor | float) -> float:
    return float(wanted) / float(size) if size else 0.0


def _movements(rerun: Engine, stage: str, like: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """What a stage's recorded windows moved, by the names of the deployed model."""
    index = rerun.trajectory.index(stage)
    recorded = rerun.trajectory.stages[index]
    places = recorded.state_steps
    if len(places) <= MIN_MOVEMENTS:
        return []
    count = min(len(places), MAX_MOVEMENTS + 1)
    chosen = np.linspace(0, len(places) - 1, count).round().astype(int)
    states = (recorded.state(places[i]).parameters for i in chosen)
    movements = []
    for before, after in itertools.pairwise(states):
        moved = {n: d.double() for n, d in difference(after, before).items()}
        for later in range(index + 1, len(rerun.trajectory.stages)):
            moved = rerun.displaced(later, moved)
        movements.append({n: moved[n].cpu() for n in like if n in moved})
    return movements
