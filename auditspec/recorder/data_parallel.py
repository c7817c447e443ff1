"""Data-parallel training: what DistributedDataParallel may do to a step, and one step of all ranks.

Every rank takes the gradient of its own loss, sum_m w_m L_m, and DistributedDataParallel averages over W ranks: the
step's gradient is sum_r sum_m (w_rm / W) grad L_rm, that of one process with the passes of all ranks and the weights
w_rm / W. Each rank begins a step with the buffers of rank 0, whose passes alone change what is kept of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from auditspec.errors import RecordError
from auditspec.record.format import Buckets
from auditspec.record.state import named_buffers, named_parameters
from auditspec.recorder.joint_steps import JointSteps


def plain(model: nn.Module) -> nn.Module:
    """The model inside a DistributedDataParallel; any other as it is."""
    inside: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inside


def around(model: nn.Module, size: int, place: str) -> Any:
    """The DistributedDataParallel through which a pass of the model goes that has just begun.

    Args:
        model: whose forward is called.
        size: ranks that train together.
        place: of the step, for messages.

    Raises:
        RecordError: if there is none, or it does something else than to average gradients over all ranks.
    """
    wrapper: Any = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
    if wrapper is None or wrapper.module is not model:
        raise RecordError(
            f"{place}: a forward pass outside DistributedDataParallel, on {size} processes",
            "wrap the model, call the wrapper, and give the wrapper to Recorder: run.loss calls it then",
        )
    told = wrapper._get_ddp_logging_data()
    for found, what, remedy in (
        (
            distributed.get_world_size(wrapper.process_group) != size,
            "averages over some of the ranks only",
            "leave out process_group=",
        ),
        (
            bool(told.get("comm_hook")),
            f"averages by a communication hook ({told.get('comm_hook')})",
            "register no communication hook",
        ),
        (hasattr(wrapper, "buffer_hook"), "shares buffers by a hook", "register no buffer hook"),
        (wrapper.mixed_precision is not None, "has mixed_precision", "use torch.autocast"),
        (
            bool(wrapper.parameters_to_ignore),
            f"ignores {', '.join(sorted(wrapper.parameters_to_ignore)[:3])}",
            "let it average every parameter, and freeze those that are not trained",
        ),
        (
            wrapper._join_config.enable,
            "stands inside join(): ranks may make other numbers of steps",
            "let every rank make the same number of steps, as DistributedSampler does",
        ),
    ):
        if found:
            raise RecordError(
                f"{place}: DistributedDataParallel {what}, which cannot be recorded", remedy
            )
    return wrapper


def buckets_of(wrapper: Any, *, rebuilt: bool) -> tuple[tuple[str, ...], ...]:
    """Parameters of each bucket that a gloo group sums, in their order; none where torch does not say.

    Args:
        wrapper: a DistributedDataParallel.
        rebuilt: whether its buckets were made anew, in the order in which gradients came.
    """
    if distributed.get_backend(wrapper.process_group) != "gloo":
        return ()
    told = wrapper._get_ddp_logging_data()
    parameters = {name: p for name, p in wrapper.module.named_parameters() if p.requires_grad}
    names = [*parameters]
    if rebuilt:
        buckets = told.get("rebuilt_per_bucket_param_indices", "").split(",")
        places = [[int(i) for i in bucket.split()] for bucket in buckets if bucket]
        if sum(map(len, places)) != len(
            names
        ):  # not told yet, or frozen since the model was wrapped
            return ()
        return tuple(tuple(names[i] for i in bucket) for bucket in places)
    sizes = [int(size) for size in told.get("bucket_sizes", "").split(",") if size]
    laid: list[tuple[str, ...]] = []
    for size in reversed(sizes):  # the last bucket holds the first parameters
        bucket: list[str] = []
        while size > 0 and names:
            bucket.append(names.pop(0))
            size -= parameters[bucket[-1]].nbytes
        laid.append(tuple(bucket))
    return tuple(laid)


def refuse_shared_passes(model: nn.Module, stage: str) -> None:
    """Refuse modules whose passes depend on what other ranks compute.

    Raises:
        RecordError: naming the first.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise RecordError(
                f"stage '{stage}': {name} is a SyncBatchNorm, whose passes depend on one another",
                "train with BatchNorm, which every rank takes over its own rows",
            )


@dataclass
class Replicas(JointSteps):
    """Those of a model that every rank holds, in DistributedDataParallel; or one process alone."""

    _own_buffers: bool = False
    """Whether every rank keeps buffers of its own."""
    _averaged: bool = True
    """Whether the gradient of the last pass is averaged."""
    _buckets: tuple[Buckets, ...] = ()
    _wrapper: Any = None
    _rebuilt: int | None = None
    """The step at which the buckets were made anew, by what the first backward pass showed."""

    def passing(self) -> None:
        """See a pass that has just begun.

        Raises:
            RecordError: if it does not go through a DistributedDataParallel that averages over all ranks.
        """
        if (size := self.states.ranks.size) > 1:
            wrapper = around(self.states.model, size, self._place)
            self._own_buffers = not wrapper.broadcast_buffers
            self._averaged = wrapper.require_backward_grad_sync
            self._note_buckets(wrapper)
            self._wrapper = wrapper

    def end(self, skipped: int) -> None:
        """End a stage, and note how its last step was summed.

        Args:
            skipped: steps that were not made.

        Raises:
            RecordError: if this rank made another number of steps than declared.
        """
        self._refuse_early_end(skipped)
        if self._rebuilt == self.made - 1 and self._wrapper is not None:
            self._wrapper.logger.set_runtime_stats_and_log()  # there is no later step at which torch would say it
            self._note_buckets(self._wrapper)

    def _attach(self) -> None:
        refuse_shared_passes(self.states.model, self.header.id)

    def _seen(self) -> bool:
        return self._averaged

    def _check(self, seen: Sequence[bool], place: str) -> None:
        if not all(seen):
            raise RecordError(
                f"{place}: gradients were not averaged over the ranks: its last pass stood in no_sync()",
                "leave no_sync() before the last pass of a step",
            )

    def _same(self) -> Mapping[str, Tensor]:
        buffers = named_buffers(self.states.model) if self._own_buffers else {}
        return {**named_parameters(self.states.model), **buffers}

    def _note_buckets(self, wrapper: Any) -> None:
        """Note in which buckets this step is summed, once torch says so: of new ones, a step later."""
        ranks = self.states.ranks
        if ranks.rank > 0 or ranks.size == 2:  # two numbers have one sum
            return
        rebuilt = bool(getattr(wrapper, "_has_rebuilt_buckets", False))
        if rebuilt and self._rebuilt is None:
            self._rebuilt = self.made
        parameters = buckets_of(wrapper, rebuilt=rebuilt)
        known = self._buckets[-1].parameters if self._buckets else ()
        if parameters and parameters != known:
            step = self._rebuilt if rebuilt and self._rebuilt is not None else self.made
            self._buckets = (*self._buckets, Buckets(step=step, parameters=parameters))
            self.change(buckets=self._buckets)
