"""Parts of verdicts: a behaviour, effects, and checks with the outcomes that a test needs."""

from __future__ import annotations

from auditspec.results import BehaviorResult, CheckResult, Concern, Effect
from auditspec.verdicts import ESTIMATE_GATES, EVIDENCE_GATES

TOLERANCE = 0.5


def behavior(
    direction: str = "increase",
    tolerance: float = TOLERANCE,
    severity: str = "high",
    id_: str = "b",
) -> BehaviorResult:
    concern = Concern.model_validate(
        {"direction": direction, "tolerance": tolerance, "severity": severity}
    )
    return BehaviorResult(
        id=id_,
        description="d",
        metric="m",
        unit="logits",
        data="holdout",
        where=None,
        concern=concern,
    )


def effect(
    stage: str,
    low: float | None,
    high: float | None,
    leads: float | None = 0.0,
    *,
    exact: bool = True,
    value: float | None = None,
) -> Effect:
    if value is None:
        value = 0.0 if low is None or high is None else (low + high) / 2
    return Effect(
        behavior="b",
        stage=stage,
        value=value,
        counterfactual=0.0,
        low=low,
        high=high,
        leads=leads,
        exact=exact,
    )


def check(id_: str, outcome: str = "pass") -> CheckResult:
    return CheckResult.model_validate(
        {
            "id": id_,
            "title": id_,
            "role": "gate",
            "outcome": outcome,
            "statistic_name": "s",
            "reason": f"reason of {id_}",
        }
    )


def checks(**outcomes: str) -> list[CheckResult]:
    ids = (*EVIDENCE_GATES, *ESTIMATE_GATES, "spot-check", "sampling")
    return [check(id_, outcomes.get(id_.replace("-", "_"), "pass")) for id_ in ids]
