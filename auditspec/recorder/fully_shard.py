"""What FSDP2 keeps of a model that `fully_shard` was given: the one place that reads torch's own objects.

torch says in no public way which gradients it sums at once, over what, and whether it has. Its objects were the same from torch
2.10 to 2.14, but for the name of a module's groups; of a torch that keeps others, nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from auditspec.errors import RecordError


@dataclass(frozen=True)
class Group:
    """Parameters whose gradients one reduce-scatter sums, and what else it does."""

    module: str
    parameters: tuple[nn.Parameter, ...]
    """This rank's parts of them."""
    whole: bool
    """Whether they were put together since the model was sharded."""
    waiting: bool
    """Whether a gradient was not summed yet."""
    by_gloo: bool
    """Whether gloo sums them."""
    odd: tuple[tuple[str, str], ...]
    """What it does besides averaging over all ranks, each with a remedy."""


def groups_of(model: nn.Module) -> list[Group]:
    """The groups of a model, in the order of its modules; none of one that is not sharded.

    Raises:
        RecordError: if this torch keeps other objects than those that are known here.
    """
    found: dict[int, Group] = {}
    try:
        for name, module in _modules(model):
            state = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None)
            for group in [state._fsdp_param_group] if groups is None else groups:
                if group is not None and id(group) not in found:
                    found[id(group)] = _read(name or "the model", group)
    except (AttributeError, AssertionError, TypeError) as error:
        raise _unknown(str(error)) from error
    return [*found.values()]


def put_away(model: nn.Module) -> None:
    """Leave every rank with its parts, where a pass without a gradient left it with more."""
    for _, module in _modules(model):
        module.reshard()


def refuse_other_sums(groups: Sequence[Group], place: str) -> None:
    """Refuse groups whose gradients are no averages over all ranks.

    Args:
        groups: of the model.
        place: of the step, for messages.

    Raises:
        RecordError: naming the first module, and what `fully_shard` does to it.
    """
    for group in groups:
        for what, remedy in group.odd:
            raise RecordError(
                f"{place}: fully_shard of {group.module} {what}, which cannot be recorded", remedy
            )


def waiting(groups: Sequence[Group]) -> bool:
    """Whether a pass left gradients that were not summed over the ranks.

    Raises:
        RecordError: if this torch does not say so.
    """
    if not any(group.whole for group in groups):
        raise _unknown("no parameter was put together for a pass")
    return any(group.waiting for group in groups)


def _modules(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules that were given to `fully_shard`, by name."""
    return [(name, m) for name, m in model.named_modules() if hasattr(m, "_get_fsdp_state")]


def _read(module: str, group: Any) -> Group:
    params = group.fsdp_params
    whole = [p._unsharded_param for p in params if hasattr(p, "_unsharded_param")]
    kept = [p.unsharded_accumulated_grad for p in params] + [p.grad for p in whole]
    return Group(
        module=module,
        parameters=tuple(p.sharded_param for p in params),
        whole=bool(whole),
        waiting=any(gradient is not None for gradient in kept),
        by_gloo=group._reduce_scatter_process_group._get_backend(group.device).name() == "gloo",
        odd=tuple(_odd(group, distributed.get_world_size())),
    )


def _odd(group: Any, size: int) -> Iterator[tuple[str, str]]:
    policy, params = group.mp_policy, [p.sharded_param for p in group.fsdp_params]
    if any(p.device_mesh.shape != (size,) for p in params):
        yield (
            "shards over some of the ranks only, or in several dimensions (HSDP, tensor parallelism)",
            "shard over one mesh of all ranks: init_device_mesh(device, (world_size,))",
        )
    elif not all(p.placements[0].is_shard(0) for p in params):
        yield "shards along another dimension than the first", "leave out shard_placement_fn"
    kinds = {p.dtype for p in params}
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


def _unknown(what: str) -> RecordError:
    return RecordError(
        f"torch {torch.__version__} does not say what fully_shard does as torch 2.10 to 2.14 do: {what}",
        "train sharded models with one of those, or on one device",
    )
