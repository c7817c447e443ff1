import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bars, check, tables


def measured(error: float, **changes: Any) -> dict[str, Any]:
    return {
        "error": error,
        "error_middle": error,
        "stages": {
            stage: {"error": error, "pearson": 1.0, "spearman": 1.0} for stage in ("a", "b", "c")
        },
        "leading": {"right": 10, "counted": 10, "behaviours": 12},
        "gradients": 25.0,
        "cost": 0.25,
        "cpu": 1.0,
        "cpu_ratio": 0.5,
        "wall_ratio": 0.5,
        "peak_mb": None,
        "note": "",
        "twin": {"gradients": 25.0, "stages": {"a": {"estimated": 2.0, "true": 1.0}}},
    } | changes


def table(**changes: Any) -> dict[str, Any]:
    """A result in which every bar is reached."""
    estimators = {
        "none": measured(5.0, leading={"right": 7, "counted": 10, "behaviours": 12}),
        "auto 1/4": measured(0.001),
        "krylov": {"refused": "no krylov here"},
    } | {name: measured(0.001) for name in bars.PAIRED}
    seed = {
        "stages": ["a", "b", "c", "d"],
        "exact": {"gradients": 100, "cpu": 1.0},
        "estimators": estimators,
    }
    settings = {
        name: {
            "title": name,
            "fault": "b",
            "steps": [5, 5, 5, 5],
            "seeds": {s: json.loads(json.dumps(seed)) for s in ("1", "2", "3")},
        }
        for name in bars.ERROR_AT_A_QUARTER
    }
    return {
        "command": "python -m benchmarks.ladder",
        "versions": {"torch": "0"},
        "seeds": [1, 2, 3],
        "settings": settings,
        "costs": [
            {"table": "t", "setting": "s", "what": "w", "measured": 1.0, "bar": 2.0, "ok": True}
        ],
        "peers": {"not_run": "no peers here"},
    } | changes


def run_check(result: dict[str, Any], folder: Path) -> int:
    path = folder / "ladder.json"
    path.write_text(json.dumps(result))
    return check.main(["--committed", str(path), "--no-run"])


def test_a_table_that_reaches_every_bar_passes(tmp_path: Path, capsys: Any) -> None:
    assert run_check(table(), tmp_path) == 0
    shown = capsys.readouterr()
    assert "paired replay at 1/4, error over middle stages, digits-sgd-gentle" in shown.out
    assert "0.001  bar ≤ 0.02" in shown.out
    assert "0.7  no bar" in shown.out  # `none`, printed beside
    assert shown.err == ""


def test_what_falls_short_is_named(tmp_path: Path, capsys: Any) -> None:
    result = table()
    for seed in result["settings"]["digits-sgd-cnn"]["seeds"].values():
        seed["estimators"]["paired-replay 1/4"]["error_middle"] = 0.33
    assert run_check(result, tmp_path) == 1
    short = capsys.readouterr().err.splitlines()
    assert short == [
        "falls short: paired replay at 1/4, error over middle stages, digits-sgd-cnn: "
        "0.33 (bar ≤ 0.32)"
    ]


def test_one_bad_seed_of_three_does_not_move_the_median(tmp_path: Path) -> None:
    result = table()
    seeds = result["settings"]["digits-sgd-cnn"]["seeds"]
    seeds["2"]["estimators"]["paired-replay 1/4"]["error_middle"] = 9.0
    assert run_check(result, tmp_path) == 0


def test_two_seeds_are_too_few(tmp_path: Path, capsys: Any) -> None:
    result = table()
    del result["settings"]["digits-adamw-cnn"]["seeds"]["3"]
    assert run_check(result, tmp_path) == 1
    assert "digits-adamw-cnn: none" in capsys.readouterr().err


def test_a_setting_that_was_not_run_falls_short(tmp_path: Path, capsys: Any) -> None:
    result = table()
    result["settings"]["mnist-cnn"] = {
        "title": "MNIST",
        "fault": "b",
        "steps": [],
        "seeds": {"1": {"not_run": "no archive"}},
    }
    assert run_check(result, tmp_path) == 1
    assert "mnist-cnn, seed 1: not run (no archive)" in capsys.readouterr().err


def test_costs_are_held_against_their_own_bars(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"table": "t", "setting": "s", "what": "slow", "measured": 3.0, "bar": 2.0, "ok": False},
        {"table": "t", "setting": "s", "what": "shown", "measured": 9.0, "bar": None, "ok": None},
        {"table": "u", "not_run": "not in this version"},
    ]
    assert run_check(table(costs=rows), tmp_path) == 1
    assert capsys.readouterr().err.splitlines() == [
        "falls short: t, s: slow: 3 (bar 2)",
        "falls short: u: not run (not in this version)",
    ]


def test_the_leading_share_pools_settings_and_seeds() -> None:
    result = table()
    first = result["settings"]["digits-sgd-gentle"]["seeds"]["1"]["estimators"]["auto 1/4"]
    first["leading"] = {"right": 0, "counted": 50, "behaviours": 60}
    assert bars.leading_share(result, estimator="auto 1/4") == pytest.approx(140 / 190)


def test_the_twin_is_counted_by_stage_setting_and_seed() -> None:
    result = table()
    first = result["settings"]["digits-sgd-gentle"]["seeds"]["1"]["estimators"]
    first["paired-replay 1/4"]["twin"]["stages"]["a"] = {"estimated": 1.0, "true": 4.0}
    assert bars.twin_coverage(result, estimator="paired-replay 1/4") == pytest.approx(14 / 15)
    assert bars.twin_width(result, estimator="paired-replay 1/4") == 2


def test_a_fresh_run_may_leave_the_committed_spread_by_the_factor_only() -> None:
    committed, setting = table(), "digits-sgd-gentle"
    fresh = json.loads(json.dumps(committed["settings"][setting]["seeds"]["1"]))

    def short() -> list[str]:
        return [li.what for li in check.against_committed(committed, setting, fresh) if not li.ok]

    assert short() == []
    found = fresh["estimators"]["paired-replay 1/4"]
    found["error_middle"] = 0.0019
    assert short() == []
    found["error_middle"] = 0.0021
    assert short() == [f"{setting}, paired-replay 1/4: error"]
    found |= {"error_middle": 0.001, "cost": 0.3}
    assert short() == [f"{setting}, paired-replay 1/4: cost"]
    fresh["estimators"]["paired-replay 1/4"] = {"refused": "broken"}
    assert short() == [f"{setting}, paired-replay 1/4"]


def test_figures_that_are_missing_reach_no_bar() -> None:
    assert not any(b.reached(math.nan) for b in bars.bars() if b.limit is not None)


def test_tables_name_what_was_not_run_and_what_refused() -> None:
    result = table()
    result["settings"]["mnist-cnn"] = {
        "title": "MNIST",
        "fault": "b",
        "steps": [],
        "seeds": {"1": {"not_run": "no archive"}},
    }
    text = tables.ladder_tables(result)
    assert "Not run: no archive" in text
    assert "- `krylov` refused: no krylov here" in text
    assert "| none | 5 | 5 | 5 | 5 | 5 |" in text
