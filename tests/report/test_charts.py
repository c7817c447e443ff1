"""Charts: accessible, inert, and true to their numbers."""

import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from sample_results import sample_result
from sample_roles import roles_result
from sample_variants import failed_result, hostile_result, shared_result
from view_texts import flat

from auditspec.report.charts import (
    contribution_chart,
    effect_chart,
    matrix_chart,
    path_chart,
    placebo_chart,
    replay_chart,
    timeline_chart,
    window_chart,
)
from auditspec.report.charts.contributions import HATCH, stage_terms
from auditspec.report.charts.svg import ATTRIBUTES, ELEMENTS
from auditspec.report.concern import exceeds, grade
from auditspec.report.palette import colours
from auditspec.report.sections.terms import terms_table
from auditspec.results import (
    AuditResult,
    BehaviorResult,
    CheckDetail,
    CheckResult,
    Concern,
    Contribution,
    Effect,
    Outcome,
)

SVG = "{http://www.w3.org/2000/svg}"


def charts(result: AuditResult) -> list[str]:
    return [
        matrix_chart(result, "matrix"),
        timeline_chart(result, "timeline"),
        *(effect_chart(result, b, f"effect-{i}") for i, b in enumerate(result.behaviors)),
        *(path_chart(result, b, f"path-{i}")[0] for i, b in enumerate(result.behaviors)),
    ]


@pytest.fixture(scope="module")
def sample() -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in charts(sample_result())]


def words(chart: ET.Element) -> list[str]:
    return [element.text or "" for element in chart.iter(f"{SVG}text")]


def test_every_chart_has_a_name_and_a_description(sample: list[ET.Element]) -> None:
    for chart in sample:
        title, description = chart[0], chart[1]
        assert chart.get("role") == "img"
        assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
        assert chart.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text and description.text


def test_ids_are_unique_on_the_page(sample: list[ET.Element]) -> None:
    ids = [i for chart in sample for element in chart.iter() if (i := element.get("id"))]
    assert len(ids) == len(set(ids)) >= 10


def test_the_effect_chart_shows_every_value(sample: list[ET.Element]) -> None:
    shown = words(sample[2])
    for text in ("relabel", "+1.27  (+1.11 to +1.44)", "−0.351  (−0.443 to −0.259)"):
        assert text in shown
    assert "towards the concern →" in shown
    assert "← towards the concern" in words(sample[3])  # this concern is a decrease


def test_dots_stand_where_their_values_are(sample: list[ET.Element]) -> None:
    """The distance between dots is proportional to the difference of the effects."""
    result = sample_result()
    paint = {colours()["concern"], colours()["improve"], colours()["mark"]}
    dots = [
        float(re.findall(r"translate\(([-\d.]+)", element.get("transform", ""))[0])
        for element in sample[2].iter(f"{SVG}path")
        if element.get("stroke") in paint and element.get("fill")
    ]
    values = [e.value for e in result.effects if e.behavior == result.behaviors[0].id]
    assert len(dots) == len(values)
    slopes = [(dots[i] - dots[0]) / (values[i] - values[0]) for i in range(1, len(values))]
    assert slopes == pytest.approx([slopes[0]] * len(slopes), rel=0.02)
    assert slopes[0] > 0


def test_the_matrix_marks_the_named_stage_only(sample: list[ET.Element]) -> None:
    assert [text for text in words(sample[0]) if text.startswith("●")] == ["● +1.27"]
    shared = ET.fromstring(matrix_chart(shared_result(), "m"))
    assert {t for t in words(shared) if t.startswith("●")} == {"● +1.27", "● +0.62"}


def test_the_matrix_has_a_column_for_whoever_else_is_named() -> None:
    chart = ET.fromstring(matrix_chart(roles_result(), "m"))
    shown = words(chart)
    assert {"initial weights", "change before"} <= set(shown)
    assert shown.count("●") == 2  # inherited, introduced: named, and nothing to leave out
    assert {text for text in shown if text.startswith("◔")} == {"◔ +11.0", "◔ +10.0"}
    assert "initial weights" not in words(ET.fromstring(matrix_chart(sample_result(), "m")))


def _dots(chart: ET.Element, *paint: str) -> list[tuple[float, float]]:
    """Pixels of the marks that are filled with one of these colours, from top to bottom."""
    places = [
        tuple(map(float, re.findall(r"[-\d.]+", element.get("transform", ""))[:2]))
        for element in chart.iter(f"{SVG}path")
        if element.get("fill") in {colours()[name] for name in paint} and element.get("stroke")
    ]
    return sorted(places, key=lambda place: place[1])


def test_the_path_stands_where_its_levels_are() -> None:
    """One row a state, in order of time; across, distances are proportional to the levels' differences."""
    result = sample_result()
    svg, caption = path_chart(result, result.behaviors[0], "p")
    chart = ET.fromstring(svg)
    dots, levels = _dots(chart, "concern", "accent"), result.paths[0].levels
    assert len(dots) == len(levels)
    assert all(below[1] - above[1] == pytest.approx(22) for above, below in pairwise(dots))
    slopes = [
        (x - dots[0][0]) / (v - levels[0]) for (x, _), v in zip(dots[1:], levels[1:], strict=True)
    ]
    assert slopes == pytest.approx([slopes[0]] * len(slopes), rel=0.02)
    assert len(_dots(chart, "concern")) == sum(level > -3.0 for level in levels)
    assert len(_dots(chart, "paper")) == 2  # the run without relabel makes two states otherwise
    assert "the run without relabel" in caption and "the limit" in caption
    assert {"after relabel", "−1.550\N{NO-BREAK SPACE}logits", "towards the concern →"} <= set(
        words(chart)
    )


def test_a_beginning_far_off_does_not_flatten_the_path() -> None:
    """An untrained net reads 11 % of the digits; the stages differ by less than one percentage point."""
    result = sample_result()
    svg, caption = path_chart(result, result.behaviors[1], "p")
    dots = _dots(ET.fromstring(svg), "concern", "accent")
    start, *trained = (x for x, _ in dots)
    assert start < min(trained)
    assert max(trained) - min(trained) > 0.2 * (max(trained) - start)
    assert "A triangle" in caption
    assert "11.30\N{NO-BREAK SPACE}%" in words(ET.fromstring(svg))
    assert "A triangle" not in path_chart(result, result.behaviors[0], "p")[1]


def test_a_path_without_a_limit_says_so() -> None:
    result = sample_result()
    svg, caption = path_chart(result, result.behaviors[2], "p")
    assert "No limit is stated." in caption
    assert len(_dots(ET.fromstring(svg), "concern")) == 0
    assert path_chart(result.model_copy(update={"paths": ()}), result.behaviors[2], "p") == ("", "")


def test_one_state_draws() -> None:
    result = sample_result()
    path = result.paths[0].model_copy(
        update={"states": ("initial",), "levels": (0.0,), "errors": (0.0,), "skills": (None,)}
    )
    svg, _ = path_chart(result.model_copy(update={"paths": (path,)}), result.behaviors[0], "p")
    assert "initial weights" in words(ET.fromstring(svg))


def test_the_matrix_colours_by_concern_not_by_sign() -> None:
    sample = sample_result()
    recall = sample.behaviors[1]
    fell = sample.effects[5].model_copy(update={"value": -0.5, "low": -0.6, "high": -0.4})
    assert grade(fell, recall, recall.concern.tolerance) == 3
    assert exceeds(fell, recall) == 1
    rises = recall.model_copy(update={"concern": Concern(direction="increase", tolerance=0.02)})
    assert grade(fell, rises, 0.02) == -3
    assert exceeds(fell, rises) == -1
    assert exceeds(sample.effects[5], recall) == 0
    assert grade(fell, recall, 0.0) == 0


def test_nothing_to_draw_gives_no_chart() -> None:
    failed = failed_result()
    assert charts(failed) == [""] * 8


def test_a_tolerance_of_zero_and_effects_of_zero_draw() -> None:
    sample = sample_result()
    behavior = sample.behaviors[0].model_copy(
        update={"concern": Concern(direction="increase", tolerance=0)}
    )
    effects = tuple(
        Effect(behavior=behavior.id, arm=(f"omit {s.id}",), value=0, counterfactual=0)
        for s in sample.stages
    )
    result = sample_result(behaviors=(behavior,), effects=effects)
    assert "pretrain" in effect_chart(result, behavior, "e")
    assert "pretrain" in matrix_chart(result, "m")


def test_the_timeline_names_stages_and_steps(sample: list[ET.Element]) -> None:
    shown = words(sample[1])
    for text in ("pretrain", "refresh", "300 steps", "120 steps", "training loss"):
        assert text in shown


def _bars(chart: ET.Element, colour: str) -> list[tuple[float, float]]:
    """Left edge and width of every bar of a colour."""
    boxes = []
    for element in chart.iter(f"{SVG}path"):
        if element.get("fill") == colour:
            x, width = re.match(r"M([-\d.]+),[-\d.]+h([-\d.]+)", element.get("d", "")).groups()
            boxes.append((float(x), float(width)))
    return boxes


def _with_terms(behavior: BehaviorResult, *stages: tuple[str, float, float]) -> AuditResult:
    """The sample with first-order terms: half of a stage's steps give one and a half of the sum, half take it back.

    A stage is its id, the terms' sum, and its effect.
    """
    result = sample_result()
    half = {stage.id: (stage.steps or 0) // 2 for stage in result.stages}
    effects = tuple(
        Effect(behavior=behavior.id, arm=(f"omit {s}",), value=effect, counterfactual=0, exact=True)
        for s, _, effect in stages
    )
    terms = tuple(
        Contribution(
            behavior=behavior.id,
            stage=s,
            step=(0, half[s]),
            value=(1.5 * total, -0.5 * total),
            total=total,
        )
        for s, total, _ in stages
    )
    return result.model_copy(update={"effects": effects, "contributions": terms})


def test_contributions_are_drawn_where_their_steps_are() -> None:
    """The second of five stages: half of its steps raise, half lower; no other stage has bars."""
    result = sample_result()
    behavior, stage = result.behaviors[0], result.stages[1]
    assert contribution_chart(result, behavior, "w") == ""  # none were asked for
    result = _with_terms(behavior, (stage.id, 0.25, 0.25))
    chart = ET.fromstring(contribution_chart(result, behavior, "w"))
    (raised,) = _bars(chart, colours()["concern"])
    (lowered,) = _bars(chart, colours()["improve"])
    slot = 560 / len(result.stages)
    assert raised == pytest.approx((slot, slot / 2), abs=1)
    assert lowered == pytest.approx((1.5 * slot, slot / 2), abs=1)
    assert f"{stage.id} 0.25." in (chart[1].text or "")
    assert _hatched(chart) == 0


def test_many_contributions_are_summed_not_left_out() -> None:
    result = sample_result()
    behavior, stage = result.behaviors[0], result.stages[0]
    result = _with_terms(behavior, (stage.id, 200.0, 200.0))
    many = result.contributions[0].model_copy(
        update={"step": tuple(range(200)), "value": (1.0,) * 200}
    )
    result = result.model_copy(update={"contributions": (many,)})
    bars = _bars(ET.fromstring(contribution_chart(result, behavior, "w")), colours()["concern"])
    assert len(bars) == 40  # five steps each: a fifth of the 240 bars of a picture is 48


def _hatched(chart: ET.Element) -> int:
    """Lines of the hatching."""
    paths = [e for e in chart.iter(f"{SVG}path") if e.get("stroke") == colours()["muted"]]
    return sum(path.get("d", "").count("M") for path in paths)


def test_what_contradicts_the_verdict_is_not_drawn() -> None:
    """First-order terms beside replayed effects: one of the other sign, one that misses it, one that agrees."""
    behavior = sample_result().behaviors[0]
    behavior = behavior.model_copy(
        update={"concern": behavior.concern.model_copy(update={"tolerance": 1.0})}
    )
    pretrain, digits, relabel, *_ = (stage.id for stage in sample_result().stages)
    result = _with_terms(
        behavior, (pretrain, 7.4788, -3.1552), (digits, 0.6828, 0.7355), (relabel, 5.5783, 7.6799)
    )
    fits = [term.fit for term in stage_terms(result, behavior)]
    assert fits == ["contradicts", "agrees", "misses"]
    chart = ET.fromstring(contribution_chart(result, behavior, "w"))
    slot = 560 / len(result.stages)
    assert len(_bars(chart, colours()["concern"])) == len(_bars(chart, colours()["improve"])) == 2
    assert all(x >= slot - 1 for x, _ in _bars(chart, colours()["concern"]))
    assert _hatched(chart) == 2 * len(range(HATCH - 104, int(slot), HATCH))
    told = chart[1].text or ""
    assert f"{pretrain} 7.4788, not drawn; {digits} 0.6828; {relabel} 5.5783, hatched" in told
    table = terms_table(result, behavior)
    assert [flat(cell) for cell in table.rows[0]] == [
        pretrain,
        "raised by 7.48 logits",
        "lowered by 3.16 logitsexact",
        "not drawn: the sum misses the effect by as much as the effect is, or more",
    ]
    assert [flat(row[3]).partition(":")[0] for row in table.rows] == [
        "not drawn",
        "drawn",
        "hatched",
    ]


@pytest.mark.parametrize(
    ("total", "effect", "fit"),
    [
        (1.25, 1.0, "agrees"),  # a quarter off
        (1.5, 1.0, "misses"),
        (0.01, 1.0, "misses"),
        (2.0, 1.0, "contradicts"),
        (-1.0, 1.0, "contradicts"),
        (0.04, -0.04, "agrees"),  # the tolerance is 0.1
        (0.2, 0.0, "contradicts"),
    ],
)
def test_how_far_terms_may_miss_the_effect(total: float, effect: float, fit: str) -> None:
    behavior = sample_result().behaviors[0]
    assert behavior.concern.tolerance == 0.1
    result = _with_terms(behavior, (sample_result().stages[0].id, total, effect))
    assert [term.fit for term in stage_terms(result, behavior)] == [fit]


def test_terms_without_an_effect_are_not_drawn() -> None:
    behavior, stage = sample_result().behaviors[0], sample_result().stages[0]
    result = _with_terms(behavior, (stage.id, 1.0, 1.0)).model_copy(update={"effects": ()})
    assert contribution_chart(result, behavior, "w") == ""
    (row,) = terms_table(result, behavior).rows
    assert flat(row[3]) == "not drawn: there is no effect to hold it against"


def test_hostile_strings_stay_text() -> None:
    for svg in charts(hostile_result()):
        chart = ET.fromstring(svg)
        for element in chart.iter():
            tag = element.tag.removeprefix(SVG)
            assert tag in ELEMENTS | {"title", "desc"}
            allowed = ATTRIBUTES | {"class", "role", "aria-labelledby", "font-family"}
            assert set(element.attrib) <= allowed
        assert "\u202e" not in svg
    assert "<script>alert(1)</script>" in "".join(ET.fromstring(svg).itertext())


def test_no_picture_refers_to_anything() -> None:
    """Whatever loads or runs is named by an element or attribute that no picture may have; nor is a value an address."""
    assert not ELEMENTS & {"image", "use", "script", "style", "a", "foreignObject", "animate"}
    assert not ATTRIBUTES & {"href", "style", "filter", "mask", "onload", "clip-path"}
    for svg in (*charts(sample_result()), *charts(hostile_result())):
        for element in ET.fromstring(svg).iter():
            assert not any("url(" in value or "//" in value for value in element.attrib.values())


def test_charts_are_the_same_every_time() -> None:
    assert charts(sample_result()) == charts(sample_result())


def test_chart_colours_can_be_told_apart() -> None:
    """Charts are recoloured by their colour, so no two names may share one."""
    assert len(set(colours().values())) == len(colours())


# --- the checks' pictures -----------------------------------------------------------------------


def check(id_: str, *details: CheckDetail, threshold: float | None = 1e-4) -> CheckResult:
    return CheckResult(
        id=id_,
        title="t",
        outcome="pass",
        statistic_name="s",
        threshold=threshold,
        reasons=(),
        details=details,
    )


def window(stage: str, at: int, off: float, outcome: Outcome = "pass") -> CheckDetail:
    return CheckDetail(
        subject=f"{stage} {at}-{at + 1}", stage=stage, outcome=outcome, statistic=off
    )


def marks(svg: str, colour: str) -> int:
    """Shapes filled with a colour of the style sheet."""
    return len(re.findall(rf'<path [^>]*fill="{colours()[colour]}"', svg))


def test_every_window_is_a_dot_and_a_bad_one_stands_out() -> None:
    windows = [window("one", k, 0.0) for k in range(3)] + [window("two", 0, 0.3, "fail")]
    svg = window_chart(check("record-fidelity", *windows), "w")
    assert (marks(svg, "accent"), marks(svg, "concern")) == (3, 1)
    text = words(ET.fromstring(svg))
    assert {"one", "two"} <= set(text)
    assert "4 windows, 3 of them re-run bitwise, 1 failed" in svg
    assert "in two 0-1" in svg


def test_of_many_windows_a_bad_one_is_drawn() -> None:
    windows = [window("one", k, 1e-9) for k in range(2000)]
    windows[777] = window("one", 777, 1e-9, "fail")
    svg = window_chart(check("record-fidelity", *windows), "w")
    assert marks(svg, "concern") == 1
    assert marks(svg, "accent") < 300


def test_a_window_that_cannot_be_drawn_is_told() -> None:
    lost = CheckDetail(subject="two 0-1", stage="two", outcome="fail")
    svg = window_chart(
        check("record-fidelity", window("one", 0, 0.0), window("one", 1, 0.0), lost), "w"
    )
    assert "1 more could not be compared" in svg


def test_one_window_is_no_picture() -> None:
    assert window_chart(check("record-fidelity", window("one", 0, 0.0)), "w") == ""
    assert window_chart(check("record-fidelity"), "w") == ""


def compared(behavior: str, stage: str, outcome: Outcome = "pass", **fields: Any) -> CheckDetail:
    return CheckDetail(
        subject=f"{stage} / {behavior}", stage=stage, behavior=behavior, outcome=outcome, **fields
    )


def test_an_estimate_is_drawn_beside_its_replay() -> None:
    held = check(
        "spot-check",
        compared("three-read-as-eight", "relabel", estimate=1.5, reference=1.273),
        compared("low-digit-recall", "relabel", "fail", estimate=0.02, reference=-0.01),
        CheckDetail(subject="refresh", stage="refresh", outcome="pass"),
    )
    svg = replay_chart(sample_result(), held, "r")
    text = words(ET.fromstring(svg))
    assert "relabel / three-read-as-eight" in text
    assert "1.50, exact 1.27 logits" in text
    assert "2.00, exact −1.00 percentage points" in text
    assert marks(svg, "concern") == 1
    assert "refresh" not in " ".join(text)
    assert replay_chart(sample_result(), check("spot-check"), "r") == ""


def test_an_effect_is_drawn_among_its_placebos() -> None:
    draws = tuple(k / 100 for k in range(-20, 21))
    held = check(
        "placebo",
        compared("three-read-as-eight", "relabel", estimate=1.273, draws=draws),
        compared("three-read-as-eight", "refresh", "fail", estimate=0.1, draws=draws),
        compared("three-read-as-eight", "the empty stage", estimate=0.0, reference=0.0),
    )
    svg = placebo_chart(sample_result(), held, "p")
    text = words(ET.fromstring(svg))
    assert {"1.27 logits", "0.100 logits"} <= set(text)
    assert (marks(svg, "accent"), marks(svg, "concern")) == (1, 1)
    assert placebo_chart(sample_result(), check("placebo"), "p") == ""
