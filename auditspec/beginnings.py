"""Who formed the model before and between the stages: initial weights and changes, looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from auditspec.behaviors.evaluate import Evaluator
from auditspec.engine.interface import Engine
from auditspec.engine.redraw import could_be_drawn, drawn_starts, identical, same_start
from auditspec.errors import AuditspecError
from auditspec.estimator.interventions import INITIAL, change_before
from auditspec.record.generators import undisturbed
from auditspec.record.state import State, capture
from auditspec.record.trajectory import StageTrajectory
from auditspec.results import Draws, PartyResult
from auditspec.spec.models import GivenStart, RandomStart, Spec

STARTS, CHANGES = 12, 8
"""Draws of the factory where it drew the first weights, and of each change of the model."""
_SEED = 1_000_003


@dataclass(frozen=True)
class FirstWeights:
    """What is declared of the first weights, and what is seen of them."""

    declared: Literal["random", "given"] | None
    seed: int | None
    differs: str
    """A tensor in which the first state differs from the pinned weights, or from what the seed draws."""
    unlike: str
    """A tensor that no draw of the factory is like."""
    pinned: bool = True
    """Whether weights that were given are pinned."""

    @property
    def origin(self) -> Literal["random", "given", "unknown"]:
        """Where they come from, as far as is seen."""
        if self.declared == "given":
            return "unknown" if self.differs else "given"
        return "unknown" if self.differs or self.unlike else "random"


@dataclass(frozen=True)
class Beginnings:
    """Every party, what the behaviours read off beginnings drawn again, and what is known of the first weights."""

    parties: tuple[PartyResult, ...]
    draws: tuple[Draws, ...]
    first: FirstWeights


def look_at_beginnings(
    spec: Spec, reader: Evaluator, given: Mapping[str, Tensor] | None
) -> Beginnings:
    """Draw the beginnings again, and hold the declared one against what is seen.

    Args:
        spec: names owners, and where the first weights come from.
        reader: reads the spec's behaviours.
        given: the pinned first weights; None where none are.
    """
    rerun, stages = reader.rerun, reader.rerun.trajectory.stages
    first, declared = stages[0].first, spec.model.initial
    # who gave weights answers for them, whatever chance would have drawn
    drawn = not isinstance(declared, GivenStart)
    starts = _starts(rerun, STARTS if drawn else 2)
    draws = _draws(reader, INITIAL, starts, stages[0]) if drawn else []
    differs = ""
    if isinstance(declared, GivenStart) and given is not None:
        differs = same_start(first, {**_never_saved(rerun, first, starts, given), **given})
    if isinstance(declared, RandomStart) and declared.seed is not None:
        differs = same_start(first, _seeded(rerun, declared.seed))
    fixed = identical(starts) if starts else True
    exactly_drawn = isinstance(declared, RandomStart) and declared.seed is not None and not differs
    unlike = ""
    if drawn and not exactly_drawn:
        unlike = "the model" if fixed else could_be_drawn(first, starts)
    weights = FirstWeights(
        declared.kind if declared is not None else None,
        declared.seed if isinstance(declared, RandomStart) else None,
        differs,
        unlike,
        pinned=given is not None,
    )
    owners = {stage.id: stage for stage in spec.stages}
    parties = [
        PartyResult(
            id=INITIAL,
            kind="initial",
            owner=_owner(spec),
            origin=weights.origin,
            provenance=declared.provenance if isinstance(declared, GivenStart) else "",
            reference=declared.reference if declared is not None else None,
        )
    ]
    for index, stage in enumerate(stages):
        said = owners[stage.id]
        if index and stage.header.extend is not None:
            party = change_before(stage.id)
            parties.append(PartyResult(id=party, kind="change", stage=stage.id, owner=said.owner))
            again = _changed(rerun, index)
            draws += _draws(reader, party, again, stage)
        parties.append(
            PartyResult(
                id=stage.id,
                kind="stage",
                stage=stage.id,
                owner=said.owner,
                reference=said.reference,
            )
        )
    return Beginnings(tuple(parties), tuple(draws), weights)


def _owner(spec: Spec) -> str:
    declared = spec.model.initial
    if declared is not None and declared.owner is not None:
        return declared.owner
    return spec.stages[0].owner if isinstance(declared, RandomStart) else ""


def _starts(rerun: Engine, count: int) -> list[State]:
    seeds = [_SEED + 97 * number for number in range(count)]
    return list(drawn_starts(rerun.functions.factory, seeds, torch.device("cpu")))


def _never_saved(
    rerun: Engine, first: State, starts: Sequence[State], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Buffers that no state dict of the model holds, so that no file of weights can: as every draw of the factory has
    them, or, where they are drawn, the first state's own if they could be.
    """
    missing = first.buffers.keys() - given.keys()
    if not missing or not starts:
        return {}
    with undisturbed(torch.device("cpu")):
        missing -= rerun.functions.factory().state_dict().keys()
    known = {}
    for name in missing:
        drawn = [State({}, {name: s.buffers[name]}) for s in starts if name in s.buffers]
        if drawn and identical(drawn):
            known[name] = drawn[0].buffers[name]
        elif drawn and not could_be_drawn(State({}, {name: first.buffers[name]}), drawn):
            known[name] = first.buffers[name]
    return known


def _seeded(rerun: Engine, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        state = capture(rerun.functions.factory(), None)
    return state.parameters | state.buffers


def _changed(rerun: Engine, index: int) -> list[State]:
    """The model right after a change of it, drawn again; none where the change cannot be made again."""
    try:
        return [rerun.changes.redrawn(index, _SEED + 89 * number) for number in range(CHANGES)]
    except AuditspecError:
        return []


def _draws(
    reader: Evaluator, party: str, states: Sequence[State], stage: StageTrajectory
) -> list[Draws]:
    """Each behaviour's level after every draw; nothing where they cannot be read."""
    if not states:
        return []
    try:
        read = [reader.plug_in(state, stage) for state in states]
    except (AuditspecError, IndexError, RuntimeError, KeyError):
        return []
    same = identical(states)
    return [
        Draws(
            behavior=name,
            party=party,
            levels=tuple(part.statistic.level(scores[name]) for scores in read),
            identical=same,
        )
        for name, part in reader.slices.items()
    ]
