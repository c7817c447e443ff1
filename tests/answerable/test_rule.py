"""The rule on made-up levels, one kind of pipeline after another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import TOLERANCE, case, course, run

from auditspec.answerable.rule import MissingArmError, Rule, decide
from auditspec.estimator.interventions import INITIAL, Arm, change_before

FOUR = ("pre", "vendor", "mid", "polish")
UNABLE = {"pre:end": 0.0, "vendor:end": 0.1, "mid:end": 0.1, "polish:end": 0.1}


def singles(**levels: list[float]) -> dict[tuple[str, ...], object]:
    """The arms without one stage each, by the levels at the ends that are left."""
    return {
        (stage,): run(FOUR, ends, omitted=[stage], skills=UNABLE if stage == "pre" else None)
        for stage, ends in levels.items()
    }


def test_within_the_limit_nobody_is_answerable_whatever_happened_on_the_way() -> None:
    recorded = run(FOUR, [0.0, 0.9, 0.05, 0.1])
    arms = singles(
        pre=[0.9, 0.9, 0.9], vendor=[0.0, 0.0, 0.0], mid=[0.0, 0.9, 0.8], polish=[0, 0.9, 0.05]
    )
    found = decide(case(FOUR, recorded, arms))
    assert (found.parties, found.ending) == (frozenset(), "within")


def test_a_poisoned_stage_is_named_and_clean_pretraining_is_not() -> None:
    """Without pretraining the model is at chance: it is needed for everything, and raised nothing."""
    recorded = run(FOUR, [0.02, 0.8, 0.75, 0.7])
    arms = singles(
        pre=[0.1, 0.1, 0.1],
        vendor=[0.02, 0.03, 0.03],
        mid=[0.02, 0.8, 0.78],
        polish=[0.02, 0.8, 0.75],
    )
    found = decide(case(FOUR, recorded, arms))
    assert (found.parties, found.ending, found.joint) == ({"vendor"}, "removed", False)
    assert found.removed == Arm.without("vendor")


def test_of_two_stages_that_each_suffice_both_are_named() -> None:
    """The second shows its rise only where the first is gone."""
    recorded = run(FOUR, [0.0, 0.9, 0.95, 0.95])
    arms = singles(
        pre=[0.1, 0.1, 0.1], vendor=[0.0, 0.9, 0.9], mid=[0.0, 0.9, 0.9], polish=[0.0, 0.9, 0.95]
    )
    with pytest.raises(MissingArmError) as missing:
        decide(case(FOUR, recorded, arms))
    assert missing.value.arm == Arm.without("vendor", "mid")
    arms["vendor", "mid"] = run(FOUR, [0.0, 0.02], omitted=["vendor", "mid"])
    found = decide(case(FOUR, recorded, arms))
    assert found.parties == {"vendor", "mid"}
    assert not found.joint  # the return of either brings it back


def test_a_fault_in_pieces_below_the_tolerance_is_a_joint_cause() -> None:
    stages = ("pre", "a", "b", "c")
    recorded = run(stages, [0.0, 0.07, 0.14, 0.21])
    arms = {
        ("pre",): run(
            stages,
            [0.1] * 3,
            omitted=["pre"],
            skills=dict.fromkeys(("a:end", "b:end", "c:end"), 0.0),
        )
    }
    for left in ("a", "b", "c"):
        arms[left,] = run(stages, [0.0, 0.07, 0.14], omitted=[left])
    for pair in (("a", "b"), ("a", "c"), ("b", "c")):
        arms[pair] = run(stages, [0.0, 0.07], omitted=pair)
    arms["a", "b", "c"] = run(stages, [0.0], omitted=("a", "b", "c"))
    found = decide(case(stages, recorded, arms))
    assert found.ending == "removed"
    assert found.joint
    assert len(found.parties) >= 2
    assert found.parties <= {"a", "b", "c"}


def test_pretraining_that_was_poisoned_is_named_by_its_path() -> None:
    """Nothing able is left without it; it ended beyond the bar, and so did every later stage."""
    recorded = run(FOUR, [0.8, 0.7, 0.65, 0.6])
    arms = singles(
        pre=[0.1, 0.1, 0.1], vendor=[0.8, 0.7, 0.66], mid=[0.8, 0.7, 0.65], polish=[0.8, 0.7, 0.65]
    )
    found = decide(case(FOUR, recorded, arms))
    assert (found.parties, found.ending) == ({"pre"}, "persists")


def test_undertrained_pretraining_below_the_uninformed_level_is_no_fault() -> None:
    """Between the limit and knowing nothing lies lack of skill."""
    recorded = run(FOUR, [0.5, 0.5, 0.5, 0.5])
    arms = singles(pre=[0.5] * 3, vendor=[0.5] * 3, mid=[0.5] * 3, polish=[0.5] * 3)
    found = decide(case(FOUR, recorded, arms, uninformed=0.5))
    assert (found.parties, found.ending) == (frozenset(), "unexplained")


def test_reference_data_tells_poisoned_pretraining_by_a_run_with_it() -> None:
    recorded = run(FOUR, [0.8, 0.7, 0.65, 0.6])
    arms: dict[object, object] = dict(
        singles(
            pre=[0.1] * 3, vendor=[0.8, 0.7, 0.66], mid=[0.8, 0.7, 0.65], polish=[0.8, 0.7, 0.65]
        )
    )
    replaced = Arm(replaced=frozenset({"pre"}))
    arms[replaced] = run(FOUR, [0.01, 0.02, 0.02, 0.02])
    found = decide(case(FOUR, recorded, arms, replaceable=["pre"]))
    assert (found.parties, found.ending, found.removed) == ({"pre"}, "removed", replaced)


@pytest.mark.parametrize("draws", [[0.9] * 12, [0.0] * 12])
def test_poisoned_first_weights_of_a_factory_are_told_from_an_unlucky_draw(
    draws: list[float],
) -> None:
    recorded = run(FOUR, [0.7, 0.7, 0.7, 0.7], initial=0.9)
    arms = {(stage,): run(FOUR, [0.7] * 3, initial=0.9, omitted=[stage]) for stage in FOUR}
    found = decide(case(FOUR, recorded, arms, draws={INITIAL: draws}))
    if draws[0]:
        assert (found.parties, found.ending) == ({INITIAL}, "persists")
    else:
        assert INITIAL not in found.parties


def test_given_weights_that_were_poisoned_are_inherited() -> None:
    able = {"initial": 0.9}
    recorded = run(FOUR, [0.9, 0.85, 0.8, 0.8], initial=1.0, skills=able)
    arms = {(s,): run(FOUR, [0.9, 0.85, 0.8], initial=1.0, omitted=[s], skills=able) for s in FOUR}
    found = decide(case(FOUR, recorded, arms, given=True))
    assert (found.parties, found.ending) == ({INITIAL}, "persists")


def test_without_a_limit_the_beginning_is_neither_named_nor_cleared() -> None:
    able = {"initial": 0.9}
    recorded = run(FOUR, [0.9, 0.9, 0.9, 0.9], initial=0.9, skills=able)
    arms = {(s,): run(FOUR, [0.9, 0.9, 0.9], initial=0.9, omitted=[s], skills=able) for s in FOUR}
    found = decide(case(FOUR, recorded, arms, given=True, limit=None))
    assert (found.parties, found.ending) == (frozenset(), "within")


def test_a_fault_that_a_change_of_the_model_brought() -> None:
    stages = ("pre", "review")
    starts = {"review": 0.9}
    recorded = run(stages, [0.0, 0.9], starts=starts)
    arms = {
        ("pre",): run(stages, [0.9], omitted=["pre"], starts=starts, skills={"review:end": 0.0}),
        ("review",): run(stages, [0.0], omitted=["review"], starts=starts),
    }
    found = decide(case(stages, recorded, arms, changed=["review"]))
    assert (found.parties, found.ending) == ({change_before("review")}, "persists")


def test_a_clean_new_head_is_not_named_and_the_biased_stage_before_it_is() -> None:
    """The head's stage restores what the body holds: its rise is not its own where the bias is gone."""
    stages = ("pre", "vendor", "head")
    fresh = {"head": 0.1}
    lost = {"head:start": 0.0}
    recorded = run(stages, [0.0, 0.9, 0.8], starts=fresh, skills=lost)
    unable = {"head:end": 0.1, "vendor:end": 0.0}
    arms = {
        ("pre",): run(stages, [0.1, 0.1], omitted=["pre"], starts=fresh, skills=lost | unable),
        ("vendor",): run(stages, [0.0, 0.02], omitted=["vendor"], starts=fresh, skills=lost),
        ("head",): run(stages, [0.0, 0.9], omitted=["head"], starts=fresh, skills=lost),
    }
    found = decide(case(stages, recorded, arms, changed=["head"]))
    assert (found.parties, found.ending) == ({"vendor"}, "removed")


def test_a_clean_stage_that_amplifies_a_fault_is_not_named() -> None:
    """Its rise is gone where the culprit is."""
    recorded = run(FOUR, [0.0, 0.4, 0.9, 0.9])
    arms = singles(
        pre=[0.1] * 3, vendor=[0.0, 0.0, 0.0], mid=[0.0, 0.4, 0.4], polish=[0.0, 0.4, 0.9]
    )
    arms["vendor", "mid"] = run(FOUR, [0.0, 0.0], omitted=["vendor", "mid"])
    found = decide(case(FOUR, recorded, arms))
    assert "vendor" in found.parties
    assert "mid" not in found.parties


def test_a_stage_that_caused_a_part_by_itself_is_named_too() -> None:
    recorded = run(FOUR, [0.0, 0.5, 0.9, 0.9])
    arms = singles(
        pre=[0.1] * 3, vendor=[0.0, 0.4, 0.4], mid=[0.0, 0.5, 0.5], polish=[0.0, 0.5, 0.9]
    )
    arms["vendor", "mid"] = run(FOUR, [0.0, 0.0], omitted=["vendor", "mid"])
    assert decide(case(FOUR, recorded, arms)).parties == {"vendor", "mid"}


def test_a_level_that_cannot_be_read_accuses_nobody_for_what_came_before() -> None:
    """The rise after an unread state may be an earlier stage's."""
    recorded = course(
        {"initial": 0.0, "pre:end": 0.0, "mid:end": 0.9, "polish:end": 0.9}, {"initial": 0.0}
    )
    unable = {"mid:end": 0.0, "polish:end": 0.0}
    arms = {
        (s,): course({"initial": 0.0, "pre:end": 0.0, "mid:end": 0.9, "polish:end": 0.9}, unable)
        for s in FOUR
    }
    found = decide(case(FOUR, recorded, arms))
    assert "mid" not in found.parties


LEVEL = st.floats(0, 1)


@st.composite
def drawn_cases(draw: st.DrawFn) -> object:
    """Any levels and skills, every arm made."""
    stages = ("a", "b", "c")

    def drawn(omitted: tuple[str, ...]) -> object:
        left = [s for s in stages if s not in omitted]
        skills = {f"{s}:end": draw(st.sampled_from([0.0, 0.6, 1.0])) for s in left}
        return run(
            stages,
            [draw(LEVEL) for _ in left],
            initial=draw(LEVEL),
            omitted=omitted,
            skills=skills | {"initial": draw(st.sampled_from([0.0, 0.7]))},
        )

    arms = {
        tuple(s for s, out in zip(stages, mask, strict=True) if out): None
        for mask in [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
        if any(mask)
    }
    return case(
        stages,
        drawn(()),
        {left_out: drawn(left_out) for left_out in arms},  # type: ignore[misc]
        limit=draw(st.sampled_from([0.1, 0.4, None])),
        given=draw(st.booleans()),
        bounded=draw(st.booleans()),
    )


@settings(max_examples=300, deadline=None)
@given(drawn_cases())
def test_whatever_the_levels_the_answer_is_coherent(drawn: object) -> None:
    found = decide(drawn)  # type: ignore[arg-type]
    rule = Rule(drawn)  # type: ignore[arg-type]
    beyond = rule.end(Arm()) > TOLERANCE
    assert (found.ending == "within") is not beyond
    assert bool(found.parties) is (found.ending in ("removed", "partly-removed", "persists"))
    assert found.parties <= set(drawn.pipeline.parties)  # type: ignore[attr-defined]
    if found.ending == "removed":
        assert rule.end(found.removed) <= TOLERANCE
    if drawn.concern.limit is None:  # type: ignore[attr-defined]
        assert INITIAL not in found.parties
