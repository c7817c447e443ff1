"""Fully sharded training: what `fully_shard` (FSDP2) may do to a step, and one step of all ranks.

Every rank takes the gradient of its own loss at the whole weights, which are put together module by module, and keeps its part
of the average over ranks: the step is that of data-parallel training. Buffers every rank has to itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from auditspec.errors import RecordError
from auditspec.record.format import Buckets
from auditspec.record.state import named_buffers, named_parameters
from auditspec.recorder.data_parallel import Replicas

Summed = tuple[tuple[str, ...], ...]
"""Parameters of each reduce-scatter, in their order."""
MOST = 16
"""Changes of what is summed with what, after which a stage no longer says so."""


def modules_of(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules that were given to `fully_shard`, by name."""
    return [(name, m) for name, m in model.named_modules() if hasattr(m, "_get_fsdp_state")]


def groups_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What is summed by one reduce-scatter, with the name of its module."""
    seen: set[int] = set()
    for name, module in modules_of(model):
        for group in module._get_fsdp_state()._fsdp_param_groups:
            if id(group) not in seen:
                seen.add(id(group))
                yield name or "the model", group


def put_away(model: nn.Module) -> None:
    """Leave every rank with its parts, where a pass without a gradient left it with more."""
    for _, module in modules_of(model):
        module.reshard()


def refuse_other_sums(model: nn.Module, size: int, place: str) -> None:
    """Refuse a model whose gradients are no averages over all ranks.

    Args:
        model: of this rank.
        size: ranks that train together.
        place: of the step, for messages.

    Raises:
        RecordError: naming the first module, and what `fully_shard` does to it.
    """
    for name, group in groups_of(model):
        for what, remedy in _odd(group, size):
            raise RecordError(
                f"{place}: fully_shard of {name} {what}, which cannot be recorded", remedy
            )


def refuse_other_shards(model: nn.Module, stage: str) -> None:
    """Refuse parameters that `fully_shard` does not share out, between two passes.

    Raises:
        RecordError: naming the first.
    """
    known = {id(p.sharded_param) for _, group in groups_of(model) for p in group.fsdp_params}
    for name, parameter in named_parameters(model).items():
        if hasattr(parameter, "full_tensor") and id(parameter) not in known:
            raise RecordError(
                f"stage '{stage}': parameter '{name}' is sharded by something else than fully_shard",
                "shard the model with torch.distributed.fsdp.fully_shard alone",
            )
        if not hasattr(parameter, "full_tensor") and parameter.requires_grad:
            raise RecordError(
                f"stage '{stage}': fully_shard leaves out parameter '{name}', which is trained",
                "call fully_shard on the whole model last, and leave out frozen parameters only (ignored_params)",
            )


def _odd(group: Any, size: int) -> Iterator[tuple[str, str]]:
    """What a group does that one process could not, with a remedy."""
    policy, params, mesh = group.mp_policy, group.fsdp_params, group.mesh_info
    remedy = "shard over one mesh of all ranks: init_device_mesh(device, (world_size,))"
    if getattr(mesh, "shard_mesh_size", 1) != size:
        yield "shards over some of the ranks only (a mesh of other dimensions, HSDP)", remedy
    if any(p.is_dtensor for p in params):
        yield "shards parameters that are sharded already (tensor parallelism)", remedy
    kinds = {p.sharded_param.dtype for p in params}
    asked = {policy.param_dtype, policy.reduce_dtype, policy.output_dtype} - {None}
    if asked - kinds or (asked and len(kinds) > 1):
        words = ", ".join(sorted(str(dtype) for dtype in asked))
        yield f"has a MixedPrecisionPolicy ({words})", "use torch.autocast around the objective"
    if hasattr(group.offload_policy, "pin_memory") and group.device.type != "cpu":
        yield "has a CPUOffloadPolicy", "keep shards where passes are made"
    if group.gradient_divide_factor not in (None, size):
        yield (
            f"divides gradients by {group.gradient_divide_factor:g}, not by the number of ranks",
            "leave out set_gradient_divide_factor, and scale the loss (weight=)",
        )
    if group._all_reduce_hook is not None:
        yield "has an all-reduce hook", "leave out set_all_reduce_hook"
    if not type(group._reduce_scatter_comm).__module__.startswith("torch."):
        yield "sums gradients in a way of its own", "leave out set_custom_reduce_scatter"


def _waiting(model: nn.Module) -> bool:
    """Whether there are gradients that were not summed over ranks."""
    parameters = [p for _, group in groups_of(model) for p in group.fsdp_params]
    made = [p for p in parameters if hasattr(p, "_unsharded_param")]
    return any(p.unsharded_accumulated_grad is not None for p in parameters) or any(
        p._unsharded_param.grad is not None for p in made
    )


def _by_gloo(model: nn.Module) -> bool:
    """Whether gloo sums the gradients."""
    backends = [
        group._reduce_scatter_process_group._get_backend(group.device)
        for _, group in groups_of(model)
    ]
    return all(backend.name() == "gloo" for backend in backends)


@dataclass
class Shards(Replicas):
    """The parts of the model on every rank, and their steps."""

    _reduced: list[tuple[int, str]] = field(default_factory=list)
    """Gradients that were summed over ranks since the last step, by the reduce-scatter."""
    _before: int = 0
    """How many those were as the last pass began."""
    _passes: int = 0
    """Since the last step."""
    _hooks: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        """Refuse shards that no single process could follow; see from now on what is summed.

        Raises:
            RecordError: naming what cannot be recorded.
        """
        refuse_other_sums(self.model, self.ranks.size, self._place)
        refuse_other_shards(self.model, self.header.id)
        super().begin()
        parameters = named_parameters(self.model)
        names = {id(p): name for name, p in parameters.items() if p.requires_grad}
        for number, (_, group) in enumerate(groups_of(self.model)):
            for p in group.fsdp_params:
                if id(p.sharded_param) in names:
                    see = partial(self._see, number, names[id(p.sharded_param)])
                    self._hooks.append(p.sharded_param.register_post_accumulate_grad_hook(see))

    def passing(self) -> None:
        """See a pass that has just begun.

        Raises:
            RecordError: if `fully_shard` was told since to do something else than to average gradients.
        """
        refuse_other_sums(self.model, self.ranks.size, self._place)
        self._before, self._passes = len(self._reduced), self._passes + 1

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _see(self, group: int, name: str, parameter: Tensor) -> None:
        """FSDP2 calls a parameter's hook when its gradient was summed."""
        self._reduced.append((group, name))

    def _seen(self) -> tuple[bool, Any]:
        averaged = len(self._reduced) > self._before and not _waiting(self.model)
        rounds = summed_in(self._reduced)
        passes = "each" if len(rounds) > 1 else "together"
        known = len({*rounds}) == 1 and len(rounds) in (1, self._passes)
        laid = rounds[0] if known and _by_gloo(self.model) else ()
        self._note(laid, passes if known else "together")
        self._reduced, self._before, self._passes = [], 0, 0
        return averaged, rounds

    def _check(self, seen: Sequence[tuple[bool, Any]], place: str) -> None:
        if not all(averaged for averaged, _ in seen):
            raise RecordError(
                f"{place}: gradients were not averaged over the ranks after the last pass",
                "call set_requires_gradient_sync(True) before the last pass of a step",
            )
        for rank, (_, summed) in enumerate(seen):
            if summed != seen[0][1]:
                raise RecordError(
                    f"{place}: rank {rank} sums other gradients than rank 0, which fully_shard adds up as they lie",
                    "let every rank use the same parameters, or call set_reduce_scatter_unused_params(True)",
                )

    def _note(self, parameters: Summed, passes: Any) -> None:
        """Note how the step that was made last was summed, where it was not summed as the one before."""
        last = self._buckets[-1] if self._buckets else Buckets(step=0, parameters=())
        now = Buckets(step=self.made - 1, parameters=parameters, passes=passes)
        if self.ranks.rank or now.model_copy(update={"step": last.step}) == last:
            return
        if len(self._buckets) == MOST:
            now = Buckets(step=self.made - 1, parameters=())
        if len(self._buckets) <= MOST:
            self._buckets = (*self._buckets, now)
            self.change(buckets=self._buckets)

    def _same(self) -> dict[str, Tensor]:
        whole = {
            n: p for n, p in named_parameters(self.model).items() if not hasattr(p, "full_tensor")
        }
        return whole | named_buffers(self.model)


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
