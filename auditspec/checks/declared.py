"""How a stage differs from what the spec declares of it, key by key. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from auditspec.messages import Message, message
from auditspec.record.format import StageHeader, TensorInfo
from auditspec.spec.groups import ParameterGroup
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

    @property
    def parameters(self) -> Sequence[TensorInfo]:
        """Of the stage's model."""


class Difference(NamedTuple):
    """One key of a stage that the record contradicts."""

    location: tuple[str | int, ...]
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
    courses = list(_by_group(steps)) or [(dict(group.options),) for group in header.groups]
    members = _members(declared, recorded)
    for index, (_, names) in enumerate(members):
        if not names:
            note = message("group-is-empty", group=index)
            yield Difference(("optimizer", "groups", index), "", "", note)
    yield from _hyperparameters(declared, courses, members, header)
    if steps:
        rates = [[float(rate["lr"]) for rate in course] for course in courses]
        tops = [_largest_rate(declared, set(g.parameters), members) for g in header.groups]
        yield from _rate_differences(declared, rates, tops)


Place = tuple[str | int, ...]
Members = Sequence[tuple[ParameterGroup, Mapping[str, bool]]]
"""Each declared group with its parameters, and whether their names tell that they are of it."""


def _members(declared: Optimizer, recorded: Recorded) -> Members:
    """A parameter is of the first group that holds it; where its name does not tell, of a later one or none too."""
    dimensions = {info.name: len(info.shape) for info in recorded.parameters}
    left = {name for group in recorded.header.groups for name in group.parameters}
    members = []
    for group in declared.groups:
        told = {name: group.holds(name, dimensions.get(name, 0)) for name in left}
        members.append((group, {n: bool(t) for n, t in told.items() if t is not False}))
        left -= {name for name, sure in told.items() if sure}
    return members


def _hyperparameters(
    declared: Optimizer,
    courses: Sequence[tuple[Mapping[str, Any], ...]],
    members: Members,
    header: StageHeader,
) -> Iterator[Difference]:
    """Every declared hyperparameter must hold for its parameters, at every step."""
    wanted = {
        key: (value, ("optimizer", key))
        for key in _HYPERPARAMETERS
        if (value := getattr(declared, key)) is not None
    } | {key: (value, ("optimizer", "options", key)) for key, value in declared.options.items()}
    own = {key for group in declared.groups for key in group.own}
    for key, (value, location) in wanted.items():
        if key in own:
            continue
        recorded_values = {_plain(options.get(key)) for course in courses for options in course}
        if recorded_values != {_plain(value)}:
            yield _differs(
                key, str(value), ", ".join(sorted(map(str, recorded_values))), location=location
            )
    for key in sorted(own):
        default = wanted.get(key, (None, ("optimizer", key)))
        for group, course in zip(header.groups, courses, strict=True):
            values = {_plain(options.get(key)) for options in course}
            yield from _of_parameters(key, default, group.parameters, values, members)


def _of_parameters(
    key: str,
    default: tuple[Any, Place],
    parameters: Sequence[str],
    values: set[object],
    members: Members,
) -> Iterator[Difference]:
    """The first parameter of a recorded group that has another value than is declared for it."""
    for name in parameters:
        accepted: list[tuple[Any, Place]] = []
        for index, (group, names) in enumerate(members):
            if name in names:
                place = ("options", key) if key in group.options else (key,)
                stated = group.own.get(key), ("optimizer", "groups", index, *place)
                accepted.append(stated if key in group.own else default)
            if names.get(name):
                break
        else:
            accepted.append(default)
        if any(value is None or values == {_plain(value)} for value, _ in accepted):
            continue
        value, location = accepted[0]
        found = ", ".join(sorted(map(str, values)))
        note = message(
            "parameter-differs", parameter=name, field=key, declared=str(value), recorded=found
        )
        yield Difference(location, str(value), found, note)
        return


def _largest_rate(declared: Optimizer, parameters: set[str], members: Members) -> float | None:
    """The largest rate that is declared for a recorded group; None where only that of all groups is."""
    if all(group.lr is None for group in declared.groups):
        return None
    for group, names in members:
        if group.lr is not None and parameters <= names.keys():
            return group.lr
    return declared.lr


def _differs(
    key: str, declared: str, recorded: str, *, location: tuple[str | int, ...] = ()
) -> Difference:
    note = message("field-differs", field=key, declared=declared, recorded=recorded)
    return Difference(location or (key,), declared, recorded, note)


def _by_group(steps: Sequence[Step]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    """The hyperparameters of each parameter group, step by step."""
    yield from zip(*(step.groups for step in steps), strict=True)


def _rate_differences(
    declared: Optimizer, courses: list[list[float]], tops: list[float | None]
) -> Iterator[Difference]:
    """The largest rate of all groups, and each group's course in shares of its own largest."""
    course, steps = declared.course, len(courses[0])
    shares = [1.0 if course is None else course.share(t, steps) for t in range(steps)]
    peak, largest = max(shares), max(map(max, courses))
    wanted = max((top for top in tops if top is not None), default=declared.lr)
    if not abs(largest - wanted * peak) <= RATE_TOLERANCE * wanted:
        rates = f"{wanted * peak:g}", f"{largest:g}"
        yield _differs("largest lr", *rates, location=("optimizer", "lr"))
        return
    for group, (rates_of_group, top) in enumerate(zip(courses, tops, strict=True)):
        base = top if top is not None else max(rates_of_group) / peak if peak else 0.0
        if course is None:
            if not abs(max(rates_of_group) - base) <= RATE_TOLERANCE * wanted:
                recorded = f"{max(rates_of_group):g}"
                note = message("field-differs", field="lr", declared=f"{base:g}", recorded=recorded)
                note = message("of-group", group=group, note=note)
                yield Difference(("optimizer", "groups"), f"{base:g}", recorded, note)
                return
            continue
        for t, rate in enumerate(rates_of_group):
            expected = base * shares[t]
            if not abs(rate - expected) <= RATE_TOLERANCE * wanted:
                found = f"lr {rate:g} at step {t}, not {expected:g}"
                note = message(
                    "schedule-differs", schedule=course.name, rate=rate, step=t, expected=expected
                )
                if len(courses) > 1:
                    note = message("of-group", group=group, note=note)
                yield Difference(("optimizer", "schedule"), course.name, found, note)
                return


def _plain(value: object) -> object:
    if isinstance(value, tuple | list):
        return tuple(_plain(v) for v in value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
