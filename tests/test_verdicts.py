"""The rules of a verdict, at their edges; the levels are made up, so that the right answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from said import said, saying
from verdict_cases import (
    LIMIT,
    RESAMPLES,
    TOLERANCE,
    behavior,
    check,
    checks,
    guilty_vendor,
    harmless,
    parties,
    path,
    published,
    tally,
)

from auditspec.checks import CHECKS
from auditspec.estimator.interventions import INITIAL, Arm
from auditspec.results import CheckDetail, CheckResult, Draws, Path, Tally, VerdictResult
from auditspec.verdicts import (
    CONFIDENCE_CAPS,
    EVIDENCE_GATES,
    SAMPLED_CAP,
    decide,
)

VENDOR = tally("removed", "vendor")


def verdict(
    paths: Sequence[Path] | None = None, *tallies: Tally, value: float = 0.7, **options: Any
) -> VerdictResult:
    concern = {
        k: options.pop(k)
        for k in ("direction", "limit", "uninformed", "bounded", "examples")
        if k in options
    }
    subject = behavior(value=value, **concern)
    held = guilty_vendor() if paths is None else paths
    return decide(subject, tallies or (VENDOR,), published(held, **options))


def roles(found: VerdictResult) -> dict[str, str]:
    return {role.party: role.role for role in found.roles}


# --- evidence and examples ------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["fail", "inconclusive", "not-run"])
@pytest.mark.parametrize("gate", EVIDENCE_GATES)
def test_evidence_that_did_not_pass_stops_every_verdict(gate: str, outcome: str) -> None:
    for paths in (guilty_vendor(), harmless()):
        found = verdict(paths, held=checks(**{gate.replace("-", "_"): outcome}))
        assert (found.verdict, found.ending, found.parties) == ("inconclusive", "evidence", ())
        assert gate in said(found.reasons)


@pytest.mark.parametrize("gate", EVIDENCE_GATES)
def test_a_gate_that_is_not_there_has_not_passed(gate: str) -> None:
    found = verdict(held=[c for c in checks() if c.id != gate])
    assert (found.verdict, found.parties) == ("inconclusive", ())


def test_nothing_estimated() -> None:
    found = decide(behavior(), (), published([]))
    assert (found.verdict, found.ending) == ("inconclusive", "estimate")
    assert said(found.reasons) == "reason of refinement"


@pytest.mark.parametrize(("examples", "named"), [(9, False), (10, True), (None, True)])
def test_a_handful_of_examples_names_nobody(examples: int | None, named: bool) -> None:
    found = verdict(examples=examples)
    assert (found.verdict == "attributed") is named
    assert (found.ending == "examples") is not named


# --- naming ---------------------------------------------------------------------------------------


def test_the_stage_that_raised_it_is_named_and_pretraining_is_an_enabler() -> None:
    found = verdict()
    assert (found.verdict, found.ending, found.parties) == ("attributed", "removed", ("vendor",))
    assert roles(found) == {INITIAL: "none", "pre": "enabler", "vendor": "cause", "polish": "none"}
    assert said(found.statement) == (
        "Stage 'vendor' is answerable: without it the level would be 3 %, not 70 %."
    )
    by_party = {r.party: r for r in found.roles}
    assert by_party["vendor"].rise == pytest.approx(0.75 - 0.1)  # over the limit less the tolerance
    assert by_party["vendor"].effect == pytest.approx(0.67)
    assert by_party[INITIAL].effect is None


def test_the_sign_convention_does_not_matter() -> None:
    """A share that must not fall below 1 - limit, with every level mirrored."""
    found = decide(
        behavior("decrease", limit=1 - LIMIT, value=0.3, uninformed=0.9),
        (VENDOR,),
        published(guilty_vendor(sign=-1.0, shift=1.0)),
    )
    same = verdict()
    assert (found.verdict, found.parties, roles(found)) == (same.verdict, same.parties, roles(same))
    for ours, theirs in zip(found.roles, same.roles, strict=True):
        assert ours.rise == (None if theirs.rise is None else pytest.approx(theirs.rise))


@pytest.mark.parametrize(
    ("tallies", "expected", "named"),
    [
        (
            (tally("removed", "vendor", count=95), tally("within", count=5)),
            "attributed",
            ("vendor",),
        ),
        ((tally("removed", "vendor", count=94), tally("within", count=6)), "inconclusive", ()),
        ((tally("removed", "vendor", count=94), tally("unexplained", count=6)), "inconclusive", ()),
        ((tally("removed", "vendor", count=94),), "inconclusive", ()),
        (
            (tally("removed", "vendor", count=50), tally("removed", "polish", count=50)),
            "inconclusive",
            (),
        ),
        (
            (tally("removed", "vendor", count=60), tally("removed", "polish", "vendor", count=40)),
            "attributed",
            ("vendor",),
        ),
    ],
)
def test_the_resamples_must_agree(
    tallies: tuple[Tally, ...], expected: str, named: tuple[str, ...]
) -> None:
    found = verdict(None, *tallies)
    assert (found.verdict, found.parties) == (expected, named)
    if not named:
        assert found.reasons
        assert found.settle


def test_whoever_is_named_now_and_then_is_undetermined() -> None:
    found = verdict(
        None, tally("removed", "vendor", count=60), tally("removed", "polish", "vendor", count=40)
    )
    assert roles(found)["polish"] == "undetermined"
    assert "'polish'" in said(found.reasons)


def test_two_that_suffice_each_are_shared_or_one_or_more() -> None:
    stages = ("pre", "v1", "v2")
    levels = {"initial": 0.0, "pre:end": 0.0, "v1:end": 0.9, "v2:end": 0.95}
    paths = [
        path((), levels),
        path(("omit pre",), {"v1:end": 0.1, "v2:end": 0.1}, skills={"v2:end": 0.0}),
        path(("omit v1",), {"v2:end": 0.9}),
        path(("omit v2",), {}),
        path(("omit v1", "omit v2"), {}),
    ]
    both = published(paths, who=parties(stages))
    found = decide(behavior(value=0.95), (tally("removed", "v1", "v2"),), both)
    assert (found.verdict, found.parties) == ("shared", ("v1", "v2"))
    assert said(found.statement) == (
        "Stage 'v1' and stage 'v2' are answerable: without them the level would be 0 %, not 95 %."
    )
    mixed = (
        tally("removed", "v1", "v2", count=40),
        tally("removed", "v1", count=30),
        tally("removed", "v2", count=30),
    )
    found = decide(behavior(value=0.95), mixed, both)
    assert (found.verdict, found.parties) == ("one-or-more", ("v1", "v2"))
    assert roles(found) == {
        INITIAL: "none",
        "pre": "enabler",
        "v1": "one-or-more",
        "v2": "one-or-more",
    }
    assert said(found.statement).startswith("One or more of stage 'v1' and stage 'v2'")


def inherited(origin: str) -> Any:
    able = {"initial": 0.9}
    levels = {"initial": 0.9, "pre:end": 0.9, "vendor:end": 0.85, "polish:end": 0.8}
    rest = {"pre:end": 0.9, "vendor:end": 0.85, "polish:end": 0.8}
    paths = [path((), levels, skills=able)]
    for stage in ("pre", "vendor", "polish"):
        first = {"pre": 1, "vendor": 2, "polish": 3}[stage]
        paths.append(path((f"omit {stage}",), dict(list(rest.items())[first:])))
    return published(paths, who=parties(origin=origin))


@pytest.mark.parametrize("origin", ["given", "unknown"])
def test_a_fault_of_given_weights_is_inherited(origin: str) -> None:
    found = decide(behavior(value=0.8), (tally("persists", INITIAL),), inherited(origin))
    assert (found.verdict, found.parties) == ("attributed", (INITIAL,))
    assert roles(found)[INITIAL] == "inherited"
    assert said(found.statement).startswith("The fault was inherited with the initial weights")
    assert ("unexplained" in said(found.reservations)) is (origin == "unknown")


@pytest.mark.parametrize("origin", ["given", "unknown"])
def test_a_model_that_was_bad_from_the_start_is_never_harmless_without_a_limit(origin: str) -> None:
    """No state of its training is better; that is no acquittal of a model that is worse than nothing."""
    found = decide(behavior(limit=None, value=0.8), (tally("within"),), inherited(origin))
    assert (found.verdict, found.parties) == ("inconclusive", ())
    assert "limit" in said(found.settle)


# --- nobody ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tallies", "expected"),
    [
        ((tally("within"),), "absent"),
        ((tally("within", count=95), tally("removed", "vendor", count=5)), "absent"),
        ((tally("within", count=94), tally("removed", "vendor", count=6)), "inconclusive"),
        ((tally("within", count=94),), "inconclusive"),
    ],
)
def test_within_the_limit(tallies: tuple[Tally, ...], expected: str) -> None:
    found = verdict(harmless(), *tallies, value=0.03)
    assert (found.verdict, found.parties) == (expected, ())
    if expected == "absent":
        assert found.limit == "stated"
        assert (
            said(found.statement) == "The deployed model is within the limit: 3 %, not above 20 %."
        )


def test_an_absent_fault_needs_no_estimate() -> None:
    failed = checks(refinement="fail", precision="fail", linearity="not_run".replace("_", "-"))
    found = verdict(harmless(exact=False), tally("within"), value=0.03, held=failed)
    assert found.verdict == "absent"


@pytest.mark.parametrize(
    "gate", [kind.id for kind in CHECKS if kind.bars in ("estimated", "behavior")]
)
def test_without_a_limit_an_estimate_that_is_not_to_be_relied_on_clears_nobody(gate: str) -> None:
    held = [check(c.id, "fail") if c.id == gate else c for c in checks()]
    found = verdict(harmless(exact=False), tally("within"), value=0.03, limit=None, held=held)
    assert (found.verdict, found.ending) == ("inconclusive", "estimate")
    good = verdict(harmless(exact=False), tally("within"), value=0.03, limit=None)
    assert good.verdict == "no-effect"
    assert good.limit == "self"
    assert "neither named nor cleared" in said(good.reservations)


def test_a_repaired_fault_is_told() -> None:
    stages = ("pre", "vendor", "repair")
    levels = {"initial": 0.0, "pre:end": 0.0, "vendor:end": 0.9, "repair:end": 0.05}
    lost = {"vendor:end": 0.1, "repair:end": 0.1}
    paths = [
        path((), levels),
        path(("omit pre",), {"vendor:end": 0.1, "repair:end": 0.1}, skills=lost),
        path(("omit vendor",), {"repair:end": 0.02}),
        path(("omit repair",), {}),
    ]
    found = decide(behavior(value=0.05), (tally("within"),), published(paths, who=parties(stages)))
    assert found.verdict == "absent"
    assert roles(found)["repair"] == "repaired"
    assert found.masked_by == ("repair",)
    notes = {role.party: role.notes for role in found.roles}
    assert said(notes["vendor"]) == "raised it; gone from the deployed model"


# --- what a named verdict rests on ----------------------------------------------------------------


def test_nobody_is_named_by_an_estimated_run() -> None:
    found = verdict(guilty_vendor(exact=False))
    assert (found.verdict, found.ending, found.parties) == ("inconclusive", "estimate", ())
    assert said(found.reasons[0]) == "the run without stage 'vendor' is estimated, not replayed"
    assert roles(found)["vendor"] == "undetermined"


def test_the_estimates_of_others_do_not_stand_in_the_way() -> None:
    """What their errors may change is in the resamples already."""
    paths = guilty_vendor()
    paths[1] = path(
        ("omit pre",),
        {"vendor:end": 0.1, "polish:end": 0.1},
        exact=False,
        skills={"vendor:end": 0.1, "polish:end": 0.1},
    )
    assert verdict(paths, held=checks(refinement="fail")).verdict == "attributed"


@pytest.mark.parametrize(("about", "named"), [(None, False), ("b", False), ("other", True)])
def test_a_failed_precision_bars_the_behaviours_of_its_lines(
    about: str | None, named: bool
) -> None:
    detail = CheckDetail(subject="s", outcome="fail", behavior=about)
    held = [
        check(c.id, "fail", details=[detail.model_dump()]) if c.id == "precision" else c
        for c in checks()
    ]
    assert (verdict(held=held).verdict == "attributed") is named


def test_a_run_that_was_not_made_leaves_it_open() -> None:
    stages = ("pre", "v1", "v2")
    levels = {"initial": 0.0, "pre:end": 0.0, "v1:end": 0.9, "v2:end": 0.95}
    paths = [
        path((), levels),
        path(("omit pre",), {"v1:end": 0.1, "v2:end": 0.1}, skills={"v2:end": 0.0}),
        path(("omit v1",), {"v2:end": 0.9}),
        path(("omit v2",), {}),
    ]
    found = decide(behavior(value=0.95), (), published(paths, who=parties(stages)))
    assert (found.verdict, found.ending) == ("inconclusive", "estimate")
    assert said(found.reasons) == "the run without stage 'v1' and stage 'v2' was not made"


@pytest.mark.parametrize(("grade", "cap"), list(CONFIDENCE_CAPS.items()))
def test_the_grade_of_the_evidence_caps_the_confidence(grade: str, cap: float) -> None:
    found = verdict(grade=grade)
    if cap >= 0.95:
        assert found.confidence == cap
    else:
        assert (found.verdict, found.confidence) == ("inconclusive", None)


def test_a_record_that_was_re_run_in_part_carries_less() -> None:
    held = [
        c.model_copy(update={"coverage": 0.5}) if c.id == "record-fidelity" else c for c in checks()
    ]
    assert verdict(held=held).confidence == SAMPLED_CAP


def test_a_share_below_the_cap_is_stated_as_it_is() -> None:
    found = verdict(None, tally("removed", "vendor", count=96), tally("within", count=4))
    assert found.confidence == pytest.approx(0.96)


def test_draws_of_the_start_decide_whether_it_counts() -> None:
    levels = {"initial": 0.9, "pre:end": 0.9, "vendor:end": 0.85, "polish:end": 0.8}
    rest = list(levels.items())[1:]
    paths = [path((), levels)] + [
        path((f"omit {s}",), dict(rest[n + 1 :])) for n, s in enumerate(("pre", "vendor", "polish"))
    ]
    planted = Draws(behavior="b", party=INITIAL, levels=(0.9,) * 12, identical=False)
    found = decide(
        behavior(value=0.8), (tally("persists", INITIAL),), published(paths, draws=[planted])
    )
    assert found.parties == (INITIAL,)
    lucky = planted.model_copy(update={"levels": (0.0,) * 11 + (0.9,)})
    found = decide(
        behavior(value=0.8), (tally("persists", "pre"),), published(paths, draws=[lucky])
    )
    assert INITIAL not in found.parties


def test_arms_in_words() -> None:
    assert Arm().words == "as recorded"
    assert Arm.without("a", "b").words == "without stage 'a' and stage 'b'"
    both = Arm(frozenset({"a"}), frozenset({INITIAL, "b"}))
    assert both.words == (
        "without stage 'a' and with reference data for stage 'b' and with reference weights for the initial "
        "weights"
    )


def test_the_constants_of_these_cases_are_a_limit_and_a_tolerance() -> None:
    assert 0 < TOLERANCE < LIMIT
    assert RESAMPLES >= 60


# --- what a verdict rests on ----------------------------------------------------------------------

OF_EVIDENCE = {*EVIDENCE_GATES, "commitment", "asked-again"}
ALWAYS = OF_EVIDENCE | {"sampling"}


def test_a_name_behind_exact_replays_rests_on_no_check_of_estimates() -> None:
    assert set(verdict().rests_on) == ALWAYS | {"precision", "off-path"}


def test_a_name_on_an_estimated_run_rests_on_what_is_known_of_estimates() -> None:
    found = verdict(guilty_vendor(exact=False))
    estimated = {"refinement", "linearity", "spot-check"}
    assert set(found.rests_on) == ALWAYS | {"precision", "off-path"} | estimated


def test_what_is_within_a_limit_rests_on_no_estimate() -> None:
    assert set(verdict(harmless(), tally("within"), value=0.03).rests_on) == ALWAYS


@pytest.mark.parametrize("exact", [True, False])
def test_a_clearance_without_a_limit_rests_on_every_check_of_the_estimate(exact: bool) -> None:
    found = verdict(harmless(exact=exact), tally("within"), value=0.03, limit=None)
    asked = {"precision", "off-path", "refinement", "linearity"}
    assert set(found.rests_on) == ALWAYS | asked | (set() if exact else {"spot-check"})


def test_without_evidence_it_rests_on_nothing_else() -> None:
    assert set(verdict(held=checks(record_fidelity="fail")).rests_on) == OF_EVIDENCE


@pytest.mark.parametrize(
    ("outcome", "named", "rests"),
    [("not-run", True, False), ("inconclusive", True, True), ("fail", False, True)],
)
def test_a_commitment_is_in_the_way_only_where_it_was_not_followed(
    outcome: str, named: bool, rests: bool
) -> None:
    found = verdict(held=checks(commitment=outcome))
    assert (found.verdict == "attributed") is named
    assert ("commitment" in found.rests_on) is rests


def test_too_few_examples_are_a_matter_of_sampling() -> None:
    assert set(verdict(examples=9).rests_on) == ALWAYS


def test_a_check_of_another_distribution_bars_by_what_its_result_says() -> None:
    mine = {
        "id": "mine",
        "title": "t",
        "statistic_name": "s",
        "outcome": "fail",
        "reasons": (saying("so"),),
    }
    results = {
        bars: verdict(held=[*checks(), CheckResult.model_validate(mine | {"bars": bars})])
        for bars in ("all", "behavior", "estimated", "nothing")
    }
    endings = {bars: found.ending for bars, found in results.items()}
    assert endings == {
        "all": "evidence",
        "behavior": "estimate",
        "estimated": "removed",
        "nothing": "removed",
    }
    assert "mine" in results["all"].rests_on
    assert "mine" in results["behavior"].rests_on
    assert "mine" not in results["estimated"].rests_on
