"""Fully sharded training (FSDP2): the steps of all ranks, each of which holds a part of the model.

Every rank takes the gradient of its own loss at the whole weights, which are put together module by module, and keeps its part
of the average over ranks: the step is that of data-parallel training. Buffers every rank has to itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Literal

from torch import Tensor, nn

from auditspec.errors import RecordError
from auditspec.record.format import Buckets
from auditspec.record.state import is_part, named_buffers, named_parameters
from auditspec.recorder.fully_shard import Group, groups_of, refuse_other_sums, waiting
from auditspec.recorder.joint_steps import JointSteps

Summed = tuple[tuple[str, ...], ...]
"""Parameters of each reduce-scatter, in their order."""
MOST = 16
"""Changes of what is summed with what, after which a stage no longer says so."""


@dataclass(frozen=True)
class Seen:
    """What one rank saw of a step."""

    averaged: bool
    """Whether all gradients were, after the last pass."""
    rounds: tuple[Summed, ...]
    """What was summed: once a step, or once a pass."""
    whole: str = ""
    """A parameter that was not put away when the optimizer made its step."""


@dataclass
class Shards(JointSteps):
    """Those of a model that `fully_shard` shares out."""

    _sharded: tuple[str, ...] = ()
    _reduced: list[tuple[int, str]] = field(default_factory=list)
    """Gradients that were summed over ranks since the last step, by the reduce-scatter."""
    _before: int = 0
    """How many those were as the last pass began."""
    _passes: int = 0
    """Since the last step."""
    _buckets: tuple[Buckets, ...] = ()

    def passing(self) -> None:
        """See a pass that has just begun.

        Raises:
            RecordError: if `fully_shard` was told since to do something else than to average gradients.
        """
        refuse_other_sums(groups_of(self.states.model), self._place)
        self._before, self._passes = len(self._reduced), self._passes + 1

    def end(self, skipped: int) -> None:
        """End a stage.

        Args:
            skipped: steps that were not made.

        Raises:
            RecordError: if this rank made another number of steps than declared.
        """
        self._refuse_early_end(skipped)

    def _attach(self) -> None:
        groups, parameters = groups_of(self.states.model), named_parameters(self.states.model)
        refuse_other_sums(groups, self._place)
        refuse_other_shards(groups, self.states.model, self.header.id)
        self._sharded = tuple(name for name, p in parameters.items() if is_part(p))
        trained = {id(p): name for name, p in parameters.items() if p.requires_grad}
        for number, group in enumerate(groups):
            for p in group.parameters:
                if id(p) in trained:  # FSDP2 calls this hook once the gradient is summed
                    see = partial(self._see, number, trained[id(p)])
                    self.hooks.append(p.register_post_accumulate_grad_hook(see))  # type: ignore[no-untyped-call]

    def _see(self, group: int, name: str, parameter: Tensor) -> None:
        self._reduced.append((group, name))

    def _seen(self) -> Seen:
        groups, parameters = groups_of(self.states.model), named_parameters(self.states.model)
        rounds = summed_in(self._reduced)
        seen = Seen(
            averaged=len(self._reduced) > self._before and not waiting(groups),
            rounds=rounds,
            whole=next((name for name in self._sharded if not is_part(parameters[name])), ""),
        )
        if len({*rounds}) == 1 and len(rounds) in (1, self._passes):
            laid = rounds[0] if all(group.by_gloo for group in groups) else ()
            self._note(laid, "each" if len(rounds) > 1 else "together")
        else:
            self._note((), "together")
        self._reduced, self._before, self._passes = [], 0, 0
        return seen

    def _check(self, seen: Sequence[Seen], place: str) -> None:
        for rank, own in enumerate(seen):
            if own.whole:
                raise RecordError(
                    f"{place}: {own.whole} was whole on rank {rank} when the optimizer changed its parts; the next pass "
                    "would take it as it was",
                    "make no pass between backward() and optimizer.step(), or call model.reshard() after it",
                )
            if not own.averaged:
                raise RecordError(
                    f"{place}: gradients were not averaged over the ranks after the last pass",
                    "call set_requires_gradient_sync(True) before the last pass of a step",
                )
            if own.rounds != seen[0].rounds:
                raise RecordError(
                    f"{place}: rank {rank} sums other gradients than rank 0, which fully_shard adds up as they lie",
                    "let every rank use the same parameters, or call set_reduce_scatter_unused_params(True)",
                )

    def _note(self, parameters: Summed, passes: Literal["together", "each"]) -> None:
        """Note how the step that was just made was summed, where it was not summed as the one before."""
        last = self._buckets[-1] if self._buckets else Buckets(step=0, parameters=())
        now = Buckets(step=self.made, parameters=parameters, passes=passes)
        if self.states.ranks.rank or now.model_copy(update={"step": last.step}) == last:
            return
        if len(self._buckets) == MOST:
            now = Buckets(step=self.made, parameters=())
        if len(self._buckets) <= MOST:
            self._buckets = (*self._buckets, now)
            self.change(buckets=self._buckets)

    def _same(self) -> Mapping[str, Tensor]:
        parameters = named_parameters(self.states.model).items()
        return {n: p for n, p in parameters if not is_part(p)} | named_buffers(self.states.model)


def refuse_other_shards(groups: Sequence[Group], model: nn.Module, stage: str) -> None:
    """Refuse parameters that `fully_shard` does not share out, between two passes.

    Args:
        groups: of the model.
        model: of this rank.
        stage: its id, for messages.

    Raises:
        RecordError: naming the first.
    """
    known = {id(p) for group in groups for p in group.parameters}
    for name, parameter in named_parameters(model).items():
        if is_part(parameter) and id(parameter) not in known:
            raise RecordError(
                f"stage '{stage}': parameter '{name}' is sharded by something else than fully_shard",
                "shard the model with torch.distributed.fsdp.fully_shard alone",
            )
        if not is_part(parameter) and parameter.requires_grad:
            raise RecordError(
                f"stage '{stage}': fully_shard leaves out parameter '{name}', which is trained",
                "call fully_shard on the whole model last, and leave out frozen parameters only (ignored_params)",
            )


def summed_in(reduced: Sequence[tuple[int, str]]) -> tuple[Summed, ...]:
    """What was summed at once, by rounds: a parameter that comes again begins another one.

    Args:
        reduced: the reduce-scatter and the parameter, in the order in which they were.
    """
    rounds: list[list[tuple[int, str]]] = []
    for number, name in reduced:
        if not rounds or any(name == other for _, other in rounds[-1]):
            rounds.append([])
        rounds[-1].append((number, name))
    return tuple(
        tuple(tuple(n for _, n in some) for _, some in groupby(one, lambda pair: pair[0]))
        for one in rounds
    )
