"""Displayed values: digits, units, signs in words, and the words that a verdict may use."""

import datetime as dt
from typing import get_args

import pytest
from sample_results import sample_result
from sample_variants import HOSTILE, failed_result, shared_result
from view_texts import facts, finding_views, flat, opinion

from auditspec import results
from auditspec.report.lookup import Lookup
from auditspec.report.numbers import (
    Unit,
    count,
    date,
    date_and_time,
    decimal,
    declared,
    digest,
    duration,
    effect_in_words,
    interval,
    places,
    read,
    scientific,
    signed,
    significant,
    size,
    unit_of,
)
from auditspec.report.parts import (
    EVIDENCE,
    MAX_ROWS,
    OUTCOMES,
    ROLES,
    SEVERITY,
    VERDICTS,
    Code,
    Number,
    clean,
)
from auditspec.report.sections import checks, effects, evidence, findings, reading, scope
from auditspec.report.view import build
from auditspec.results import Effect, Exclusion

LOGITS = Unit("logits", "logits")


def effect(value: float, low: float | None = None, high: float | None = None) -> Effect:
    return Effect(
        behavior="b", arm=("omit s",), value=value, counterfactual=0.0, low=low, high=high
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (effect(0.4231, 0.3102, 0.5519), "raised by 0.42 logits (0.31 to 0.55)"),
        (effect(-0.4231, -0.5519, -0.3102), "lowered by 0.42 logits (0.31 to 0.55)"),
        (effect(0.02, -0.05, 0.09), "raised by 0.020 logits (lowered by 0.050 to raised by 0.090)"),
        (effect(-0.2, -0.5, 0.1), "lowered by 0.20 logits (lowered by 0.50 to raised by 0.10)"),
        (effect(1.2345), "raised by 1.23 logits"),
        (effect(12345.6, 12000, 12700), "raised by 12,346 logits (12,000 to 12,700)"),
        (effect(3.14e-7, 1e-7, 5e-7), "raised by 3.1 × 10⁻⁷ logits (1.0 × 10⁻⁷ to 5.0 × 10⁻⁷)"),
        (effect(0.0), "left unchanged (0)"),
    ],
)
def test_an_effect_says_its_sign_in_words(given: Effect, words: str) -> None:
    assert flat(effect_in_words(given, "/effects/0", LOGITS)) == words


def test_shares_are_shown_in_percentage_points() -> None:
    given = effect(-0.0213, -0.0301, -0.0125)
    words = flat(effect_in_words(given, "/effects/0", unit_of("share")))
    assert words == "lowered by 2.13 percentage points (1.25 to 3.01)"
    assert flat(signed(given, "", unit_of("share"))) == "−2.13"
    assert flat(interval(given, "", unit_of("share"))) == "−3.01 to −1.25"


def test_an_effect_keeps_the_pointers_of_its_numbers() -> None:
    phrase = effect_in_words(effect(-0.4231, -0.5519, -0.3102), "/effects/7", LOGITS)
    numbers = [part for part in phrase if isinstance(part, Number)]
    assert [(n.ref, n.value) for n in numbers] == [
        ("/effects/7/value", -0.4231),
        ("/effects/7/high", -0.3102),
        ("/effects/7/low", -0.5519),
    ]


def test_numbers() -> None:
    assert decimal(-0.0004, 2) == "0.00"
    assert decimal(-1234.5, 1) == "−1,234.5"
    assert significant(0) == "0"
    assert significant(0.000123456) == "0.000123"
    assert declared(0.1) == "0.1"
    assert declared(1e-4) == "0.0001"
    assert declared(1e-9) == "1\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10⁻⁹"
    assert places(1.0, 0.5, 1.5) == 2
    assert places(0.0, None, None) == 0
    assert places(3e-9, 1e-9, 5e-9) is None
    assert flat(size(0, "")) == "0 bytes"
    assert flat(size(1023, "")) == "1,023 bytes"
    assert flat(size(1024, "")) == "1.0 KiB"
    assert flat(size(214_511_872, "")) == "204.6 MiB"
    assert flat(duration(0.5, "")) == "0.50 s"
    assert flat(duration(5400, "")) == "90.0 min"
    assert flat(duration(4 * 86400, "")) == "4.0 days"
    assert flat(count(2400.0, "", "gradients")) == "2,400 gradients"
    assert flat(count(None, "")) == "–"


@pytest.mark.parametrize("value", [0.0, 1.25, -3.75e-9, 12_345.0, -0.5, 6.02e23])
def test_read_is_the_inverse_of_the_formats(value: float) -> None:
    assert read(scientific(value, 4)) == pytest.approx(value, rel=1e-3)
    assert read(significant(value, 5)) == pytest.approx(value, rel=1e-4)


def test_dates_do_not_depend_on_the_locale() -> None:
    assert date(dt.date(2027, 11, 30)) == "30 November 2027"
    tokyo = dt.timezone(dt.timedelta(hours=9))
    assert (
        date_and_time(dt.datetime(2026, 1, 1, 5, 30, tzinfo=tokyo)) == "31 December 2025, 20:30 UTC"
    )


def test_a_digest_is_cut_but_stays_available() -> None:
    whole = "sha256:" + "ab" * 32
    (code,) = digest(whole)
    assert code == Code("sha256:abababababab…", whole)


def test_clean_shows_what_hides_and_cuts_what_is_long() -> None:
    assert clean("a\u202eb\x00c\ud800") == "a‹U+202E›b‹U+0000›c‹U+D800›"
    assert clean("  two\n\n words ") == "two words"
    assert clean("x" * 10, 4) == "xxx…"
    assert len(clean("x" * 10_000_000, 50)) == 50
    for evil in HOSTILE:
        assert all(ord(c) >= 0x20 and c not in "\u202e\u2066" for c in clean(evil))


def test_every_status_has_its_own_word_and_symbol() -> None:
    for statuses in (VERDICTS, OUTCOMES, ROLES):
        assert len({s.word for s in statuses.values()}) == len(statuses)
        assert len({s.symbol for s in statuses.values()}) == len(statuses)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (VERDICTS, results.Verdict),
        (reading.VERDICT_MEANINGS, results.Verdict),
        (findings.ENDINGS, results.Ending),
        (ROLES, results.Role),
        (reading.ROLE_MEANINGS, results.Role),
        (OUTCOMES, results.Outcome),
        (EVIDENCE, results.EvidenceState),
        (SEVERITY, results.Severity),
        (evidence.GRADES, results.EvidenceGrade),
    ],
)
def test_every_value_of_the_results_has_words(words: dict[str, object], kind: object) -> None:
    assert set(words) == set(get_args(kind))


def test_the_opinion_on_an_attributed_behaviour() -> None:
    view = opinion(sample_result()).verdicts[0]
    assert view.status.word == "Answerable"
    assert facts(view.facts) == {
        "Answerable": "stage 'relabel' (Data operations)",
        "How much": "raised by 1.27 logits (1.11 to 1.44); exact counterfactual",
        "Without it": "the model would end at −3.147 logits",
        "Deployed model": "−1.874 logits on 61 examples, above the limit of −3 logits",
        "Confidence": "98.5 % of resamples name exactly this",
        "Worked against it": "stage 'refresh' (Release team): worse without it",
    }


def test_the_opinion_on_a_behaviour_within_its_limit() -> None:
    view = opinion(sample_result()).verdicts[1]
    assert (view.status.word, view.status.tone) == ("Within the limit", "good")
    assert facts(view.facts) == {
        "Deployed model": "96.36 % on 302 examples, within the limit of 95 %"
    }


def test_the_opinion_on_an_inconclusive_behaviour() -> None:
    view = opinion(sample_result()).verdicts[2]
    assert facts(view.facts)["What would settle it"].startswith("about 240 evaluation examples")


def test_a_shared_verdict_names_its_stages_with_their_roles() -> None:
    view = opinion(shared_result())
    shared = facts(view.verdicts[0].facts)
    assert shared["Answerable"] == (
        "stage 'relabel' (Data operations) and stage 'high-digits' (Products team)"
    )
    assert shared["Stage 'high-digits'"].startswith("joint cause; raised by 0.62 logits")
    assert view.verdicts[0].status.word == "Answerable: several"
    assert "Accepted by Head of model risk until 31 March 2027" in flat(
        finding_views(shared_result())[0].suppressed
    )


def test_no_behaviour_is_left_out() -> None:
    for result in (sample_result(), failed_result(), sample_result(verdicts=(), findings=())):
        view = build(result)
        assert [v.behavior for v in opinion(result).verdicts] == [b.id for b in result.behaviors]
        assert len(finding_views(result)) == len(result.behaviors)
        assert sum(number for _, number in view.cover.summary) == len(result.behaviors)


def test_a_behaviour_without_a_verdict_is_inconclusive() -> None:
    view = opinion(sample_result(verdicts=()))
    assert {v.status.word for v in view.verdicts} == {"Inconclusive"}


def test_checks_that_did_not_run_say_so() -> None:
    views = checks.checks(Lookup(failed_result()))
    assert [view.status.word for view in views] == ["Fail", *["Not run"] * 4]
    assert "not measured" in flat(views[1].measure)
    assert flat(views[1].reasons) == "the evidence failed its integrity check"


def test_mismatched_evidence_shows_both_digests() -> None:
    result = failed_result()
    row = flat(evidence.evidence(Lookup(result)).rows[1][1])
    assert result.evidence[1].expected in row
    assert result.evidence[1].found in row


def test_every_effect_is_in_a_table() -> None:
    result = sample_result()
    refs = {
        part.ref
        for table in effects.effects_tables(result)
        for row in table.rows
        for cell in row
        for part in cell
        if isinstance(part, Number)
    }
    assert {f"/effects/{i}/value" for i in range(len(result.effects))} <= refs


def test_long_tables_are_bounded_and_say_so() -> None:
    many = tuple(Exclusion(what=f"item {i}", reason="r", count=i) for i in range(MAX_ROWS + 7))
    table = scope.exclusions(sample_result(exclusions=many))
    assert len(table.rows) == MAX_ROWS
    assert table.more == 7


def test_large_audits_say_what_the_pictures_leave_out() -> None:
    sample = sample_result()
    stages = tuple(sample.stages[0].model_copy(update={"id": f"stage-{i}"}) for i in range(30))
    assert (
        opinion(sample_result(stages=stages, effects=())).left_out
        == "Pictures show the first 24 of 30 stages."
    )
    assert opinion(failed_result()).left_out == ""


def test_the_rubric_stands_in_the_report_worst_first() -> None:
    result = sample_result()
    own = result.model_copy(update={"rubric": result.rubric | {"high": "as the board defines it"}})
    view = reading.Reading().view(Lookup(own))
    assert [status.word.lower() for status, _ in view.rubric] == [
        "critical",
        "high",
        "medium",
        "low",
    ]
    assert view.rubric[1][1] == "as the board defines it"


def test_a_check_has_a_picture_where_it_says_more() -> None:
    views = {view.id: view for view in checks.checks(Lookup(sample_result()))}
    assert all(not view.picture[0] or view.picture[1] for view in views.values())
