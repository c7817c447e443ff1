"""The five rules of a verdict, at their edges and by properties; findings, gate, limitations."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditspec.findings import EVIDENCE_GATES, decide, findings_of, gate_of, limitations_of
from auditspec.results import (
    BehaviorResult,
    CheckResult,
    Concern,
    Effect,
    Estimate,
    Evidence,
    VerdictResult,
)
from auditspec.spec.models import Policy

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
    ids = (*EVIDENCE_GATES, "spot-check", "sampling")
    return [check(id_, outcomes.get(id_.replace("-", "_"), "pass")) for id_ in ids]


def verdict(effects: Sequence[Effect], **options: Any) -> VerdictResult:
    held = options.pop("checks", None) or checks()
    leads = options.pop("leads", 0.95)
    return decide(options.pop("behavior", behavior()), effects, held, leads)


GUILTY = effect("two", 1.0, 2.0, 0.99)
QUIET = effect("one", -0.1, 0.1, 0.01)


# --- rule 1 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["fail", "inconclusive", "not-run"])
@pytest.mark.parametrize("gate", EVIDENCE_GATES)
def test_evidence_that_did_not_pass_stops_every_verdict(gate: str, outcome: str) -> None:
    found = verdict([QUIET, GUILTY], checks=checks(**{gate.replace("-", "_"): outcome}))
    assert (found.verdict, found.rule, found.stages) == ("inconclusive", 1, ())
    assert any(gate in reason for reason in found.reasons)


@pytest.mark.parametrize("gate", EVIDENCE_GATES)
def test_a_gate_that_is_not_there_has_not_passed(gate: str) -> None:
    held = [c for c in checks() if c.id != gate]
    found = verdict([QUIET, GUILTY], checks=held)
    assert (found.verdict, found.stages) == ("inconclusive", ())


def test_no_effects_at_all() -> None:
    found = verdict([])
    assert (found.verdict, found.rule) == ("inconclusive", 1)
    assert found.reasons == ("nothing was estimated",)


# --- rule 2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "low", "high", "expected"),
    [
        ("increase", 0.1, TOLERANCE, "no-effect"),  # at the tolerance is not above it
        ("increase", 0.1, TOLERANCE + 1e-9, "inconclusive"),
        ("increase", -9.0, 0.0, "no-effect"),
        ("decrease", -TOLERANCE, 0.1, "no-effect"),
        ("decrease", -TOLERANCE - 1e-9, 0.1, "inconclusive"),
        ("decrease", 0.0, 9.0, "no-effect"),
    ],
)
def test_no_effect_up_to_the_tolerance(
    direction: str, low: float, high: float, expected: str
) -> None:
    found = verdict([effect("one", low, high, 0.99)], behavior=behavior(direction))
    assert found.verdict == expected
    assert found.rule == (2 if expected == "no-effect" else 5)


@pytest.mark.parametrize(("direction", "sign"), [("increase", 1), ("decrease", -1)])
def test_improvements_beyond_the_tolerance_are_reported_most_helpful_first(
    direction: str, sign: int
) -> None:
    def towards(stage: str, low: float, high: float) -> Effect:
        return effect(stage, *sorted((sign * low, sign * high)), leads=0.3)

    effects = [
        towards("a", -1.0, -TOLERANCE),  # at the tolerance: not beyond it
        towards("b", -2.0, -TOLERANCE - 0.01),
        towards("c", -9.0, -3.0),
        towards("d", -0.1, 0.1),
    ]
    found = verdict(effects, behavior=behavior(direction))
    assert (found.verdict, found.improved_by) == ("no-effect", ("c", "b"))
    guilty = verdict([*effects, towards("e", 2.0, 3.0)], behavior=behavior(direction), leads=0.2)
    assert guilty.improved_by == ("c", "b")


# --- rule 3 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "low", "high"), [("increase", 1.0, 2.0), ("decrease", -2.0, -1.0)]
)
def test_one_stage_above_the_tolerance_is_named(direction: str, low: float, high: float) -> None:
    found = verdict([QUIET, effect("two", low, high, 0.97)], behavior=behavior(direction))
    assert (found.verdict, found.rule, found.stages) == ("attributed", 3, ("two",))
    assert found.confidence == 0.97
    assert ("raised" if direction == "increase" else "lowered") in found.statement
    assert "1.5 logits (1 to 2" in found.statement


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"leads": 0.95}, True),
        ({"leads": 0.9499}, False),
        ({"leads": None}, False),
        ({"low": TOLERANCE}, False),
        ({"low": TOLERANCE + 1e-9}, True),
        ({"exact": False}, False),
    ],
)
def test_each_condition_of_attribution_is_needed(changes: dict[str, Any], named: bool) -> None:
    fields = {"stage": "two", "low": 1.0, "high": 2.0, "leads": 0.99, "exact": True} | changes
    found = verdict([QUIET, effect(**fields)])
    assert (found.verdict == "attributed") is named
    if not named:
        assert (found.verdict, found.rule, found.stages) == ("inconclusive", 5, ())
        assert found.reasons
        assert found.settle


@pytest.mark.parametrize("outcome", ["fail", "not-run", "inconclusive"])
def test_attribution_needs_a_spot_check_that_passed(outcome: str) -> None:
    found = verdict([QUIET, GUILTY], checks=checks(spot_check=outcome))
    assert found.verdict == "inconclusive"
    assert "the spot check did not pass" in found.reasons
    assert verdict([QUIET, GUILTY], checks=[check(g) for g in EVIDENCE_GATES]).verdict == (
        "inconclusive"
    )


def test_the_level_of_leading_is_the_specs() -> None:
    stage = effect("two", 1.0, 2.0, 0.9)
    assert verdict([QUIET, stage], leads=0.9).verdict == "attributed"
    assert verdict([QUIET, stage], leads=0.91).verdict == "inconclusive"


def test_a_clear_leader_is_named_before_others_above_the_tolerance() -> None:
    found = verdict([effect("one", 0.6, 0.8, 0.0), GUILTY, effect("three", 0.51, 0.9)])
    assert (found.verdict, found.stages) == ("attributed", ("two",))
    assert "one" in found.reasons[0]
    assert "three" in found.reasons[0]


# --- rules 4 and 5 ------------------------------------------------------------------------------


def test_stages_that_cannot_be_told_apart_share_in_order_of_effect() -> None:
    found = verdict(
        [effect("one", 0.6, 1.0, 0.1), effect("two", 1.0, 2.0, 0.6), effect("three", 0.8, 2.0, 0.3)]
    )
    assert (found.verdict, found.rule) == ("shared", 4)
    assert found.stages == ("two", "three", "one")
    assert found.confidence is None


def test_shares_need_no_replay_and_two_stages() -> None:
    estimated = [effect(s, 1.0, 2.0, 0.5, exact=False) for s in ("one", "two")]
    found = verdict(estimated, checks=checks(spot_check="fail"))
    assert found.verdict == "shared"
    assert len(found.reasons) == 3  # which one leads; its estimate; the check
    assert set(found.settle) > {"more evaluation examples"}
    assert verdict(estimated[:1]).verdict == "inconclusive"


def test_a_leader_that_is_not_above_the_tolerance_names_nobody() -> None:
    """The wide interval leads; the other is above the tolerance, and may still be smaller."""
    found = verdict([effect("one", 0.2, 9.0, 0.96), effect("two", 0.6, 0.8, 0.04)])
    assert (found.verdict, found.stages) == ("inconclusive", ())
    assert "'one'" in found.reasons[0]


def test_an_effect_without_an_interval_decides_nothing() -> None:
    found = verdict([effect("one", None, None, None, exact=False), GUILTY])
    assert (found.verdict, found.rule) == ("inconclusive", 5)
    assert any("replay" in settle for settle in found.settle)


@pytest.mark.parametrize(
    ("effects", "word"),
    [
        ([effect("one", 0.0, 1.0, 0.5)], "more evaluation examples"),
        ([effect("one", 1.0, 2.0, 0.5), QUIET], "more evaluation examples"),
        ([effect("one", 1.0, 2.0, 0.99, exact=False), QUIET], "an exact replay"),
        ([effect("one", 0.0, 1.0, 0.5, exact=False)], "exact replay of these stages"),
    ],
)
def test_inconclusive_says_what_would_settle_it(effects: list[Effect], word: str) -> None:
    found = verdict(effects)
    assert found.verdict == "inconclusive"
    assert found.reasons
    assert any(word in settle for settle in found.settle)
    assert len(set(found.settle)) == len(found.settle)


@pytest.mark.parametrize(("examples", "named"), [(9, False), (10, True), (None, True)])
def test_a_handful_of_examples_names_nobody(examples: int | None, named: bool) -> None:
    few = behavior().model_copy(update={"examples": examples})
    found = verdict([QUIET, GUILTY], behavior=few)
    assert (found.verdict == "attributed") is named
    assert named or (found.verdict, found.rule, found.settle) == (
        "inconclusive",
        5,
        ("more evaluation examples",),
    )


# --- properties ---------------------------------------------------------------------------------

NUMBERS = st.integers(-40, 40).map(lambda n: n / 8)  # exact in binary, and often at an edge
OUTCOMES = st.sampled_from(["pass", "fail", "inconclusive", "not-run"])


@st.composite
def stages(draw: st.DrawFn) -> list[Effect]:
    count = draw(st.integers(1, 4))
    shares = draw(st.lists(st.integers(0, 100), min_size=count, max_size=count))
    effects = []
    for i in range(count):
        low, value, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
        leads = draw(st.sampled_from([0.0, 0.5, 0.95, 1.0, shares[i] / 100]))
        exact = draw(st.booleans())
        effects.append(effect(f"s{i}", low, high, leads, exact=exact, value=value))
    return effects


def answer(found: VerdictResult) -> tuple[Any, ...]:
    return found.verdict, found.rule, set(found.stages), set(found.improved_by)


@settings(max_examples=200, deadline=None)
@given(stages(), NUMBERS.map(abs), st.sampled_from([0.125, 0.5, 2.0, 1024.0]), OUTCOMES)
def test_the_unit_does_not_matter(
    effects: list[Effect], tolerance: float, factor: float, spot: str
) -> None:
    scaled = [
        e.model_copy(
            update={"low": e.low * factor, "high": e.high * factor, "value": e.value * factor}
        )
        for e in effects
    ]
    held = checks(spot_check=spot)
    one = verdict(effects, behavior=behavior(tolerance=tolerance), checks=held)
    two = verdict(scaled, behavior=behavior(tolerance=tolerance * factor), checks=held)
    assert answer(one) == answer(two)
    assert one.stages == two.stages


@settings(max_examples=200, deadline=None)
@given(stages(), NUMBERS.map(abs), OUTCOMES)
def test_the_sign_convention_does_not_matter(
    effects: list[Effect], tolerance: float, spot: str
) -> None:
    flipped = [
        e.model_copy(update={"low": -e.high, "high": -e.low, "value": -e.value}) for e in effects
    ]
    held = checks(spot_check=spot)
    one = verdict(effects, behavior=behavior("increase", tolerance), checks=held)
    two = verdict(flipped, behavior=behavior("decrease", tolerance), checks=held)
    assert answer(one) == answer(two)
    assert one.stages == two.stages


@settings(max_examples=300, deadline=None)
@given(stages(), NUMBERS.map(abs), st.integers(0, 3), NUMBERS.map(abs), NUMBERS.map(abs))
def test_more_doubt_never_makes_a_stage_answerable(
    effects: list[Effect], tolerance: float, index: int, down: float, up: float
) -> None:
    index %= len(effects)
    old = effects[index]
    wider = [*effects]
    wider[index] = old.model_copy(update={"low": old.low - down, "high": old.high + up})
    before = verdict(effects, behavior=behavior(tolerance=tolerance))
    after = verdict(wider, behavior=behavior(tolerance=tolerance))
    if after.verdict == "attributed":
        assert before.verdict == "attributed"
        assert before.stages == after.stages
    if after.verdict == "no-effect":
        assert before.verdict == "no-effect"
    if before.verdict == "inconclusive":
        assert after.verdict == "inconclusive"


@settings(max_examples=200, deadline=None)
@given(
    stages(),
    NUMBERS.map(abs),
    st.sampled_from(EVIDENCE_GATES),
    st.sampled_from(["fail", "inconclusive", "not-run"]),
    OUTCOMES,
)
def test_bad_evidence_always_is_inconclusive(
    effects: list[Effect], tolerance: float, gate: str, outcome: str, spot: str
) -> None:
    held = checks(**{gate.replace("-", "_"): outcome, "spot_check": spot})
    found = verdict(effects, behavior=behavior(tolerance=tolerance), checks=held)
    assert (found.verdict, found.rule, found.stages) == ("inconclusive", 1, ())


@settings(max_examples=200, deadline=None)
@given(stages(), NUMBERS.map(abs), st.integers(0, 4), OUTCOMES)
def test_a_harmless_stage_changes_nothing(
    effects: list[Effect], tolerance: float, place: int, spot: str
) -> None:
    harmless = effect("harmless", 0.0, 0.0, 0.0)
    more = [*effects[:place], harmless, *effects[place:]]
    held = checks(spot_check=spot)
    before = verdict(effects, behavior=behavior(tolerance=tolerance), checks=held)
    after = verdict(more, behavior=behavior(tolerance=tolerance), checks=held)
    assert answer(before) == answer(after)
    assert before.stages == after.stages


@settings(max_examples=100, deadline=None)
@given(stages(), NUMBERS.map(abs), OUTCOMES, st.randoms(use_true_random=False))
def test_the_order_of_stages_decides_nothing(
    effects: list[Effect], tolerance: float, spot: str, random: Any
) -> None:
    tied = {e.leads for e in effects}
    if len(tied) < len(effects):
        return  # equal probabilities of leading: none of them is above one half
    shuffled = random.sample(effects, len(effects))
    held = checks(spot_check=spot)
    assert answer(verdict(effects, behavior=behavior(tolerance=tolerance), checks=held)) == answer(
        verdict(shuffled, behavior=behavior(tolerance=tolerance), checks=held)
    )


@settings(max_examples=200, deadline=None)
@given(stages(), NUMBERS.map(abs), OUTCOMES)
def test_a_named_stage_is_always_above_the_tolerance(
    effects: list[Effect], tolerance: float, spot: str
) -> None:
    found = verdict(effects, behavior=behavior(tolerance=tolerance), checks=checks(spot_check=spot))
    by_stage = {e.stage: e for e in effects}
    assert all(by_stage[s].low > tolerance for s in found.stages)
    assert all(by_stage[s].high < -tolerance for s in found.improved_by)
    assert bool(found.stages) == (found.verdict in ("attributed", "shared"))
    assert (found.confidence is None) == (found.verdict != "attributed")
    assert found.verdict not in ("inconclusive", "shared") or (found.reasons and found.settle)


# --- findings -----------------------------------------------------------------------------------

TODAY = dt.date(2026, 11, 23)


def policy(**fields: Any) -> Policy:
    return Policy.model_validate(fields)


def suppression(expires: dt.date, behavior: str = "b") -> dict[str, Any]:
    return {"behavior": behavior, "reason": "known", "owner": "Lead", "expires": expires}


def judged(kind: str, id_: str = "b", stages: tuple[str, ...] = ("two",)) -> VerdictResult:
    guilty = kind in ("attributed", "shared")
    return VerdictResult.model_validate(
        {
            "behavior": id_,
            "verdict": kind,
            "rule": 3,
            "stages": stages if guilty else (),
            "improved_by": ("four",),
            "statement": f"statement of {id_}",
        }
    )


def estimate(stage: str, *, exact: bool) -> Estimate:
    return Estimate(
        stage=stage,
        method="replay" if exact else "displacement",
        exact=exact,
        reason="r",
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
    ]
    behaviors = [
        behavior(id_=i, severity=s)
        for i, s in zip("abcd", ("low", "high", "low", "critical"), strict=True)
    ]
    held = [*checks(sampling="inconclusive")]
    estimates = [estimate("one", exact=False), estimate("two", exact=True)]
    first, second = findings_of(verdicts, behaviors, held, estimates, policy(), TODAY)
    assert (first.id, first.behavior, first.severity, first.stages) == (
        "F-1",
        "b",
        "high",
        ("two",),
    )
    assert (second.id, second.behavior, second.severity) == ("F-2", "d", "critical")
    assert "sampling" not in first.evidence
    assert {"record-fidelity", "spot-check"} <= set(first.evidence)
    assert not any("estimate" in text for text in first.alternatives)
    assert any("estimate" in text for text in second.alternatives)
    assert any("four" in text for text in first.alternatives)


@pytest.mark.parametrize(("days", "held"), [(-1, False), (0, True), (1, True)])
def test_a_suppression_counts_until_the_end_of_its_last_day(days: int, held: bool) -> None:
    rules = policy(suppress=[suppression(TODAY + dt.timedelta(days=days))])
    (found,) = findings_of([judged("attributed")], [behavior()], checks(), [], rules, TODAY)
    assert (found.suppressed is not None) is held
    gate = gate_of([found], [judged("attributed")], checks(), rules)
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
    gate = gate_of(found, verdicts, held, rules)
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
    assert gate_of([], [judged("inconclusive")], held, policy()).exit_code == code


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
    return "\n".join(limit.text for limit in found)


def test_limitations_follow_from_what_was_missing() -> None:
    plain = limits()
    assert "one whole stage of this one training run" in plain
    assert "linearisation" not in plain
    loose = Evidence(name="extra", kind="file", path="x", state="declared")
    assert "Nothing pins the bytes of extra" in limits(evidence=[loose])
    assert "spot-check was not run: reason of" in limits(checks=checks(spot_check="not-run"))
    assert "sampling is inconclusive" in limits(checks=checks(sampling="inconclusive"))
    assert "effects of one are estimates" in limits(estimates=[estimate("one", exact=False)])
    assert "no acquittal" in limits(verdicts=[judged("inconclusive")])
    assert "re-run, not read" in limits(grade="sparse")
    assert "signature of the trainer" not in limits(grade="none")
    assert "byte for byte" not in plain
    assert "(train:loss)" in limits(changed_code=["train:loss"])


# --- stages that can replace each other ---------------------------------------------------------


@pytest.mark.parametrize("direction", ["increase", "decrease"])
def test_a_concern_that_arose_and_stayed_is_never_no_effect(direction: str) -> None:
    """Two stages that each suffice: leaving out either changes nothing, and the fault is there."""
    sign = 1 if direction == "increase" else -1
    measured = behavior(direction).model_copy(update={"value": sign * 1.0})
    quiet = [effect(stage, -0.1, 0.1) for stage in ("one", "two")]

    def with_course(before: float, after: float) -> list[Effect]:
        course = {"before": sign * before, "after": sign * after}
        return [quiet[0].model_copy(update=course), quiet[1]]

    arose = verdict(with_course(0.0, 1.0), behavior=measured)
    assert (arose.verdict, arose.rule) == ("inconclusive", 5)
    assert "'one'" in arose.reasons[0]
    assert verdict(with_course(0.0, TOLERANCE), behavior=measured).verdict == "no-effect"
    repaired = measured.model_copy(update={"value": sign * 0.2})  # a later stage took it back
    assert verdict(with_course(0.0, 1.0), behavior=repaired).verdict == "no-effect"
    assert verdict(with_course(1.0, 0.0), behavior=measured).verdict == "no-effect"
