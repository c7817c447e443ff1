"""The calibration study's arithmetic, on rows made by hand; and one small audit of each sort."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.calibration import audits, check, figures, study
from benchmarks.calibration.draw import KINDS, LIES, Drawn, draw
from benchmarks.calibration.tables import all_figures, calibration_tables


def row(
    seed: int = 1,
    verdict: str = "attributed",
    stages: tuple[int, ...] = (1,),
    exact: tuple[float, ...] = (-4.0, 3.0, 0.2),
    value: tuple[float, ...] | None = None,
    settle: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """An honest audit with one behaviour, of which a decrease is harm: the signs on disk are turned."""
    turned = [-v for v in (value or exact)]
    found = {
        "verdict": verdict,
        "stages": list(stages),
        "reasons": [],
        "settle": settle,
        "value": turned,
        "low": [v - 1 for v in turned],
        "high": [v + 1 for v in turned],
        "error": [0.3, 0.0, 0.0],
        "leads": [0.0, 1.0, 0.0],
    }
    arm = {"exit": 1, "gradients": 10.0, "checks": {}, "verdicts": {"b0": found}}
    estimated = {
        "raw": [turned[0], turned[1], None],
        "rms": [0.2, 0.1, None],
        "own": [0.3, 0.3, None],
    }
    methods = ["paired-replay", "replay", "replay"]
    behavior = {
        "id": "b0",
        "metric": "probability",
        "direction": "decrease",
        "tolerance": 1.0,
        "examples": 40,
        "pool_examples": 80,
        "exact": [-v for v in exact],
        "pool": [-v for v in exact],
    }
    return {
        "seed": seed,
        "kind": "one",
        "lie": None,
        "behaviors": [behavior | changes],
        "quarter": arm | {"methods": methods, "verdicts": {"b0": found | estimated}},
        "lifted": arm | {"methods": ["replay"] * 3},
    }


def lie(exit_code: int = 3, verdict: str = "inconclusive") -> dict[str, Any]:
    held = {"exit": exit_code, "verdicts": {"b0": {"verdict": verdict}}}
    return {"seed": 9, "kind": "lie", "lie": "edited-weights", "quarter": held}


def shown(rows: list[dict[str, Any]], start: str, arm: str = "quarter") -> figures.Figure:
    (found,) = (f for a, f in all_figures(rows) if a == arm and f.what.startswith(start))
    return found


def counted(rows: list[dict[str, Any]], start: str, arm: str = "quarter") -> str:
    return shown(rows, start, arm).counted


def test_effects_are_signed_towards_the_concern() -> None:
    (case,) = figures.cases([row()], "quarter")
    assert case.exact == (-4.0, 3.0, 0.2)
    assert (case.low[1], case.high[1]) == (2.0, 4.0)
    assert case.leading == 3.0
    assert case.estimated == (True, False, False)


def test_an_attribution_is_right_where_exact_replay_leads_above_the_tolerance() -> None:
    rows = [row(1), row(2, stages=(2,)), row(3, exact=(0.0, 0.9, 0.2))]
    assert counted(rows, "attributed: names the stage") == "1 of 3"
    assert not shown(rows, "attributed: names the stage").reached
    assert shown([row()], "attributed: names the stage").reached


def test_an_audit_without_a_guilty_stage_is_falsely_attributed_once_however_many_behaviours() -> (
    None
):
    innocent = row(1, exact=(-4.0, 0.9, 0.2))
    twice = json.loads(json.dumps(innocent))
    twice["behaviors"].append(twice["behaviors"][0] | {"id": "b1"})
    for arm in figures.ARMS:
        twice[arm]["verdicts"]["b1"] = twice[arm]["verdicts"]["b0"]
    rows = [twice, row(2, "no-effect", (), (-4.0, 0.9, 0.2)), row(3)]
    assert counted(rows, "no guilty stage: audits") == "1 of 2"
    assert counted(rows, "no guilty stage: behaviours") == "2 of 3"


def test_power_counts_effects_above_two_tolerances_and_asks_the_rest_for_a_way_on() -> None:
    rows = [
        row(1),
        row(2, "inconclusive", (), settle=1),
        row(3, "shared", (1, 2)),
        row(4, "inconclusive", (), (0.0, 1.9, 0.0)),
    ]
    assert counted(rows, "leading effect above 2") == "1 of 3"
    rest = shown(rows, "… of the rest")
    assert (rest.counted, rest.reached) == ("1 of 2", False)
    assert shown([row()], "… of the rest").reached  # nothing is left to settle
    assert not shown([lie()], "… of the rest").reached  # nothing was asked at all


def test_an_estimate_is_wrong_by_half_of_the_leading_effect_or_of_the_tolerance() -> None:
    just, over = row(1, value=(1.5, 3.0, 0.2)), row(2, value=(1.51, 3.0, 0.2))
    harmless = row(3, value=(-9.0, 3.0, 0.2))
    small = row(4, "no-effect", (), (-4.0, 0.3, 0.2), (-4.0, 0.7, 0.2))
    rows = [just, over, harmless, small]
    assert counted(rows, "effect in use wrong by half") == "0 of 1"
    assert counted(rows, "… harmless stages counted too") == "0 of 3"
    cautious = row(5, "inconclusive", (), value=(2.0, 3.0, 0.2))
    assert counted([cautious], "effect in use wrong by half") == "1 of 1"


def test_own_errors_are_those_of_effects_in_use_as_estimated() -> None:
    (case,) = figures.cases([row()], "quarter")
    assert figures.own_errors([case]) == [(0.3, 0.2)]
    found = [f for f in figures.figures([row()], "quarter") if f.what.startswith("own error")]
    assert [f.value for f in found] == [1.0, pytest.approx(1.5)]
    silent = row()
    silent["quarter"]["verdicts"]["b0"]["error"][0] = 0.0  # it said 0 and was wrong
    assert figures.own_errors(figures.cases([silent], "quarter")) == [(0.0, 0.2)]
    assert counted([silent], "own error: true error") == "0 of 1"


def test_intervals_are_held_against_the_pool_and_its_noise() -> None:
    noise = math.sqrt(1 + 40 / 80)
    inside = row(1, pool=[4.0, -3.0 + 0.99 * noise, -0.2])
    outside = row(2, pool=[4.0, -3.0 + 1.01 * noise, -0.2])
    rows = [inside, outside]
    for arm in figures.ARMS:
        assert counted(rows, "interval: exact effect on the pool", arm) == "5 of 6"
        assert counted(rows, "… of all stages and behaviours", arm) == "1 of 2"
    widths = figures.pool_errors(figures.cases([inside], "lifted"))
    assert widths[1] == (pytest.approx(noise), pytest.approx(0.99 * noise))


def test_lies_are_caught_by_exit_code_and_by_every_verdict() -> None:
    assert figures.caught([lie(), row()]).value == 1
    assert figures.caught([lie(), lie(5)]).value == 0.5
    assert figures.caught([lie(verdict="no-effect")]).value == 0
    refused = lie() | {"quarter": "the budget is too small"}
    assert not figures.caught([refused]).reached
    assert not figures.caught([row()]).reached  # no lie was told


def test_an_audit_that_gave_no_estimate_is_counted_and_left_out() -> None:
    refused = row(2) | {"quarter": "the counterfactual diverges"}
    rows = [row(1), refused]
    assert figures.gave_estimates(rows, "quarter").counted == "1 of 2"
    assert figures.gave_estimates(rows, "lifted").counted == "2 of 2"
    assert len(figures.cases(rows, "quarter")) == 1


# --- the check ------------------------------------------------------------------------------------


def test_the_check_names_what_falls_short(tmp_path: Path, capsys: Any) -> None:
    good = [row(i) for i in range(5)] + [row(9, "no-effect", (), (-4.0, 0.3, 0.2)), lie()]
    path = tmp_path / "calibration.json"
    path.write_text(study.encode({"command": "c", "seeds": [1, 2], "versions": {}, "audits": good}))
    assert check.main(["--committed", str(path), "--no-run"]) == 0
    assert "ok   quarter: attributed: names the stage" in capsys.readouterr().out
    path.write_text(json.dumps({"audits": [*good, lie(1)]}))
    assert check.main(["--committed", str(path), "--no-run"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "falls short: quarter: records that lie: caught (1 of 2): 0.5 (≥ 1)"
    ]


def test_fresh_shares_may_differ_by_chance_only() -> None:
    before = figures.Share("s", 98, 98)
    assert check.surprise(before, figures.Share("s", 3, 3)) > 0.9
    assert check.surprise(before, figures.Share("s", 2, 3)) == pytest.approx(1 - 0.99**3)
    assert check.surprise(before, figures.Share("s", 1, 3)) < check.RARE
    assert check.surprise(before, figures.Share("s", 0, 0)) == 1


def test_fresh_audits_like_the_committed_ones_pass() -> None:
    committed = [row(i) for i in range(20)] + [lie()]
    lines = list(check.against_committed(committed, [row(1), row(2), lie()]))
    assert all(line.ok for line in lines)
    wrong = [row(i, stages=(2,)) for i in range(3)]
    short = [li.what for li in check.against_committed(committed, [*wrong, lie()]) if not li.ok]
    assert "fresh, quarter: attributed: names the stage that exact replay names" in short


def test_rows_survive_the_file_and_the_tables() -> None:
    result = {"command": "c", "seeds": [1, 9], "versions": {"torch": "0"}, "audits": [row(), lie()]}
    assert json.loads(study.encode(result)) == result
    text = calibration_tables(result)
    assert "| records that lie: caught | 1 | 1 of 1 | ≥ 1 |" in text
    assert "| 2 to 5 | 1 | 0 | 0 | 0 |" in text


# --- the draws ------------------------------------------------------------------------------------


def test_a_seed_always_draws_the_same_audit() -> None:
    assert draw(3) == draw(3)
    assert draw(3) != draw(3 + len(KINDS))


def test_every_kind_and_lie_comes_up_and_pipelines_are_as_promised() -> None:
    drawn = [draw(seed) for seed in range(len(KINDS) * len(LIES))]
    assert Counter(d.kind for d in drawn) == Counter(KINDS * len(LIES))
    assert {d.lie for d in drawn if d.kind == "lie"} == set(LIES)
    assert {d.optimizer for d in drawn} == {"SGD", "AdamW"}
    for d in drawn:
        assert 3 <= len(d.stages) <= 7
        assert len(d.faults) == {"clean": 0, "one": 1, "two": 2, "lie": 1}[d.kind]
        assert len({f.stage for f in d.faults}) == len(d.faults)
        assert 2 <= len(d.behaviors) <= 3
        assert all(f.true in d.stages[f.stage].classes and f.true != f.called for f in d.faults)
        assert all(stage.classes for stage in d.stages)
        steps = np.array([s.steps for s in d.stages])
        assert d.exact_gradients == sum(steps[i + 1 :].sum() for i in range(len(steps)))


# --- whole audits ---------------------------------------------------------------------------------


def short(drawn: Drawn) -> Drawn:
    """The same pipeline with at most twelve steps a stage."""
    stages = tuple(replace(stage, steps=min(stage.steps, 12)) for stage in drawn.stages)
    return replace(drawn, stages=stages)


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "draw", lambda seed: short(draw(seed)))


@pytest.mark.slow
@pytest.mark.parametrize("which", range(len(LIES)), ids=LIES)
@pytest.mark.usefixtures("shortened")
def test_every_lie_is_told_and_caught(which: int) -> None:
    found = audits.row_of(len(KINDS) * which + KINDS.index("lie"))
    assert found["lie"] == LIES[which]
    assert found["quarter"]["checks"]["evidence-integrity"] == "pass"
    assert found["quarter"]["checks"]["optimizer-match"] == "pass"
    assert figures.is_caught(found)


@pytest.mark.slow
@pytest.mark.usefixtures("shortened")
def test_an_honest_audit_is_held_against_exact_replay() -> None:
    found = audits.row_of(0)
    assert figures.gave_estimates([found], "quarter").value == 1
    assert set(found["quarter"]["methods"]) == {"paired-replay", "replay"}
    assert set(found["lifted"]["methods"]) == {"replay"}
    for behavior in found["behaviors"]:
        verdict = found["lifted"]["verdicts"][behavior["id"]]
        assert verdict["value"] == pytest.approx(behavior["exact"], rel=1e-3, abs=1e-5)
    assert json.loads(json.dumps(found)) == found
