"""Steps that several ranks make together, of which the recorder of the first is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from auditspec.errors import RecordError
from auditspec.record.codec import tensors_digest
from auditspec.record.format import StageHeader
from auditspec.recorder.events import StepMade
from auditspec.recorder.states import States
from auditspec.recorder.writer import StageWriter


@dataclass
class JointSteps(ABC):
    """Steps of one stage, each the average over all ranks; of one process alone, its own.

    Args:
        states: of the ranks and what they train.
        header: of the stage.
        writer: of the stage, which says when states are kept: then the ranks are compared.
        made: steps that were made.
        change: told of the header's `buckets`, on the first rank.
    """

    states: States
    header: StageHeader
    writer: StageWriter
    made: int
    change: Callable[..., None]
    hooks: list[Any] = field(default_factory=list)
    """That are on until the stage ends."""

    def begin(self) -> None:
        """Refuse ranks that begin apart, or that no single process could follow.

        Raises:
            RecordError: naming what differs, or cannot be recorded.
        """
        if self.states.ranks.size > 1:
            self._attach()
            digests = self.states.ranks.gathered(self._digests())
            self.states.led(lambda: self._compare(digests, self._place))

    @abstractmethod
    def passing(self) -> None:
        """See a pass that has just begun.

        Raises:
            RecordError: if its gradients are not to be averaged over all ranks.
        """

    def telling(self, hear: Callable[[StepMade], None]) -> Callable[[StepMade], None]:
        """What hears the steps of this rank, for what hears those of all on the first."""
        if self.states.ranks.size == 1:
            return hear

        def tell(event: StepMade) -> None:
            place, seen = self._place, self._seen()
            self.made += 1
            kept = self.writer.wants_state(self.made, self.header.steps)
            digests = self._digests() if kept else {}
            told = self.states.ranks.gathered((event, seen, digests))

            def lead() -> None:
                self._check([seen for _, seen, _ in told], place)
                self._compare([digests for _, _, digests in told], place)
                hear(merged([event for event, _, _ in told], place))

            self.states.led(lead)

        return tell

    @abstractmethod
    def end(self, skipped: int) -> None:
        """End a stage.

        Args:
            skipped: steps that were not made.

        Raises:
            RecordError: if this rank made another number of steps than declared.
        """

    def detach(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    @abstractmethod
    def _attach(self) -> None:
        """See from now on what is averaged.

        Raises:
            RecordError: naming what cannot be recorded.
        """

    @abstractmethod
    def _seen(self) -> Any:
        """What this rank saw of the step that was just made."""

    @abstractmethod
    def _check(self, seen: Sequence[Any], place: str) -> None:
        """Hold what every rank saw of a step against what it must have seen.

        Args:
            seen: by rank.
            place: of the step, for messages.

        Raises:
            RecordError: if the step is no average over all ranks.
        """

    @abstractmethod
    def _same(self) -> Mapping[str, Tensor]:
        """What must be the same on every rank, by name."""

    def _refuse_early_end(self, skipped: int) -> None:
        """Refuse a stage that this rank ended early, since the others may be waiting for it."""
        if self.states.ranks.size > 1 and self.made + skipped != self.header.steps:
            raise RecordError(
                f"{self._place}: rank {self.states.ranks.rank} ended the stage of {self.header.steps} steps",
                "let every rank make the declared number of steps, as DistributedSampler does",
            )

    @property
    def _place(self) -> str:
        return f"stage '{self.header.id}', step {self.made}"

    def _digests(self) -> dict[str, str]:
        return {name: tensors_digest({name: tensor}) for name, tensor in self._same().items()}

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
