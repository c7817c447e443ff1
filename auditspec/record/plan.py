"""A stage as it is planned, and as it was recorded, in the words of a commitment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from auditspec.errors import RecordError
from auditspec.record.codec import encoded, tensors_digest
from auditspec.record.commitment import Commitment, order_of
from auditspec.record.describe import row_numbers
from auditspec.record.format import Group, StageHeader
from auditspec.record.state import State
from auditspec.record.trajectory import Microbatch, StageTrajectory


@dataclass(frozen=True)
class PlannedPass:
    """A microbatch of a step that is still to be made."""

    ids: Sequence[int]
    """Rows of its data set."""
    dataset: str | None = None
    """By name; None: the stage's first."""
    weight: float = 1.0
    """Factor of its loss in the step's gradient."""


@dataclass(frozen=True)
class Plan:
    """The steps of a stage that is still to be trained."""

    batches: Sequence[Sequence[int] | Sequence[PlannedPass]]
    """Of every step: its rows, or its microbatches."""
    rates: Sequence[float] | None = None
    """The learning rate of every step, in all groups; None: those that the optimizer begins with."""

    def leaves(self, header: StageHeader) -> list[bytes]:
        """The leaf of each step, under the hyperparameters with which the stage begins.

        Raises:
            RecordError: if there are not as many rates as steps, or a pass has no rows of a data set.
        """
        if self.rates is not None and len(self.rates) != len(self.batches):
            raise RecordError(
                f"{len(self.rates)} learning rates for {len(self.batches)} steps",
                "give one for each step",
            )
        first = next(iter(header.datasets), None)
        steps = []
        for number, batch in enumerate(self.batches):
            options = [dict(group.options) for group in header.groups]
            if self.rates is not None:
                options = [o | {"lr": float(self.rates[number])} for o in options]
            passes = [p if isinstance(p, PlannedPass) else None for p in batch]
            planned = [p for p in passes if p is not None] or [PlannedPass(batch)]  # type: ignore[arg-type]
            rows = [(p.dataset or first, row_numbers(p.ids), float(p.weight)) for p in planned]
            if first is None or not all(ids for _, ids, _ in rows):
                raise RecordError(
                    f"step {number} of the plan has a pass without rows",
                    "commit to rows of the stage's data sets; batches of tensors cannot be planned",
                )
            steps.append(_leaf(rows, options))
        return steps


def leaf_of(batches: Iterable[Microbatch], groups: Iterable[Mapping[str, Any]]) -> bytes:
    """The leaf of a step that was made."""
    rows = [
        (b.dataset, [] if b.dataset is None else list(b.ids), float(b.weight))
        for b in batches
        if b.weight
    ]
    return _leaf(rows, groups)


def commitment_of(
    header: StageHeader, first: State, leaves: Sequence[bytes], code: str
) -> Commitment:
    """What a stage amounts to, planned or made.

    Args:
        header: of the stage.
        first: the state with which it begins.
        leaves: of its steps.
        code: digest of the training code.
    """
    tensors, scalars = encoded(State(first.parameters, first.buffers, first.optimizer_state))
    facts = json.dumps(scalars, sort_keys=True)
    return Commitment(
        stage=header.id,
        code=code,
        objective=header.objective.name,
        initial=f"sha256:{tensors_digest(tensors, facts)}",
        seed=int.from_bytes(first.rng["cpu"][:8].numpy().tobytes(), "little"),
        random=f"sha256:{tensors_digest(first.rng)}",
        boundary=header.boundary,
        datasets=header.datasets,
        optimizer=header.optimizer,
        groups=tuple(
            Group(parameters=g.parameters, options=_planned(g.options)) for g in header.groups
        ),
        frozen=header.frozen,
        clip_norm=header.clip_norm,
        steps=len(leaves),
        order=order_of(leaves),
    )


def recorded_commitment(stage: StageTrajectory, code: str) -> Commitment:
    """The commitment that a recorded stage amounts to.

    Raises:
        RecordError: if the stage cannot be read.
    """
    leaves = [leaf_of(step.batches, step.groups) for step in stage.steps]
    return commitment_of(stage.header, stage.first, leaves, code)


def _leaf(rows: list[tuple[str | None, list[int], float]], groups: Iterable[Any]) -> bytes:
    step = {"batches": rows, "groups": [_planned(group) for group in groups]}
    return json.dumps(step, sort_keys=True, separators=(",", ":")).encode()


def _planned(options: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters without what a scheduler adds once it is made."""
    return {key: value for key, value in options.items() if key != "initial_lr"}
