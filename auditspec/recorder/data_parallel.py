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
from auditspec.record.format import Buckets, StageHeader
from auditspec.record.state import named_buffers, named_parameters
from auditspec.recorder.events import StepMade
from auditspec.recorder.ranks import Ranks
from auditspec.recorder.writer import StageWriter


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
        header: of the stage.
        writer: of the stage, which says when states are kept: then the replicas are compared.
        made: steps that were made.
        change: told of the header's `buckets`, on the first rank.
        serve: what the first rank asks the others for (`Ranks.led`).
    """

    ranks: Ranks
    model: nn.Module
    header: StageHeader
    writer: StageWriter
    made: int
    change: Callable[..., None]
    serve: Callable[[Any], object]
    _own_buffers: bool = False
    """Whether every rank keeps buffers of its own."""
    _averaged: bool = True
    """Whether the gradient of the last pass is averaged."""
    _buckets: tuple[Buckets, ...] = ()
    _wrapper: Any = None
    _rebuilt: int | None = None
    """The step at which the buckets were made anew, by what the first backward pass showed."""

    def begin(self) -> None:
        """Refuse replicas that begin apart.

        Raises:
            RecordError: naming what differs.
        """
        if self.ranks.size > 1:
            refuse_shared_passes(self.model, self.header.id)
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
            self._note_buckets(wrapper)
            self._wrapper = wrapper

    def telling(self, hear: Callable[[StepMade], None]) -> Callable[[StepMade], None]:
        """What hears the steps of this rank, for what hears those of all on the first."""
        if self.ranks.size == 1:
            return hear

        def tell(event: StepMade) -> None:
            place = self._place
            self.made += 1
            kept = self.writer.wants_state(self.made, self.header.steps)
            digests = self._digests() if kept else {}
            told = self.ranks.gathered((event, self._seen(), digests))

            def lead() -> None:
                self._check([seen for _, seen, _ in told], place)
                self._compare([digests for _, _, digests in told], place)
                hear(merged([event for event, _, _ in told], place))

            self.ranks.led(lead, self.serve)

        return tell

    def _seen(self) -> tuple[bool, Any]:
        """Whether the step's last pass was averaged over ranks, and what else this rank saw of it."""
        return self._averaged, None

    def _check(self, seen: Sequence[tuple[bool, Any]], place: str) -> None:
        """Hold what every rank saw of a step against what the others did."""
        if not all(averaged for averaged, _ in seen):
            raise RecordError(
                f"{place}: gradients were not averaged over the ranks: its last pass stood in no_sync()",
                "leave no_sync() before the last pass of a step",
            )

    def _note_buckets(self, wrapper: Any) -> None:
        """Note in which buckets this step is summed, once torch says so: of new ones, a step later."""
        if self.ranks.rank > 0 or self.ranks.size == 2:  # two numbers have one sum
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

    def end(self, skipped: int) -> None:
        """End a stage; refuse one that this rank ended early, since the others may be waiting for it.

        Args:
            skipped: steps that were not made.

        Raises:
            RecordError: if it made another number of steps than declared.
        """
        if self.ranks.size > 1 and self.made + skipped != self.header.steps:
            raise RecordError(
                f"{self._place}: rank {self.ranks.rank} ended the stage of {self.header.steps} steps",
                "let every rank make the declared number of steps, as DistributedSampler does",
            )
        if self._rebuilt == self.made - 1 and self._wrapper is not None:
            self._wrapper.logger.set_runtime_stats_and_log()  # there is no later step at which torch would say it
            self._note_buckets(self._wrapper)

    def detach(self) -> None:
        """See no more."""

    @property
    def _place(self) -> str:
        return f"stage '{self.header.id}', step {self.made}"

    def _digests(self) -> dict[str, str]:
        """Of what must be the same on every rank, by name."""
        return {name: tensors_digest({name: tensor}) for name, tensor in self._same().items()}

    def _same(self) -> dict[str, Tensor]:
        buffers = named_buffers(self.model) if self._own_buffers else {}
        return {**named_parameters(self.model), **buffers}

    @staticmethod
    def _compare(digests: Sequence[Mapping[str, str]], place: str) -> None:
        for rank, theirs in enumerate(digests):
            odd = next((name for name in theirs if theirs[name] != digests[0].get(name)), None)
            if odd is not None:
                raise RecordError(
                    f"{place}: {odd} is another on rank {rank} than on rank 0",
                    "let DistributedDataParallel average every gradient and share the buffers (broadcast_buffers), "
                    "or give every rank those of rank 0 before optimizer.step(), and change nothing on one rank alone",
                )
