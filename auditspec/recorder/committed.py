"""A stage that was committed to before it is trained: each step is held against the plan as it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from auditspec.errors import RecordError
from auditspec.record.commitment import Commitment
from auditspec.record.format import StageHeader
from auditspec.record.plan import Plan, commitment_of, leaf_of
from auditspec.record.state import State
from auditspec.recorder.events import StepMade
from auditspec.recorder.stage import StageRecorder


@dataclass(frozen=True)
class CommittedStage:
    """A commitment, and the steps whose root it holds."""

    commitment: Commitment
    leaves: Sequence[bytes]

    @classmethod
    def of(cls, header: StageHeader, first: State, plan: Plan, code: str) -> CommittedStage:
        """Of a stage as declared, the state with which it will begin, and the digest of its code.

        Raises:
            RecordError: if the plan is none of rows.
        """
        leaves = plan.leaves(header)
        return cls(commitment_of(header, first, leaves, code), leaves)

    def require_begun(self, header: StageHeader, first: State) -> None:
        """Hold a stage that begins against what was committed to.

        Raises:
            RecordError: naming what differs.
        """
        begun = commitment_of(header, first, self.leaves, self.commitment.code)
        if odd := self.commitment.differing(begun):
            raise RecordError(
                f"stage '{header.id}' begins otherwise than was committed to: {', '.join(odd)}",
                "commit right before the stage, and change and draw nothing in between",
            )

    def hearing(self, recorder: StageRecorder) -> Callable[[StepMade], None]:
        """What hears the stage's steps, and refuses one that is not the planned one."""

        def hear(event: StepMade) -> None:
            made, batches = recorder.made, [p.microbatch for p in event.passes]
            if made < len(self.leaves) and leaf_of(batches, event.groups) != self.leaves[made]:
                raise RecordError(
                    f"stage '{recorder.header.id}', step {made}: is not the step that was committed to",
                    "train the planned batches in their order, with the planned hyperparameters",
                )
            recorder.hear(event)

        return hear
