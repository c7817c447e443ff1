"""The section of confidence checks: what a picture rests on is said beside it."""

from __future__ import annotations

from sample_results import sample_result
from view_texts import flat

from auditspec.report.lookup import Lookup
from auditspec.report.sections.checks import PICTURES, CheckView, checks
from auditspec.results import CheckDetail, CheckResult


def placebo(examples: int | None) -> CheckView:
    """The view of a placebo check on the sample's first two behaviours, the first on some examples only."""
    result = sample_result()
    first, second = result.behaviors[:2]
    lines = tuple(
        CheckDetail(
            subject=f"{stage.id} / {behavior.id}",
            stage=stage.id,
            behavior=behavior.id,
            outcome="pass",
            statistic=0.01,
            estimate=0.5,
            draws=(0.1, -0.1),
            examples=examples if behavior is first else None,
        )
        for stage in result.stages[:2]
        for behavior in (first, second)
    )
    check = CheckResult(
        id="own-placebo",
        title="t",
        outcome="pass",
        statistic_name="s",
        reasons=(),
        picture="draws",
        details=lines,
    )
    (view,) = checks(Lookup(result.model_copy(update={"checks": (check,)})))
    return view


def test_a_picture_says_on_how_many_examples_it_rests() -> None:
    view, first = placebo(24), sample_result().behaviors[0]
    said = f"Not read on every example, so that a number may differ from the effect's: {first.id} on 24 of 61 examples."
    assert view.picture[0] and flat(view.picture[1]).endswith(said)
    assert view.details is not None
    notes = [flat(row[3]) for row in view.details.rows]
    assert notes == ["on 24 of 61 examples", "–", "on 24 of 61 examples", "–"]


def test_it_says_nothing_where_it_rests_on_all() -> None:
    view = placebo(None)
    assert flat(view.picture[1]) == PICTURES["draws"][1]
    assert view.details is not None and {flat(row[3]) for row in view.details.rows} == {"–"}
