"""The five rules of a verdict, at their edges and by properties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdict_cases import TOLERANCE, behavior, check, checks, effect

from auditspec.results import CheckDetail, CheckResult, Effect, VerdictResult
from auditspec.verdicts import (
    CONFIDENCE_CAPS,
    ESTIMATE_GATES,
    EVIDENCE_GATES,
    SAMPLED_CAP,
    decide,
)


def verdict(effects: Sequence[Effect], **options: Any) -> VerdictResult:
    held = options.pop("checks", None) or checks()
    leads = options.pop("leads", 0.95)
    grade = options.pop("grade", "dense")
    return decide(options.pop("behavior", behavior()), effects, held, grade=grade, leads=leads)


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
    found = verdict(estimated, checks=checks(spot_check="not-run"))
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
    little = verdict(with_course(0.0, TOLERANCE / 2), behavior=measured)
    assert (little.verdict, little.rule) == ("inconclusive", 5)  # as one of many, a little each
    near = measured.model_copy(update={"value": sign * TOLERANCE})
    assert verdict(with_course(0.0, TOLERANCE), behavior=near).verdict == "no-effect"
    repaired = measured.model_copy(update={"value": sign * 0.2})  # a later stage took it back
    assert verdict(with_course(0.0, 1.0), behavior=repaired).verdict == "no-effect"
    assert verdict(with_course(1.0, 0.0), behavior=measured).verdict == "no-effect"


# --- gates of the estimate ----------------------------------------------------------------------


def gate(id_: str, outcome: str, *details: CheckDetail) -> list[CheckResult]:
    """Checks that pass, but for one."""
    return [
        c.model_copy(update={"outcome": outcome, "details": details}) if c.id == id_ else c
        for c in checks()
    ]


@pytest.mark.parametrize("outcome", ["fail", "inconclusive", "not-run"])
@pytest.mark.parametrize("id_", ESTIMATE_GATES)
def test_an_estimate_that_is_not_to_be_relied_on_names_nobody(id_: str, outcome: str) -> None:
    found = verdict([QUIET, GUILTY], checks=gate(id_, outcome))
    assert (found.verdict, found.rule, found.stages) == ("inconclusive", 5, ())
    assert found.reasons == (f"{id_}: reason of {id_}",)
    assert found.settle == (ESTIMATE_GATES[id_],)
    harmless = verdict([QUIET], checks=gate(id_, outcome))
    assert harmless.verdict == "inconclusive"  # nor does it acquit


@pytest.mark.parametrize("id_", ESTIMATE_GATES)
def test_a_gate_of_the_estimate_that_is_not_there_has_not_passed(id_: str) -> None:
    found = verdict([QUIET, GUILTY], checks=[c for c in checks() if c.id != id_])
    assert found.reasons == (f"{id_}: the check is missing",)


@pytest.mark.parametrize(("about", "named"), [("b", False), (None, False), ("another", True)])
def test_a_gate_bars_the_behaviours_of_its_failed_lines(about: str | None, named: bool) -> None:
    lines = (
        CheckDetail(subject="line", outcome="fail", behavior=about, note="too far"),
        CheckDetail(subject="good", outcome="pass", behavior="b"),
    )
    found = verdict([QUIET, GUILTY], checks=gate("precision", "fail", *lines))
    assert (found.verdict == "attributed") is named
    if not named:
        assert found.reasons == ("precision: line: too far",)


# --- the evidence caps the confidence -----------------------------------------------------------


@pytest.mark.parametrize(("grade", "cap"), [(g, c) for g, c in CONFIDENCE_CAPS.items()])
def test_the_grade_of_the_evidence_caps_the_confidence(grade: str, cap: float) -> None:
    certain = effect("two", 1.0, 2.0, 1.0)
    found = verdict([QUIET, certain], grade=grade)
    if cap >= 0.95:
        assert (found.verdict, found.confidence) == ("attributed", cap)
        assert f"capped at {cap:g}" in found.reasons[-1]
    else:
        assert found.verdict == "inconclusive"
        assert any("evidence carries" in reason for reason in found.reasons)
        assert "a training record with every step, re-run as a whole" in found.settle


def test_better_evidence_never_carries_less() -> None:
    order = ["none", "boundaries", "sparse", "dense"]
    caps = [CONFIDENCE_CAPS[grade] for grade in order]  # type: ignore[index]
    assert caps == sorted(caps)
    assert len(set(caps)) == len(caps)


def test_a_record_that_was_re_run_in_part_carries_less() -> None:
    held = [
        c.model_copy(update={"coverage": 0.5}) if c.id == "record-fidelity" else c for c in checks()
    ]
    found = verdict([QUIET, effect("two", 1.0, 2.0, 1.0)], checks=held)
    assert (found.verdict, found.confidence) == ("attributed", SAMPLED_CAP)


def test_a_confidence_below_the_cap_is_stated_as_it_is() -> None:
    found = verdict([QUIET, effect("two", 1.0, 2.0, 0.955)])
    assert (found.confidence, found.reasons) == (0.955, ())


# --- estimates that exact replay refuted --------------------------------------------------------


@pytest.mark.parametrize(("about", "named"), [("b", "inconclusive"), ("another", "no-effect")])
def test_an_estimator_that_was_refuted_acquits_nobody(about: str, named: str) -> None:
    line = CheckDetail(
        subject="one / b", outcome="fail", behavior=about, note="estimate +5, exact -3"
    )
    quiet = [effect("one", -3.1, -2.9), effect("two", -0.1, 0.1, exact=False)]
    found = verdict(quiet, checks=gate("spot-check", "fail", line))
    assert found.verdict == named
    if named == "inconclusive":
        assert found.reasons == ("spot-check: one / b: estimate +5, exact -3",)
        assert any("exact replay" in settle for settle in found.settle)
    exact = [e.model_copy(update={"exact": True}) for e in quiet]
    assert verdict(exact, checks=gate("spot-check", "fail", line)).verdict == "no-effect"


def test_stages_that_could_not_be_read_are_told_where_nobody_is_named() -> None:
    read = QUIET.model_copy(update={"before": 0.0, "after": 0.0})
    found = verdict([read, effect("two", -0.1, 0.1)])
    assert found.verdict == "no-effect"
    assert "where two began and ended could not be read" in found.reasons[0]
    assert verdict([QUIET, effect("two", -0.1, 0.1)]).reasons == ()  # nothing was read at all
