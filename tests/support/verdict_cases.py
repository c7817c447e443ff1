"""Parts of verdicts: a behaviour, its levels along made-up runs, and checks with given outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from said import saying

from auditspec.checks import CHECKS
from auditspec.estimator.interventions import INITIAL, change_before
from auditspec.results import (
    BehaviorResult,
    CheckResult,
    Concern,
    Draws,
    PartyResult,
    Path,
    Tally,
)
from auditspec.verdicts import Published

TOLERANCE = 0.1
LIMIT = 0.2
STAGES = ("pre", "vendor", "polish")
RESAMPLES = 100


def behavior(
    direction: str = "increase",
    tolerance: float = TOLERANCE,
    severity: str = "high",
    id_: str = "b",
    *,
    limit: float | None = LIMIT,
    value: float | None = None,
    **more: Any,
) -> BehaviorResult:
    concern = Concern.model_validate(
        {"direction": direction, "tolerance": tolerance, "severity": severity, "limit": limit}
    )
    facts = {"uninformed": 0.1, "bounded": True, "examples": 60} | more
    return BehaviorResult(
        id=id_,
        description="d",
        metric="m",
        unit="share",
        data="holdout",
        where=None,
        value=value,
        concern=concern,
        **facts,
    )


def parties(
    stages: Sequence[str] = STAGES,
    *,
    origin: str = "random",
    changed: Sequence[str] = (),
    references: Mapping[str, str] | None = None,
) -> list[PartyResult]:
    held = references or {}
    found: list[dict[str, Any]] = [{"id": INITIAL, "kind": "initial", "origin": origin}]
    for stage in stages:
        if stage in changed:
            found.append({"id": change_before(stage), "kind": "change", "stage": stage})
        found.append({"id": stage, "kind": "stage", "stage": stage})
    return [
        PartyResult.model_validate({"owner": "team", "reference": held.get(p["id"])} | p)
        for p in found
    ]


def path(
    arm: Sequence[str],
    levels: Mapping[str, float],
    *,
    behavior: str = "b",
    exact: bool = True,
    skills: Mapping[str, float] | None = None,
) -> Path:
    """A run by its states' levels; a state that `skills` leaves out is able, but for the start."""
    able = {state: 0.0 if state == "initial" else 1.0 for state in levels} | dict(skills or {})
    return Path(
        behavior=behavior,
        arm=tuple(arm),
        states=tuple(levels),
        levels=tuple(levels.values()),
        errors=tuple(0.0 if exact else 0.01 for _ in levels),
        skills=tuple(able.values()),
        exact=exact,
    )


def guilty_vendor(
    *, exact: bool = True, sign: float = 1.0, behavior: str = "b", shift: float = 0.0
) -> list[Path]:
    """Levels of a run whose second stage brought the fault, 0.75 at its end and 0.7 at the run's."""

    def level(value: float) -> float:
        return sign * value + shift

    def ends(*values: float) -> dict[str, float]:
        names = {3: STAGES, 2: STAGES[1:], 1: STAGES[2:]}[len(values)]
        return {f"{s}:end": level(v) for s, v in zip(names, values, strict=True)}

    lost = {"vendor:end": 0.1, "polish:end": 0.1}
    return [
        path((), {"initial": level(0.1)} | ends(0.02, 0.75, 0.7), behavior=behavior),
        path(("omit pre",), ends(0.1, 0.1), skills=lost, behavior=behavior, exact=exact),
        path(("omit vendor",), ends(0.03), behavior=behavior, exact=exact),
        path(("omit polish",), {}, behavior=behavior),
    ]


def harmless(*, behavior: str = "b", exact: bool = True) -> list[Path]:
    """Levels of a run in which nothing happened."""
    return [
        path(
            (),
            {"initial": 0.1, "pre:end": 0.02, "vendor:end": 0.05, "polish:end": 0.03},
            behavior=behavior,
        ),
        path(("omit pre",), {"vendor:end": 0.1, "polish:end": 0.1}, behavior=behavior, exact=exact),
        path(("omit vendor",), {"polish:end": 0.03}, behavior=behavior, exact=exact),
        path(("omit polish",), {}, behavior=behavior),
    ]


def tally(ending: str, *named: str, count: int = RESAMPLES) -> Tally:
    return Tally.model_validate({"parties": named, "ending": ending, "count": count})


BY_ID = {kind.id: kind for kind in CHECKS}


def check(id_: str, outcome: str = "pass", **more: Any) -> CheckResult:
    return CheckResult.model_validate(
        {
            "outcome": outcome,
            "reasons": (saying(f"reason of {id_}"),),
        }
        | BY_ID[id_].about()
        | more
    )


def checks(**outcomes: str) -> list[CheckResult]:
    """Every check that a verdict may rest on."""
    ids = (id_ for id_, kind in BY_ID.items() if kind.bars != "nothing" or kind.resampling)
    return [check(id_, outcomes.get(id_.replace("-", "_"), "pass")) for id_ in ids]


def published(
    paths: Sequence[Path],
    *,
    held: Sequence[CheckResult] | None = None,
    grade: str = "dense",
    who: Sequence[PartyResult] | None = None,
    draws: Sequence[Draws] = (),
    level: float = 0.95,
) -> Published:
    return Published(
        parties=who or parties(),
        paths=paths,
        draws=draws,
        checks=checks() if held is None else held,
        grade=grade,  # type: ignore[arg-type]
        resamples=RESAMPLES,
        level=level,
    )
