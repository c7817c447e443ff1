"""Who is named in which words, with which role, and what stands beside a verdict."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from sample_results import sample_result
from sample_roles import PARTIES, roles_result
from sample_variants import failed_result
from view_texts import facts, finding_views, flat

from auditspec.report.lookup import Lookup, arm_in_words, party_of, short, state_of
from auditspec.report.parts import MAX_LEVELS, Number, Table
from auditspec.report.sections import effects
from auditspec.report.sections.opinion import NAMING, Opinion, tally
from auditspec.report.sections.roles import roles_table
from auditspec.report.sections.system import parties_table
from auditspec.results import AuditResult, CheckDetail, Tally
from auditspec.sign.packet import read_results
from auditspec.withheld import marker


def column(table: Table, index: int) -> list[str]:
    return [flat(row[index]) for row in table.rows]


def opinion(behavior: str, result: AuditResult | None = None) -> tuple[str, str, dict[str, str]]:
    """Word, tone, and facts of a verdict."""
    views = finding_views(result or roles_result())
    view = next(v.verdict for v in views if v.verdict.behavior == behavior)
    return view.status.word, view.status.tone, facts(view.facts)


def changed(result: AuditResult, behavior: str, **fields: Any) -> AuditResult:
    """The result with some fields of one verdict replaced."""
    return result.model_copy(
        update={
            "verdicts": tuple(
                v.model_copy(update=fields) if v.behavior == behavior else v
                for v in result.verdicts
            )
        }
    )


@pytest.mark.parametrize(
    ("behavior", "word", "tone"),
    [
        ("cause", "Answerable", "attributed"),
        ("joint", "Answerable: several", "shared"),
        ("pieces", "Answerable: several", "shared"),
        ("one-or-more", "One or more of", "shared"),
        ("inherited", "Inherited", "attributed"),
        ("introduced", "Introduced between stages", "attributed"),
        ("repaired", "Within the limit", "good"),
        ("self", "No worse than the run’s own best state", "none"),
        ("unexplained", "Inconclusive", "open"),
    ],
)
def test_verdicts_have_their_words(behavior: str, word: str, tone: str) -> None:
    assert opinion(behavior)[:2] == (word, tone)


def test_the_cover_counts_what_the_opinion_says() -> None:
    result = roles_result()
    counted = tally(Lookup(result))
    assert dict(counted) == Counter(v.verdict.status for v in finding_views(result))
    assert counted[0][0].word == "Answerable"


def test_initial_weights_and_changes_are_named_with_their_owners() -> None:
    *_, told = opinion("inherited")
    assert told["Answerable"] == "the initial weights (Model Hub)"
    assert told["How much"] == "the excess over the limit grew by 53.0 percentage points with it"
    *_, told = opinion("introduced")
    assert told["Answerable"] == "the change of the model before 'review' (Product team)"
    assert "Without it" not in told


def test_a_stage_that_cannot_be_left_out_is_told_by_its_rise() -> None:
    """Its leave-one-out effect is that of having no model, not of the fault."""
    named = changed(roles_result(), "cause", parties=("pretrain",), ending="persists")
    *_, told = opinion("cause", named)
    assert told["How much"] == "the excess over the limit shrank by 5.00 percentage points with it"
    assert not {"Without it", "Stage 'pretrain' replaced"} & set(told)


def test_joint_causes_are_told_by_what_is_left_without_all_of_them() -> None:
    *_, told = opinion("joint")
    assert told["Stage 'vendor'"].startswith("cause; raised by 5.0 percentage points")
    assert told["Without them"] == "the model would end at 4.00 %"
    assert "Without them" not in opinion("one-or-more")[2]  # that run was not made


def test_leaving_out_and_replacing_stand_side_by_side() -> None:
    """Where they disagree, a reader must see both."""
    *_, told = opinion("cause")
    assert (
        told["Stage 'vendor' replaced"]
        == "on reference data, the model ends at 3.00 %; left out, at 3.00 %"
    )
    other = roles_result()
    paths = tuple(
        p.model_copy(update={"levels": (*p.levels[:-1], 0.59)})
        if (p.behavior, p.arm) == ("cause", ("omit vendor",))
        else p
        for p in other.paths
    )
    *_, told = opinion("cause", other.model_copy(update={"paths": paths}))
    assert told["Stage 'vendor' replaced"].endswith("left out, at 59.00 %")


def test_nothing_is_green_without_a_stated_limit() -> None:
    assert opinion("self")[1] != "good"
    assert opinion("repaired", changed(roles_result(), "repaired", limit="self"))[1] == "none"


def test_what_no_limit_clears_is_said_even_where_the_verdict_does_not() -> None:
    *_, told = opinion("self")
    assert told["Not cleared"].startswith("neither the initial weights")
    silent = changed(roles_result(), "self", reservations=())
    *_, told = opinion("self", silent)
    assert "neither the initial weights nor pretraining" in told["Not cleared"]


@pytest.mark.parametrize(
    ("details", "green"),
    [
        ((), False),
        ((CheckDetail(subject="s", outcome="fail"),), False),
        ((CheckDetail(subject="s", outcome="fail", behavior="repaired"),), False),
        ((CheckDetail(subject="s", outcome="fail", behavior="cause"),), True),
        ((CheckDetail(subject="s", outcome="pass", behavior="repaired"),), False),
    ],
)
def test_nothing_is_green_where_a_gate_did_not_pass(
    details: tuple[CheckDetail, ...], green: bool
) -> None:
    result = roles_result()
    first = result.checks[0].model_copy(update={"outcome": "inconclusive", "details": details})
    spoiled = result.model_copy(update={"checks": (first, *result.checks[1:])})
    word, tone, told = opinion("repaired", spoiled)
    assert word == "Within the limit"
    assert (tone == "good") is green
    assert (told.get("Gates not passed") is None) is green


def test_no_gates_at_all_are_no_all_clear() -> None:
    assert opinion("repaired", roles_result().model_copy(update={"checks": ()}))[1] == "none"


def test_masks_and_repairs_stand_beside_a_clean_bill() -> None:
    *_, told = opinion("repaired")
    assert told["Repaired by"] == "stage 'review' (Product team): beyond the limit without it"
    assert "Worked against it" not in told
    *_, told = opinion("cause")
    assert told["Worked against it"] == "stage 'review' (Product team): worse without it"


def test_withheld_verdicts_are_not_told_as_inconclusive() -> None:
    document = json.loads(sample_result().model_dump_json())
    for verdict in document["verdicts"]:
        verdict["verdict"] = verdict["statement"] = marker("0" * 64, "not yet released")
    known = Lookup(read_results(document, "results.json"))
    assert [(s.word, n) for s, n in tally(known)] == [("Withheld", 3)]
    view = Opinion().view(known)
    assert {verdict.status.word for verdict in view.verdicts} == {"Withheld"}
    assert view.matrix is None


def test_every_party_has_its_role_in_words() -> None:
    result = roles_result()
    known = Lookup(result)
    table = roles_table(known, result.behaviors[0])
    assert column(table, 0) == [
        "The initial weightsModel Hub",
        "Stage 'pretrain'Foundation team",
        "Stage 'vendor'Labelling vendor",
        "The change of the model before 'review'Product team",
        "Stage 'review'Product team",
        "Stage 'polish'Release team",
    ]
    assert column(table, 1) == [
        "No part found",
        "Enabler",
        "Cause",
        "No part found",
        "Works against it",
        "Contributor",
    ]
    assert column(table, 2) == ["10.00 %", "2.00 %", "71.00 %", "69.00 %", "55.00 %", "66.00 %"]
    assert column(table, 3)[2:5] == ["grew by 66.0", "shrank by 2.00", "shrank by 14.0"]
    assert column(table, 4)[2:5] == ["lower by 63.0", "cannot be left out", "higher by 14.0"]
    assert flat(table.rows[5][5]) == "its rise is gone without vendor"


def test_without_a_decrease_a_level_would_be_higher() -> None:
    """The effect of a role counts towards the concern; recall that a stage lowered would be higher without it."""
    result = sample_result()
    recall = result.behaviors[1]
    role = result.verdicts[1].roles[0].model_copy(update={"effect": 0.03, "rise": 0.01})
    table = roles_table(Lookup(changed(result, recall.id, roles=(role,))), recall)
    assert (column(table, 3), column(table, 4)) == (["grew by 1.00"], ["higher by 3.00"])


def test_no_role_is_told_where_nothing_was_estimated() -> None:
    result = failed_result()
    assert roles_table(Lookup(result), result.behaviors[0]).rows == ()


def test_of_many_parties_those_without_a_part_are_counted() -> None:
    result = roles_result()
    roles = result.verdicts[0].roles
    idle = tuple(roles[0].model_copy(update={"party": f"s{i}"}) for i in range(30))
    many = changed(result, "cause", roles=(*idle, *roles))
    table = roles_table(Lookup(many), many.behaviors[0])
    assert column(table, 1) == ["Enabler", "Cause", "Works against it", "Contributor"]
    assert table.more == 32
    refs = [p.ref for cell in table.rows[1] for p in cell if isinstance(p, Number)]
    assert "/verdicts/0/roles/32/rise" in refs


def test_the_beginning_has_an_origin() -> None:
    rows = [[flat(cell) for cell in row] for row in parties_table(Lookup(roles_result())).rows]
    assert rows == [
        [
            "The initial weights",
            "Model Hub",
            "taken over from elsewhereModel Hub, hub-base 2.1, downloaded on 3 March 2026",
        ],
        [
            "The change of the model before 'review'",
            "Product team",
            "changed the model between two stages",
        ],
    ]
    unknown = sample_result().parties[0].model_copy(update={"origin": "unknown", "owner": ""})
    ((_, owner, origin),) = parties_table(Lookup(sample_result(parties=(unknown,)))).rows
    assert flat(owner) == "nobody is named"
    assert flat(origin) == "unknown: neither declared nor seen in the record"


def test_a_reference_is_named_where_the_beginning_stands() -> None:
    start = roles_result().parties[0].model_copy(update={"reference": "clean-base"})
    ((_, _, origin),) = parties_table(Lookup(sample_result(parties=(start,)))).rows
    assert flat(origin).endswith("clean reference: clean-base")


def test_tallies_say_whom_resamples_name() -> None:
    told = facts(finding_views(sample_result())[2].facts)
    assert told["Over resamples"] == (
        "relabel in 117 (removed); high-digits in 52 (removed); nobody in 31 (within)"
    )
    assert told["Rule"].startswith("removed: ")


@pytest.mark.parametrize(
    ("verdict", "counts", "confidence", "words"),
    [
        ("attributed", {("vendor",): 195, (): 5}, 0.975, "97.5 % of resamples name exactly this"),
        (
            "attributed",
            {("vendor",): 100, ("polish", "vendor"): 96, (): 4},
            0.98,
            "98.0 % of resamples name this, alone or with others",
        ),
        (
            "attributed",
            {("vendor",): 200},
            0.97,
            "97.0 %, by convention the most that evidence of this grade carries",
        ),
        (
            "one-or-more",
            {("vendor",): 120, ("review",): 72, (): 8},
            0.96,
            "96.0 % of resamples name one or more of these",
        ),
    ],
)
def test_a_confidence_says_of_what_it_is_the_share(
    verdict: str, counts: dict[tuple[str, ...], int], confidence: float, words: str
) -> None:
    result = changed(
        roles_result().model_copy(update={"evidence_grade": "sparse"}),
        "cause",
        verdict=verdict,
        parties=("vendor", "review") if verdict == "one-or-more" else ("vendor",),
        tallies=tuple(Tally(parties=p, ending="removed", count=n) for p, n in counts.items()),
        confidence=confidence,
    )
    if words.startswith("98"):
        result = result.model_copy(update={"evidence_grade": "dense"})
    assert opinion("cause", result)[2]["Confidence"] == words


@pytest.mark.parametrize("party", PARTIES)
def test_a_party_and_the_state_in_which_its_turn_ends(party: str) -> None:
    assert party_of(state_of(party)) == party
    assert ":" not in short(party)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ((), "as recorded"),
        (("omit polish", "omit vendor"), "without polish, vendor"),
        (("omit vendor", "replace pretrain"), "without vendor; reference data for pretrain"),
        (("replace weights:initial",), "reference weights"),
    ],
)
def test_arms_in_words(arm: tuple[str, ...], words: str) -> None:
    assert arm_in_words(arm) == words


def test_every_level_of_every_arm_is_in_a_table() -> None:
    result = roles_result()
    shown, left_out = effects.level_tables(result)
    refs = {
        p.ref
        for t in shown
        for row in t.rows
        for cell in row
        for p in cell
        if isinstance(p, Number)
    }
    every = {
        f"/paths/{i}/levels/{k}" for i, p in enumerate(result.paths) for k in range(len(p.levels))
    }
    assert every <= refs
    assert left_out == 0
    joint = next(t for t in shown if t.caption == "joint: levels along the runs, in %")
    assert [c.label for c in joint.columns] == [
        "State",
        "Skill",
        "As recorded",
        "Without pretrain",
        "Without vendor",
        "Without review",
        "Without polish",
        "Without polish, vendor",
    ]
    assert column(joint, 4) == ["as recorded", "as recorded", "left out", "3.00", "4.00", "61.00"]


def test_what_an_estimate_does_not_give_is_said() -> None:
    """An estimate may give the end of a run only, and may not know its own error."""
    result = roles_result()
    paths = tuple(
        p.model_copy(
            update={
                "states": ("polish:end",),
                "levels": (0.6,),
                "errors": (None,),
                "skills": (0.9,),
                "exact": False,
            }
        )
        if (p.behavior, p.arm) == ("joint", ("omit vendor",))
        else p
        for p in result.paths
    )
    shown, _ = effects.level_tables(result.model_copy(update={"paths": paths}))
    joint = next(t for t in shown if t.caption.startswith("joint"))
    place = [c.label for c in joint.columns].index("Without vendor (estimated)")
    assert column(joint, place) == [
        "as recorded",
        "as recorded",
        "left out",
        "not read",
        "not read",
        "60.00 ± ?",
    ]


def test_levels_beyond_the_bound_are_counted() -> None:
    result = roles_result()
    behaviors = tuple(
        result.behaviors[0].model_copy(update={"id": f"b{i}"}) for i in range(MAX_LEVELS // 10)
    )
    own = [p for p in result.paths if p.behavior == "cause"]
    paths = tuple(p.model_copy(update={"behavior": b.id}) for b in behaviors for p in own)
    shown, left_out = effects.level_tables(
        result.model_copy(update={"behaviors": behaviors, "paths": paths})
    )
    refs = {
        p.ref
        for t in shown
        for row in t.rows
        for cell in row
        for p in cell
        if isinstance(p, Number) and "/levels/" in p.ref
    }
    assert len(refs) + left_out == sum(len(p.levels) for p in paths)
    assert left_out > 0


def test_draws_are_shown_and_identical_ones_told() -> None:
    table = effects.draws_table(roles_result())
    assert [flat(cell) for cell in table.rows[0]] == [
        "introduced",
        "The change of the model before 'review'",
        "93.0 %",
        "every draw gave the very same model: nothing about it is random",
    ]


def test_only_who_is_named_is_called_answerable() -> None:
    for view in finding_views(roles_result()):
        named = view.verdict.behavior in ("cause", "joint", "pieces", "inherited", "introduced")
        assert ("Answerable" in facts(view.facts)) is named
    assert set(NAMING) == {"attributed", "shared", "one-or-more"}
