"""Groups that a statistic compares: what is refused before any code runs, what is left out, what is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from factories import minimal_spec
from measures import statistic_of
from small_audit import edit_spec, lock

from auditspec.behaviors.statistics import SliceStatistic
from auditspec.behaviors.statistics.interface import student
from auditspec.consistency.check import check
from auditspec.flow import run_audit
from auditspec.report.exports.html_page import render_html
from auditspec.report.words import text
from auditspec.spec.rules import broken_rules
from auditspec.spec.source import load

# --- metrics that a statistic does not fit ------------------------------------------------------

RATE, PROBABILITY = {"name": "rate", "class": 1}, {"name": "probability", "class": 1}
NLL, ERROR = {"name": "nll"}, {"name": "error", "unit": "years"}


def complaints(metric: Any, direction: str = "increase", **statistic: Any) -> list[str]:
    data = minimal_spec()
    data["model"]["outputs"] = "values" if metric is ERROR else "logits"
    for artifact in data["artifacts"].values():
        artifact["label"] = "y"
    data["behaviors"][0] |= {"metric": metric, "statistic": statistic}
    data["behaviors"][0]["concern"] = {"direction": direction, "tolerance": 0.01}
    broken = [b for b in broken_rules(data) if b.code == "AS055"]
    assert all(b.location == ("behaviors", 0, "statistic", "name") for b in broken)
    return [b.message for b in broken]


@pytest.mark.parametrize(
    ("metric", "statistic", "said"),
    [
        (RATE, {"name": "mae"}, "'rate' gives none"),
        (NLL, {"name": "difference", "by": "sex", "average": "rmse"}, "'nll' gives none"),
        (RATE, {"name": "quantile", "q": 0.5}, "every score of 'rate' is 0 or 1"),
        (NLL, {"name": "ece", "truth": "y"}, "'nll' are no probabilities"),
        (RATE, {"name": "ece", "truth": "y"}, "'rate' are no probabilities"),
        ({"name": "probability"}, {"name": "ece", "truth": "y"}, "name the class"),
        (PROBABILITY, {"name": "ece", "truth": "y", "positive": 2}, "the metric's class is 1"),
        (RATE, {"name": "equalized-odds", "by": "sex", "truth": "y", "positive": 0}, "class is 1"),
        (ERROR, {"name": "ratio", "by": "sex"}, "may be negative"),
        (RATE, {"name": "worst-group", "by": "sex", "worst": "lowest"}, "an increase is the harm"),
        (RATE, {"name": "difference", "by": "sex", "reference": "m"}, "reference without group"),
        (RATE, {"name": "difference", "by": ["sex", "race"], "group": "f"}, "no group by sex and"),
    ],
)
def test_what_means_nothing_is_refused(metric: Any, statistic: dict[str, Any], said: str) -> None:
    (message,) = complaints(metric, **statistic)
    assert said in message
    assert statistic["name"] in message


@pytest.mark.parametrize(
    ("metric", "statistic"),
    [
        (RATE, {"name": "difference", "by": "sex"}),
        (RATE, {"name": "difference", "by": ["sex", "race"], "group": ["f", 1]}),
        (NLL, {"name": "ratio", "by": "sex"}),
        (ERROR, {"name": "ratio", "by": "sex", "average": "mae"}),
        (ERROR, {"name": "worst-group", "by": "sex", "worst": "highest", "average": "rmse"}),
        (PROBABILITY, {"name": "ece", "truth": "paid", "positive": "yes"}),
        (RATE, {"name": "equalized-odds", "by": "sex", "truth": "y"}),
        (NLL, {"name": "quantile", "q": 0.9}),
    ],
)
def test_what_means_something_is_not(metric: Any, statistic: dict[str, Any]) -> None:
    assert complaints(metric, **statistic) == []


# --- data that a statistic does not fit -----------------------------------------------------------

SEX = np.array(["f"] * 12 + ["m"] * 15 + ["x"] * 3, dtype=object)
TOLD = {"sex": SEX, "won": np.arange(30) % 2, "region": np.repeat([1, 2], 15)}


@pytest.mark.parametrize(
    ("statistic", "option", "said"),
    [
        ({"name": "difference", "by": "sex"}, "by", "fewer than 10 examples to compare: x (3)"),
        ({"name": "ratio", "by": "sex", "floor": 20, "small": "leave-out"}, "by", "leave 0 to"),
        ({"name": "difference", "by": "sex", "group": "w"}, "group", "w has 0 examples"),
        (
            {"name": "difference", "by": "sex", "group": "f", "reference": "x"},
            "reference",
            "x has 3",
        ),
        ({"name": "equalized-odds", "by": "sex", "truth": "won"}, "by", "f (6), m (7), x (1)"),
        (
            {"name": "equalized-odds", "by": "sex", "truth": "won", "positive": 5},
            "positive",
            "no ex",
        ),
        ({"name": "ece", "truth": "won", "positive": True}, "positive", "no example has won True"),
        ({"name": "difference", "by": ["sex", "region"]}, "by", "m, 1 (3), x, 2 (3)"),
    ],
)
def test_groups_that_the_data_does_not_hold(
    statistic: dict[str, Any], option: str, said: str
) -> None:
    chosen = statistic_of(**statistic)
    told = chosen.misfit({name: TOLD[name] for name in chosen.columns})
    assert told is not None
    assert (told.option, said in told.reason) == (option, True), told
    assert told.remedy


def test_an_example_without_a_group_is_told() -> None:
    told = statistic_of("difference", by="sex").misfit({"sex": np.where(SEX == "x", None, SEX)})
    assert told is not None
    assert told.reason == "3 of 30 examples have no value of 'sex'"
    named = statistic_of("difference", by="sex", group="f")
    assert named.misfit({"sex": np.where(SEX == "x", None, SEX)}) == told


def test_small_groups_are_left_out_where_the_spec_says_so() -> None:
    chosen = statistic_of("difference", by="sex", small="leave-out")
    (left,) = chosen.left_out({"sex": SEX})
    assert left[0] == "x"
    assert np.array_equal(left[1], SEX == "x")
    assert chosen.misfit({"sex": SEX}) is None


def test_fewer_examples_keep_every_group() -> None:
    sex = np.where(np.arange(5000) % 1000 == 7, "x", "m").astype(object)
    on = SliceStatistic(statistic_of("difference", by="sex", floor=1), {"sex": sex})
    rows = on.spread_rows(5000, 50)
    assert 50 <= len(rows) <= 51
    assert set(sex[rows]) == {"m", "x"}
    assert np.array_equal(rows, np.unique(rows))


def test_names_of_groups_do_not_depend_on_the_order_of_examples() -> None:
    chosen, order = (
        statistic_of("worst-group", by=["sex", "won"], worst="highest"),
        np.arange(30)[::-1],
    )
    scores = np.arange(30.0)
    columns = {"sex": SEX, "won": TOLD["won"]}
    ours = chosen.groups(scores, columns)
    theirs = chosen.groups(scores[order], {name: values[order] for name, values in columns.items()})
    assert ours == theirs
    assert [(g.name, g.examples, g.level) for g in ours[:2]] == [("f, 0", 6, 5.0), ("f, 1", 6, 6.0)]


# --- how surely -----------------------------------------------------------------------------------


def test_shares_of_groups_are_never_surer_than_their_own_tables() -> None:
    """f: 20 with 3 fewer; m: 60 with 0 changed. Resampling alone would say that nothing of m can change."""
    columns = {"sex": np.repeat(["f", "m"], [20, 60]).astype(object)}
    deployed, changes = np.zeros(80), np.zeros((80, 1))
    deployed[10:50] = 1
    changes[:3] = -1
    signed = statistic_of("difference", by="sex", group="f")
    on = SliceStatistic(signed, columns)
    # Agresti & Min, cell by cell: (p+ + p- - (p+ - p-)^2) / (n + 2), half an example more in each
    f = (0.5 / 22 + 3.5 / 22 - (3 / 22) ** 2) / 22
    m = (1 / 62) / 62
    (half,) = on.half_widths(deployed, changes, np.array([0.01]), 2.0, 0.95, binary=True)
    assert half == pytest.approx(max(2 * np.sqrt(f + m), -np.log(0.05) / 20), rel=1e-12)
    (half,) = on.half_widths(deployed, 0 * changes, np.array([0.0]), 2.0, 0.95, binary=True)
    assert half == pytest.approx(-np.log(0.05) / 20, rel=1e-12)  # the rule of three
    (half,) = on.half_widths(deployed, changes, np.array([0.01]), 2.0, 0.95, binary=False)
    assert half == pytest.approx(student(2.0, 19) * 0.01 * np.sqrt(20 / 19), rel=1e-12)


def test_the_floor_of_a_ratio_is_by_its_slopes() -> None:
    """Rates 0.2 of f and 0.8 of m by both models: df / 0.8 and -0.2 / 0.64 dm."""
    columns = {"sex": np.repeat(["f", "m"], 50).astype(object)}
    deployed = np.concatenate([np.arange(50) < 10, np.arange(50) < 40]).astype(float)
    on = SliceStatistic(statistic_of("ratio", by="sex"), columns)
    assert on.level(deployed) == pytest.approx(0.25)
    each = np.sqrt((1 / 52) / 52)
    expected = 3.0 * np.hypot(each / 0.8, each * 0.2 / 0.64)
    none = np.zeros((100, 1))
    (half,) = on.half_widths(deployed, none, np.zeros(1), 3.0, 0.95, binary=True)
    assert half == pytest.approx(max(expected, -np.log(0.05) / 50 / 0.8), rel=1e-12)


# --- whole audits ---------------------------------------------------------------------------------


@pytest.fixture
def spec(audit_spec: Path) -> Path:
    """The small audit, its people of two large regions and a small one."""
    table = audit_spec.parent / "holdout.parquet"
    frame = pd.read_parquet(table)
    region = 1 + np.arange(len(frame)) % 2
    region[:4] = 3
    frame.assign(region=region).to_parquet(table)
    lock(audit_spec)
    return audit_spec


def with_statistic(spec: Path, **statistic: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        first = data["behaviors"][1] | {"metric": {"name": "rate", "class": 2}, "id": "gap"}
        del first["where"]
        data["behaviors"] = [
            first | {"statistic": statistic},
            first | {"id": "rate"},  # the same metric and slice, and other rows
        ]

    edit_spec(spec, change)


def test_a_small_group_is_refused_at_its_place_before_any_code_runs(spec: Path) -> None:
    with_statistic(spec, name="difference", by="region")
    (problem,) = check(load(spec)).spec_problems
    assert problem.code == "AS056"
    assert ": 3 (4)" in problem.message
    line = spec.read_text().splitlines()[problem.line - 1]
    assert "region" in line


def test_a_column_that_is_not_there_is_told(spec: Path) -> None:
    with_statistic(spec, name="difference", by=["region", "regoin"])
    (problem,) = check(load(spec)).spec_problems
    assert problem.code == "AS031"
    assert "region" in problem.hint


def test_what_is_left_out_is_neither_counted_nor_hidden(spec: Path) -> None:
    with_statistic(spec, name="difference", by="region", small="leave-out")
    result = run_audit(load(spec), command="auditspec run")
    gap, rate = result.behaviors
    assert (gap.examples, rate.examples) == (116, 120)
    assert [(g.name, g.examples) for g in gap.groups] == [
        ("1", 58),
        ("2", 58),
        ("3", 4),
    ]
    first, second, small = (g.level for g in gap.groups)
    assert small is None
    assert gap.value == pytest.approx(abs(first - second), abs=1e-12)
    assert gap.unit == "difference of shares"
    assert rate.groups == ()
    said = " ".join(text(limitation.message) for limitation in result.limitations)
    assert "left out of gap (4 examples): 3" in said
    page = render_html(result)
    assert "largest less smallest mean of groups by region" in page
    assert "3: left out" in page
    assert "percentage points" in page
