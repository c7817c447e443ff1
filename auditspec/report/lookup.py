"""Finds the parts of a result by their ids, and names parties, states, and arms for readers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from auditspec.errors import WithheldError
from auditspec.estimator.interventions import INITIAL, change_before, changed_stage, in_words
from auditspec.report.parts import SHORT, clean
from auditspec.report.words import Words
from auditspec.results import (
    AuditResult,
    CheckResult,
    Effect,
    OfIntervention,
    Path,
)
from auditspec.verdicts import cap_of

K = TypeVar("K")
T = TypeVar("T")

MAX_NAMES = 20
"""Most parties that a sentence lists."""


class Lookup:
    """The parts of a result by their ids, with their JSON pointers."""

    def __init__(self, result: AuditResult, digest: str = "") -> None:
        self.result = result
        self.digest = digest
        """Of results.json."""
        self.words = Words(vocabulary=result.vocabulary)
        self.behaviors = Table(lambda b: b.id, result.behaviors, "/behaviors")
        self.verdicts = Table(lambda v: v.behavior, result.verdicts, "/verdicts")
        self.findings = Table(lambda f: f.behavior, result.findings, "/findings")
        self._stages = Table(lambda s: s.id, result.stages, "/stages")
        self._parties = Table(lambda p: p.id, result.parties, "/parties")
        self._effects = Table(lambda e: (e.behavior, e.arm), result.effects, "/effects")
        self._paths = Table(lambda p: (p.behavior, p.arm), result.paths, "/paths")

    @property
    def cap(self) -> float:
        """Most confidence that the evidence carries, a convention."""
        return cap_of(self.result.evidence_grade, self.result.checks)

    def effect(self, behavior: str, *arm: str) -> tuple[Effect, str] | None:
        """The effect of an intervention on one behaviour, and the pointer to it."""
        return _there(self._effects.entry((behavior, arm)))

    def path(self, behavior: str, *arm: str) -> tuple[Path, str] | None:
        """A behaviour along an arm, by default the recorded run, and the pointer to it."""
        return _there(self._paths.entry((behavior, arm)))

    def arms(self, behavior: str) -> list[tuple[Path, str]]:
        """A behaviour along every counterfactual run."""
        return [path for (name, arm), path in self._paths.every() if name == behavior and arm]

    def owner(self, party: str) -> str:
        """Who answers for a party; empty where nobody is named."""
        item = self._parties.entry(party)[0] or self._stages.entry(party)[0]
        return item.owner if item else ""

    def owned(self, parties: Iterable[str]) -> str:
        """Parties with their owners: `stage 'vendor' (Data operations) and the initial weights`."""
        words = []
        for party in list(parties)[:MAX_NAMES]:
            owner = clean(self.owner(party), SHORT)
            words.append(clean(in_words(party), SHORT) + (f" ({owner})" if owner else ""))
        return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))

    def open_gates(self, behavior: str) -> tuple[CheckResult, ...]:
        """The checks in the way of a clear verdict on a behaviour, by its lines or those of no behaviour."""
        return tuple(
            check for check in self.result.checks if check.in_the_way and _bears_on(check, behavior)
        )


def _bears_on(check: CheckResult, behavior: str) -> bool:
    lines = [d for d in check.details if d.outcome != "pass"]
    return (
        check.outcome == "not-run"
        or not lines
        or any(d.behavior in (None, behavior) for d in lines)
    )


class Table(dict[K, tuple[T, str]]):
    """Items of a result by a key, with their pointers; what is not there may be one whose key is withheld.

    Raises:
        WithheldError: by `get` and `every`, where one that is withheld may be meant.
    """

    def __init__(self, key: Callable[[T], K], items: Iterable[T], pointer: str) -> None:
        super().__init__()
        self._hidden: list[WithheldError] = []
        with self._noting():  # the list itself is withheld where it is empty
            for index, item in enumerate(items):
                with self._noting():
                    self[key(item)] = (item, f"{pointer}/{index}")

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except WithheldError as error:
            self._hidden.append(error)

    def entry(self, key: K) -> tuple[T | None, str]:
        """The item of a key and its pointer; None and nothing where there is none for certain."""
        if key not in self:
            self._refuse()
        return self.get(key, (None, ""))

    def every(self) -> Iterable[tuple[K, tuple[T, str]]]:
        """All of them."""
        self._refuse()
        return self.items()

    def _refuse(self) -> None:
        for error in self._hidden:
            raise error


def _there(entry: tuple[T | None, str]) -> tuple[T, str] | None:
    item, pointer = entry
    return None if item is None else (item, pointer)


def anchor(index: int) -> str:
    """Where the report tells of a behaviour, by its place in the results."""
    return f"behaviour-{index + 1}"


def short(party: str) -> str:
    """A party as a heading: `initial weights`, `change before review`, `vendor`."""
    before = changed_stage(party)
    if party == INITIAL:
        return "initial weights"
    return clean(party if before is None else f"change before {before}", SHORT)


def party_of(state: str) -> str:
    """Whose turn ends in a state of a path."""
    stage, _, end = state.rpartition(":")
    if not stage:
        return INITIAL
    return change_before(stage) if end == "start" else stage


def state_of(party: str) -> str:
    """The state in which a party's turn ends: the inverse of `party_of`."""
    before = changed_stage(party)
    if party == INITIAL:
        return "initial"
    return f"{party}:end" if before is None else f"{before}:start"


def at(state: str) -> str:
    """A state as a row's name: `initial weights`, `after change before review`, `after vendor`."""
    party = party_of(state)
    return short(party) if party == INITIAL else clean(f"after {short(party)}", SHORT)


def heading(item: OfIntervention) -> str:
    """An intervention as a row's name: the stage that is left out, or all that is done otherwise."""
    return arm_in_words(item.arm) if item.stage is None else short(item.stage)


def arm_in_words(arm: Iterable[str]) -> str:
    """What a counterfactual run did otherwise: `without vendor, polish; reference data for pretrain`."""
    without, other = [], []
    for part in arm:
        kind, _, party = part.partition(" ")
        if kind == "omit":
            without.append(short(party))
        elif kind == "replace":
            other.append(
                "reference weights" if party == INITIAL else f"reference data for {short(party)}"
            )
        else:
            other.append(clean(part, SHORT))
    left = [f"without {', '.join(without)}"] if without else []
    return clean("; ".join([*left, *other]) or "as recorded", 2 * SHORT)
