"""How a stage differs from what the spec declares of it, key by key. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from auditspec.record.format import StageHeader
from auditspec.results import Message, message
from auditspec.spec.models import Optimizer, Stage

RATE_TOLERANCE = 1e-6
"""Relative to the stage's largest learning rate."""
_HYPERPARAMETERS = (
    "momentum",
    "dampening",
    "nesterov",
    "weight_decay",
    "maximize",
    "betas",
    "eps",
    "amsgrad",
)


class Batch(Protocol):
    """A recorded microbatch."""

    @property
    def dataset(self) -> str | None:
        """Name of the data set that its rows come from; None: the record holds it as tensors."""


class Step(Protocol):
    """A recorded step."""

    @property
    def groups(self) -> tuple[dict[str, Any], ...]:
        """Hyperparameters of each parameter group."""

    @property
    def batches(self) -> Sequence[Batch]:
        """Its microbatches."""


class Recorded(Protocol):
    """A recorded stage."""

    @property
    def header(self) -> StageHeader:
        """What `record.json` says of it."""

    @property
    def steps(self) -> Sequence[Step]:
        """Every recorded step; none where only boundaries were recorded."""


class Difference(NamedTuple):
    """One key of a stage that the record contradicts."""

    location: tuple[str, ...]
    """Of the key in the stage's block of the spec; empty where the record contradicts itself."""
    declared: str
    recorded: str
    note: Message
    """Both in one sentence."""


def differences(stage: Stage, recorded: Recorded) -> Iterator[Difference]:
    """Yield every key that the record contradicts, and every contradiction within the record."""
    declared, header, steps = stage.optimizer, recorded.header, recorded.steps
    if header.objective.name != stage.objective:
        yield _differs("objective", stage.objective, header.objective.name)
    extend = header.extend.name if header.extend else None
    if extend != stage.extend:
        yield _differs("extend", stage.extend or "nothing", extend or "nothing")
    if declared.name != header.optimizer:
        yield _differs("optimizer", declared.name, header.optimizer, location=("optimizer", "name"))
    if declared.state is not None and declared.state != header.boundary:
        yield _differs(
            "optimizer state", declared.state, header.boundary, location=("optimizer", "state")
        )
    as_tensors = any(batch.dataset is None for step in steps for batch in step.batches)
    wanted_data, found_data = set(stage.data), set(header.datasets)
    if not (found_data <= wanted_data if as_tensors else found_data == wanted_data):
        yield _differs("data", ", ".join(stage.data), ", ".join(header.datasets) or "none")
    read = {batch.dataset for step in steps for batch in step.batches} - {None}
    if stray := sorted(str(name) for name in read - found_data):
        note = message("steps-read-other-data", datasets=stray)
        yield Difference((), "", "", note)
    if any(len(step.groups) != len(header.groups) for step in steps):
        note = message("groups-differ", groups=len(header.groups))
        yield Difference((), "", "", note)
        return
    groups = [group for step in steps for group in step.groups] or [
        dict(group.options) for group in header.groups
    ]
    wanted = {
        key: (value, ("optimizer", key))
        for key in _HYPERPARAMETERS
        if (value := getattr(declared, key)) is not None
    } | {key: (value, ("optimizer", "options", key)) for key, value in declared.options.items()}
    for key, (value, location) in wanted.items():
        recorded_values = {_plain(group.get(key)) for group in groups}
        if recorded_values != {_plain(value)}:
            yield _differs(
                key, str(value), ", ".join(sorted(map(str, recorded_values))), location=location
            )
    if steps:
        courses = [[float(rate["lr"]) for rate in course] for course in _by_group(steps)]
        yield from _rate_differences(declared, courses)


def _differs(
    key: str, declared: str, recorded: str, *, location: tuple[str, ...] = ()
) -> Difference:
    note = message("field-differs", field=key, declared=declared, recorded=recorded)
    return Difference(location or (key,), declared, recorded, note)


def _by_group(steps: Sequence[Step]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    """The hyperparameters of each parameter group, step by step."""
    yield from zip(*(step.groups for step in steps), strict=True)


def _rate_differences(declared: Optimizer, courses: list[list[float]]) -> Iterator[Difference]:
    """The largest rate of all groups, and each group's course in shares of its own largest."""
    tops = [max(rates) for rates in courses]
    top = max(tops)
    if not abs(top - declared.lr) <= RATE_TOLERANCE * declared.lr:
        rates = f"{declared.lr:g}", f"{top:g}"
        yield _differs("largest lr", *rates, location=("optimizer", "lr"))
    elif declared.schedule != "recorded":
        for group, (rates_of_group, largest) in enumerate(zip(courses, tops, strict=True)):
            for t, rate in enumerate(rates_of_group):
                expected = largest
                if declared.schedule == "cosine":
                    expected *= 0.5 * (1 + math.cos(math.pi * t / len(rates_of_group)))
                if not abs(rate - expected) <= RATE_TOLERANCE * declared.lr:
                    course = f"lr {rate:g} at step {t}, not {expected:g}"
                    note = message(
                        "schedule-differs",
                        schedule=declared.schedule,
                        rate=rate,
                        step=t,
                        expected=expected,
                    )
                    if len(courses) > 1:
                        note = message("of-group", group=group, note=note)
                    yield Difference(("optimizer", "schedule"), declared.schedule, course, note)
                    return


def _plain(value: object) -> object:
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
