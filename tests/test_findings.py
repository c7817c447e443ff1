"""Findings, the policy gate, and limitations."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import pytest
from factories import minimal_spec
from said import each_said, said, saying
from verdict_cases import LIMIT, behavior, checks

from auditspec.checks.data_use import DataUse
from auditspec.findings import (
    ANSWERABLE,
    findings_of,
    gate_of,
    laxer_than_default,
    limitations_of,
    limits_of_isolation,
)
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult, Estimate, Evidence, Isolation, VerdictResult
from auditspec.spec.models import Policy, Spec
from auditspec.verdicts import EVIDENCE_GATES

# --- findings -----------------------------------------------------------------------------------

TODAY = dt.date(2026, 11, 23)


def policy(**fields: Any) -> Policy:
    return Policy.model_validate(fields)


def suppression(expires: dt.date, behavior: str = "b") -> dict[str, Any]:
    return {"behavior": behavior, "reason": "known", "owner": "Lead", "expires": expires}


def judged(kind: str, id_: str = "b", parties: tuple[str, ...] = ("two",)) -> VerdictResult:
    guilty = kind in ANSWERABLE
    return VerdictResult.model_validate(
        {
            "behavior": id_,
            "verdict": kind,
            "ending": "removed" if guilty else "within",
            "parties": parties if guilty else (),
            "masked_by": ("four",),
            "statement": saying(f"statement of {id_}"),
        }
    )


def estimate(stage: str, *, exact: bool) -> Estimate:
    return Estimate(
        arm=(f"omit {stage}",),
        method="replay" if exact else "displacement",
        exact=exact,
        reason=saying("r"),
        gradients=1,
        seconds=1,
        displacement=1,
    )


def test_a_finding_for_each_answerable_behaviour() -> None:
    verdicts = [
        judged("no-effect", "a"),
        judged("attributed", "b"),
        judged("inconclusive", "c"),
        judged("shared", "d", ("two", "one")),
        judged("one-or-more", "e", ("two", "three")),
        judged("absent", "f"),
    ]
    behaviors = [
        behavior(id_=i, severity=s)
        for i, s in zip("abcdef", ("low", "high", "low", "critical", "low", "high"), strict=True)
    ]
    held = [*checks(sampling="inconclusive")]
    estimates = [estimate("one", exact=False), estimate("two", exact=True)]
    first, second, third = findings_of(verdicts, behaviors, held, estimates, policy(), TODAY)
    assert (first.id, first.behavior, first.severity, first.parties) == (
        "F-1",
        "b",
        "high",
        ("two",),
    )
    assert (second.id, second.behavior, second.severity) == ("F-2", "d", "critical")
    assert (third.id, third.verdict, third.parties) == ("F-3", "one-or-more", ("two", "three"))
    assert "estimate" not in said(first.alternatives)
    assert "estimate" in said(second.alternatives)
    assert "four" in said(first.alternatives)


@pytest.mark.parametrize(("days", "held"), [(-1, False), (0, True), (1, True)])
def test_a_suppression_counts_until_the_end_of_its_last_day(days: int, held: bool) -> None:
    rules = policy(suppress=[suppression(TODAY + dt.timedelta(days=days))])
    (found,) = findings_of([judged("attributed")], [behavior()], checks(), [], rules, TODAY)
    assert (found.suppressed is not None) is held
    gate = gate_of([found], [judged("attributed")], [behavior()], checks(), rules, TODAY)
    assert gate.exit_code == (0 if held else 1)


def test_a_suppression_is_of_one_behaviour() -> None:
    rules = policy(suppress=[suppression(TODAY, "other")])
    (found,) = findings_of([judged("attributed")], [behavior()], checks(), [], rules, TODAY)
    assert found.suppressed is None


# --- the gate -----------------------------------------------------------------------------------


def gated(
    *,
    spoiled: bool = False,
    finding: bool = False,
    open_: bool = False,
    severity: str = "high",
    **fields: Any,
) -> tuple[bool, int]:
    rules = policy(**fields)
    verdicts = [judged("attributed" if finding else "no-effect")]
    verdicts += [judged("inconclusive", "c")] if open_ else []
    behaviors = [behavior(severity=severity), behavior(id_="c")]
    held = checks(record_fidelity="fail") if spoiled else checks()
    found = findings_of(verdicts, behaviors, held, [], rules, TODAY)
    gate = gate_of(found, verdicts, behaviors, held, rules, TODAY)
    assert bool(gate.reasons) == (gate.exit_code != 0)
    return gate.passed, gate.exit_code


@pytest.mark.parametrize(
    ("spoiled", "finding", "open_"), list(itertools.product([False, True], repeat=3))
)
def test_where_several_hold_evidence_comes_before_policy_before_doubt(
    spoiled: bool, finding: bool, open_: bool
) -> None:
    code = 3 if spoiled else 1 if finding else 5 if open_ else 0
    assert gated(spoiled=spoiled, finding=finding, open_=open_) == (code == 0, code)


@pytest.mark.parametrize("severity", ["low", "medium", "high", "critical"])
@pytest.mark.parametrize("limit", ["low", "medium", "high", "critical"])
def test_severities_are_ordered(severity: str, limit: str) -> None:
    order = ["low", "medium", "high", "critical"]
    stops = order.index(severity) >= order.index(limit)
    assert gated(finding=True, severity=severity, fail_on=[f"severity>={limit}"])[1] == int(stops)


def test_what_the_policy_leaves_open_passes() -> None:
    assert gated(open_=True, inconclusive="pass") == (True, 0)
    assert gated(finding=True, fail_on=[]) == (True, 0)
    assert gated(finding=True, open_=True, inconclusive="pass") == (False, 1)


@pytest.mark.parametrize("gate", EVIDENCE_GATES)
@pytest.mark.parametrize(
    ("outcome", "code"), [("fail", 3), ("inconclusive", 5), ("not-run", 5), ("pass", 5)]
)
def test_only_a_failed_gate_is_bad_evidence(gate: str, outcome: str, code: int) -> None:
    held = checks(**{gate.replace("-", "_"): outcome})
    open_ = [judged("inconclusive")]
    assert gate_of([], open_, [behavior()], held, policy(), TODAY).exit_code == code


OVER, UNDER = LIMIT + 0.1, LIMIT - 0.1


@pytest.mark.parametrize("kind", ["inconclusive", "absent"])
@pytest.mark.parametrize(
    ("direction", "value", "beyond"),
    [
        ("increase", OVER, True),
        ("increase", LIMIT, False),
        ("increase", UNDER, False),
        ("decrease", UNDER, True),
        ("decrease", OVER, False),
        ("increase", None, False),
    ],
)
def test_a_model_beyond_its_limit_stops_the_release_though_nobody_is_named(
    kind: str, direction: str, value: float | None, beyond: bool
) -> None:
    ours, rules = behavior(direction, value=value), policy(inconclusive="pass")
    gate = gate_of([], [judged(kind)], [ours], checks(), rules, TODAY)
    assert gate.exit_code == int(beyond)
    assert [r.startswith("beyond its limit: high") for r in each_said(gate.reasons)] == [True][
        :beyond
    ]


def test_without_a_stated_limit_nothing_is_beyond_it() -> None:
    ours = behavior(limit=None, value=0.99)
    assert not ours.beyond
    assert gate_of([], [judged("no-effect")], [ours], checks(), policy(), TODAY).passed


def test_a_limit_passed_is_weighed_like_a_finding() -> None:
    """By severity; accepted by a suppression until its day; told once where somebody is named too."""
    ours, open_ = behavior(value=OVER), [judged("inconclusive")]
    lax = policy(fail_on=["severity>=critical"], inconclusive="pass")
    assert gate_of([], open_, [ours], checks(), lax, TODAY).passed
    for expires, code in ((TODAY, 0), (TODAY - dt.timedelta(days=1), 1)):
        rules = policy(inconclusive="pass", suppress=[suppression(expires)])
        assert gate_of([], open_, [ours], checks(), rules, TODAY).exit_code == code
    named = [judged("attributed")]
    found = findings_of(named, [ours], checks(), [], policy(), TODAY)
    gate = gate_of(found, named, [ours], checks(), policy(), TODAY)
    assert each_said(gate.reasons) == ["F-1: high severity, b"]


# --- limitations --------------------------------------------------------------------------------


def limits(**changes: Any) -> str:
    fields: dict[str, Any] = {
        "evidence": [],
        "grade": "dense",
        "checks": checks(),
        "estimates": [estimate("one", exact=True)],
        "verdicts": [judged("no-effect")],
    }
    found = limitations_of(**(fields | changes))
    assert [limit.id for limit in found] == [f"L-{n}" for n in range(1, len(found) + 1)]
    return "\n".join(said(limit.message) for limit in found)


def test_limitations_follow_from_what_was_missing() -> None:
    plain = limits()
    assert "one whole stage of this one training run" in plain
    assert "linearisation" not in plain
    loose = Evidence(name="extra", kind="file", path="x", state="declared")
    assert "Nothing pins the bytes of extra" in limits(evidence=[loose])
    assert "spot-check was not run: reason of" in limits(checks=checks(spot_check="not-run"))
    assert "sampling is inconclusive" in limits(checks=checks(sampling="inconclusive"))
    passed = next(check for check in checks() if check.id == "record-fidelity")
    note = message("optimizer-state-given", stage="one")
    line = CheckDetail(subject="start of one", outcome="pass", notes=(note,))
    given = passed.model_copy(update={"details": (line,)})
    assert "optimizer of one began with state that no recorded" in limits(checks=[given])
    assert "effects of one are estimates" in limits(estimates=[estimate("one", exact=False)])
    assert "no acquittal" in limits(verdicts=[judged("inconclusive")])
    assert "re-run, not read" in limits(grade="sparse")
    assert "signature of the trainer" not in limits(grade="none")
    assert "byte for byte" not in plain
    assert "(train:loss)" in limits(besides=[message("code-changed", files=["train:loss"])])


@pytest.mark.parametrize(
    ("isolation", "codes"),
    [
        (Isolation(process=False), ["code-ran-in-the-audit"]),
        (
            Isolation(process=True, measures=("files", "network", "processes")),
            ["code-speaks-for-its-model"],
        ),
        (
            Isolation(process=True, measures=("files", "namespaces")),
            ["code-not-kept-from", "code-speaks-for-its-model"],
        ),
    ],
)
def test_what_the_code_could_do_is_a_limitation(isolation: Isolation, codes: list[str]) -> None:
    messages = limits_of_isolation(isolation)
    assert [m.code for m in messages] == codes
    if len(codes) == 2:
        assert said(messages[0]).endswith("did not keep that from network, processes.")


def test_each_matter_of_the_data_is_a_limitation_of_its_own() -> None:
    lines = (
        CheckDetail(
            subject="evaluation of b", outcome="fail", notes=(saying("3 are training examples"),)
        ),
        CheckDetail(subject="columns", outcome="inconclusive", notes=(saying("not compared"),)),
        CheckDetail(subject="batches of one", outcome="pass", notes=(saying("varied"),)),
    )
    use = CheckResult(
        id="data-use",
        title="t",
        discloses=True,
        outcome="fail",
        statistic_name="s",
        reasons=(saying("both"),),
        details=lines,
    )
    found = limits(checks=[*checks(), use])
    assert "Evaluation of b: 3 are training examples." in found
    assert "Columns: not compared." in found
    assert "varied" not in found
    assert "both" not in found
    assert "data-use was not run: why" in limits(checks=[*checks(), DataUse.skipped(saying("why"))])


def test_what_a_spec_asks_less_of_is_told() -> None:
    data = minimal_spec()
    assert laxer_than_default(Spec.model_validate(data)) == []
    lax = {
        "refinement": {"threshold": 9.0},
        "precision": {"steps": 0},
        "sampling": {"verdicts": 100},
    }
    found = laxer_than_default(Spec.model_validate(data | {"checks": lax}))
    assert found == [
        "checks.refinement.threshold",
        "checks.sampling.verdicts",
        "checks.precision.steps",
    ]
    assert "less than the default of checks.sampling.verdicts" in limits(laxer=found[1:2])
    fewer = {"precision": {"examples": 255}}
    found = laxer_than_default(Spec.model_validate(data | {"checks": fewer}))
    assert found == ["checks.precision.examples"]
    strict = {"refinement": {"threshold": 0.1}, "sampling": {"level": 0.99}}
    assert laxer_than_default(Spec.model_validate(data | {"checks": strict})) == []


def test_a_failed_spot_check_is_a_limitation() -> None:
    assert "spot-check failed: reason of spot-check" in limits(checks=checks(spot_check="fail"))
