"""Checkpoints that a run saved, each held against the run that is made again, at its step.

The moment is right after the optimizer's step: whoever saves, saves then, or before the next forward pass. From a
checkpoint that was missed the run goes on, so that what follows is held against what followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from auditspec.artifacts.manifest import digest_path
from auditspec.artifacts.saved import SavedCheckpoint, Stored
from auditspec.errors import EvidenceError
from auditspec.importing.saved_state import (
    names_to_find,
    other_arguments,
    other_generators,
    other_options,
    same_random_state,
    state_of,
    steps_ahead,
)
from auditspec.record.deviation import distance, optimizer_state_distance
from auditspec.record.format import CheckpointMatch, Regenerated
from auditspec.record.state import State, capture, restore
from auditspec.recorder.events import OpenStage
from auditspec.recorder.reproduction import Reproduction


class Comparison(Reproduction):
    """Holds every saved checkpoint of a run against the run that is made again.

    Args:
        stages: the checkpoints of each stage by the steps made before them; the stages in their order.
        announce: told of every checkpoint once it was compared.
    """

    def __init__(
        self, stages: Mapping[str, Mapping[int, Stored]], announce: Callable[[str], None]
    ) -> None:
        self._announce = announce
        self._waiting = {stage: dict(stored) for stage, stored in stages.items()}
        self._to_begin = list(stages)
        self._steps: dict[str, int] = {}
        """Steps that each stage made so far."""
        self._matches: list[CheckpointMatch] = []
        self._other_arguments: set[str] = set()
        self._begun: dict[str, Any] = {}
        """The generators of Python and numpy as the stage began."""
        self._digest = cache(lambda path: digest_path(path).digest)
        """Of a file or folder; a file may hold every checkpoint of a stage."""
        self._last: SavedCheckpoint | None = None
        """The one that was compared last, with no step since."""

    @property
    def regenerated(self) -> Regenerated:
        """How close the saved checkpoints were met."""
        return Regenerated(
            checkpoints=tuple(self._matches), arguments=tuple(sorted(self._other_arguments))
        )

    def begin(self, stage: OpenStage) -> None:
        """Be sure that it is the stage whose turn it is.

        Raises:
            EvidenceError: if it is another; or as `step`.
        """
        wanted = self._to_begin.pop(0) if self._to_begin else None
        if stage.header.id != wanted:
            there = "no more stages" if wanted is None else f"'{wanted}'"
            raise EvidenceError(
                f"the code records the stage '{stage.header.id}' where the spec has {there}",
                "record the stages of the spec, in its order, under their ids",
            )
        self._begun = other_generators()
        self.step(stage, 0)

    def step(self, stage: OpenStage, made: int) -> None:
        """Compare with the checkpoint of this step, where there is one.

        Raises:
            EvidenceError: if it is of another model, or cannot be read.
        """
        name, self._last = stage.header.id, None
        self._steps[name] = made
        stored = self._waiting[name].get(made)
        if stored is None:
            return
        saved = stored.read(names_to_find(stage.model))
        match = compared(saved, stage, made, self._digest(saved.path))
        random = same_random_state(saved.rng, self._begun)
        match = match.model_copy(update={"random": random})
        if not match.met:
            self._refuse_other_place(match, saved, stage)
        astray = not match.met or any(not earlier.met for earlier in self._matches)
        self._matches.append(match)
        self._other_arguments.update(other_arguments(saved, self.arguments))
        if not match.met and saved.arguments is None:
            self._other_arguments.update(other_options(saved, stage.optimizer))
        if astray and made:
            self._go_on_from(saved, match, stage)
        self._last = saved
        del self._waiting[name][made]
        how = "met" if match.met else "missed"
        off = f"{match.deviation:.1e} off" if match.deviation else "bitwise"
        self._announce(f"checkpoint of {name}, step {made}: {how}, {off}")

    def save(self) -> None:
        """Look at the random generators again: between the step and now the trainer may have evaluated."""
        if self._last is not None and self._matches[-1].random is False:
            again = {"random": same_random_state(self._last.rng, self._begun)}
            self._matches[-1] = self._matches[-1].model_copy(update=again)

    def finish(self) -> None:
        """Be sure that every checkpoint was reached.

        Raises:
            EvidenceError: naming the first stage that was not recorded, or the first checkpoint that was not
                reached.
        """
        if self._to_begin:
            raise EvidenceError(
                f"the code records no stage '{self._to_begin[0]}'",
                "record every stage of the spec, in its order, under its id",
            )
        for stage, waiting in self._waiting.items():
            for step, stored in waiting.items():
                raise EvidenceError(
                    f"{stored.path}: is of step {step}, and the run made again ends stage '{stage}' after "
                    f"{self._steps[stage]} steps",
                    "let the code train as long as the run did; name the checkpoint by the steps made before "
                    "it in its own stage",
                )

    def _refuse_other_place(
        self, match: CheckpointMatch, saved: SavedCheckpoint, stage: OpenStage
    ) -> None:
        """Refuse a missed checkpoint that is of another step than its name says, or with which the run began.

        Raises:
            EvidenceError: saying of which.
        """
        if ahead := steps_ahead(saved, stage.model, stage.optimizer):
            raise EvidenceError(
                f"{saved.path}: is of step {match.step} by its name, and was saved after {match.step + ahead} "
                f"steps of stage '{match.stage}', as its optimizer counts",
                "name it by the optimizer steps made before it in its stage; or let the stage begin with the "
                "optimizer's state that it began with",
            )
        if match.step == 0 and not self._matches:
            raise EvidenceError(
                f"{saved.path}: the run made again does not begin with these weights",
                "give the first weights of the run as model.initial, and the code that builds their model",
            )

    def _go_on_from(self, saved: SavedCheckpoint, match: CheckpointMatch, stage: OpenStage) -> None:
        """Put a saved checkpoint in the place of what was reached; what it does not hold stays."""
        reached = capture(stage.model, stage.optimizer)
        given = state_of(saved, stage.model, stage.optimizer)
        moments = {} if match.optimizer == "other" else given.optimizer_state
        state = State(
            reached.parameters | given.parameters, reached.buffers | given.buffers, moments
        )
        restore(state, stage.model, stage.optimizer)


def compared(saved: SavedCheckpoint, stage: OpenStage, made: int, digest: str) -> CheckpointMatch:
    """Hold a saved checkpoint against a stage's model and optimizer as they stand.

    Args:
        saved: the checkpoint.
        stage: with model and optimizer.
        made: steps that the stage made.
        digest: of the checkpoint.

    Raises:
        EvidenceError: if it is of another model.
    """
    wanted = state_of(saved, stage.model, stage.optimizer)
    reached = capture(stage.model, stage.optimizer)
    return CheckpointMatch(
        stage=stage.header.id,
        step=made,
        path=saved.path.name,
        digest=digest,
        weights=_part(distance(reached, State(wanted.parameters, {}))),
        buffers=_part(distance(reached, State({}, wanted.buffers))) if wanted.buffers else None,
        optimizer=_part(optimizer_state_distance(reached, wanted))
        if wanted.optimizer_state
        else None,
        random=None,
    )


def _part(deviation: float) -> Any:
    return deviation if math.isfinite(deviation) else "other"
