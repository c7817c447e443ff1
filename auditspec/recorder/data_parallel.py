"""Data-parallel training: what DistributedDataParallel may do to a step, and one step of all ranks.

Every rank takes the gradient of its own loss, sum_m w_m L_m, and DistributedDataParallel averages over W ranks: the
step's gradient is sum_r sum_m (w_rm / W) grad L_rm, that of one process with the passes of all ranks and the weights
w_rm / W. Each rank begins a step with the buffers of rank 0, whose passes alone change what is kept of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from auditspec.errors import RecordError
from auditspec.record.codec import tensors_digest
from auditspec.record.state import named_buffers, named_parameters
from auditspec.recorder.events import StepMade
from auditspec.recorder.ranks import Ranks


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


def merged(events: Sequence[StepMade], place: str) -> StepMade:
    """One step of all ranks, from what each rank tells of its part.

    Args:
        events: in the order of the ranks.
        place: of the step, for messages.

    Raises:
        RecordError: if the ranks did not make one step.
    """
    first = events[0]
    for rank, event in enumerate(events):
        for what, own, theirs in (
            ("hyperparameters", first.groups, event.groups),
            ("parameters without a gradient", first.without_gradient, event.without_gradient),
            ("autocast", first.autocast, event.autocast),
        ):
            if own != theirs:
                raise RecordError(
                    f"{place}: rank {rank} made it with other {what} than rank 0",
                    "train with the same optimizer, schedule, and precision on every rank",
                )
    passes = tuple(
        replace(
            p, microbatch=replace(p.microbatch, rank=rank, weight=p.microbatch.weight / len(events))
        )
        for rank, event in enumerate(events)
        for p in event.passes
    )
    return replace(first, passes=passes)


@dataclass
class Replicas:
    """The model on every rank, and their steps, which the recorder of the first is told.

    Args:
        ranks: that train together.
        model: of this rank.
        stage: for messages: its id.
        compares: whether the replicas are compared before a step.
        made: steps that were made.
    """

    ranks: Ranks
    model: nn.Module
    stage: str
    compares: Callable[[int], bool]
    made: int
    _own_buffers: bool = False
    """Whether every rank keeps buffers of its own."""
    _averaged: bool = True
    """Whether the gradient of the last pass is averaged."""

    def begin(self) -> None:
        """Refuse replicas that begin apart.

        Raises:
            RecordError: naming what differs.
        """
        if self.ranks.size > 1:
            refuse_shared_passes(self.model, self.stage)
            digests = self.ranks.gathered(self._digests())
            self.ranks.led(lambda: self._compare(digests, self._place))

    def passing(self) -> None:
        """See a pass that has just begun.

        Raises:
            RecordError: if it does not go through a DistributedDataParallel that averages over all ranks.
        """
        if self.ranks.size > 1:
            wrapper = around(self.model, self.ranks.size, self._place)
            self._own_buffers = not wrapper.broadcast_buffers
            self._averaged = wrapper.require_backward_grad_sync

    def telling(self, hear: Callable[[StepMade], None]) -> Callable[[StepMade], None]:
        """What hears the steps of this rank, for what hears those of all on the first."""
        if self.ranks.size == 1:
            return hear

        def tell(event: StepMade) -> None:
            place = self._place
            self.made += 1
            digests = self._digests() if self.compares(self.made) else {}
            told = self.ranks.gathered((event, self._averaged, digests))

            def lead() -> None:
                if not all(averaged for _, averaged, _ in told):
                    raise RecordError(
                        f"{place}: gradients were not averaged over the ranks: its last pass stood in no_sync()",
                        "leave no_sync() before the last pass of a step",
                    )
                self._compare([digests for _, _, digests in told], place)
                hear(merged([event for event, _, _ in told], place))

            self.ranks.led(lead)

        return tell

    @property
    def _place(self) -> str:
        return f"stage '{self.stage}', step {self.made}"

    def _digests(self) -> dict[str, str]:
        """Of what must be the same on every rank, by name."""
        same: dict[str, Tensor] = dict(named_parameters(self.model))
        if self._own_buffers:
            same |= named_buffers(self.model)
        return {name: tensors_digest({name: tensor}) for name, tensor in same.items()}

    @staticmethod
    def _compare(digests: Sequence[Mapping[str, str]], place: str) -> None:
        for rank, theirs in enumerate(digests):
            odd = next((name for name in theirs if theirs[name] != digests[0].get(name)), None)
            if odd is not None:
                raise RecordError(
                    f"{place}: {odd} is another on rank {rank} than on rank 0",
                    "let DistributedDataParallel average every gradient and share the buffers (broadcast_buffers), "
                    "and change nothing on one rank alone",
                )
