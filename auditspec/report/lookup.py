"""Finds the parts of a result by their ids, and names parties, states, and arms for readers."""

from __future__ import annotations

from collections.abc import Iterable

from auditspec.estimator.interventions import INITIAL, change_before, changed_stage, in_words
from auditspec.report.parts import SHORT, clean
from auditspec.report.words import Words
from auditspec.results import AuditResult, CheckResult, Effect, Finding, OfIntervention, Path
from auditspec.verdicts import cap_of

MAX_NAMES = 20
"""Most parties that a sentence lists."""


class Lookup:
    """The parts of a result by their ids, with their JSON pointers."""

    def __init__(self, result: AuditResult) -> None:
        self.result = result
        self.words = Words(vocabulary=result.vocabulary)
        self.cap = cap_of(result.evidence_grade, result.checks)
        """Most confidence that the evidence carries, a convention."""
        self.behaviors = {b.id: (b, f"/behaviors/{i}") for i, b in enumerate(result.behaviors)}
        self.verdicts = {v.behavior: (v, f"/verdicts/{i}") for i, v in enumerate(result.verdicts)}
        self.findings = {f.behavior: f for f in result.findings}
        self.owners = {s.id: s.owner for s in result.stages}
        self.owners |= {p.id: p.owner for p in result.parties}
        self._effects = {
            (e.behavior, e.arm): (e, f"/effects/{i}") for i, e in enumerate(result.effects)
        }
        self._paths = {(p.behavior, p.arm): (p, f"/paths/{i}") for i, p in enumerate(result.paths)}

    def place(self, finding: Finding) -> str:
        """The pointer to a finding."""
        return f"/findings/{self.result.findings.index(finding)}"

    def effect(self, behavior: str, *arm: str) -> tuple[Effect, str] | None:
        """The effect of an intervention on one behaviour, and the pointer to it."""
        return self._effects.get((behavior, arm))

    def path(self, behavior: str, *arm: str) -> tuple[Path, str] | None:
        """A behaviour along an arm, by default the recorded run, and the pointer to it."""
        return self._paths.get((behavior, arm))

    def arms(self, behavior: str) -> list[tuple[Path, str]]:
        """A behaviour along every counterfactual run."""
        return [path for (name, arm), path in self._paths.items() if name == behavior and arm]

    def owned(self, parties: Iterable[str]) -> str:
        """Parties with their owners: `stage 'vendor' (Data operations) and the initial weights`."""
        words = []
        for party in list(parties)[:MAX_NAMES]:
            owner = self.owners.get(party, "")
            words.append(
                clean(in_words(party), SHORT) + (f" ({clean(owner, SHORT)})" if owner else "")
            )
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
