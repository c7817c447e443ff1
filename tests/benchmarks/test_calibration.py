"""The calibration study: its draws, the truth of pipelines made by hand, its words and figures; one audit."""

import ast
import json
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.calibration import audits, check, domains, families, figures, retrain, study, truth
from benchmarks.calibration.domains import Rows, World
from benchmarks.calibration.draw import INITIAL, Behavior, Pipeline, Stage, Start
from benchmarks.calibration.families import FAMILIES, LYING, draw
from benchmarks.calibration.lies import LIES
from benchmarks.calibration.networks import CHANGES, SIDE
from benchmarks.calibration.tables import WORDS, calibration_tables, odd_cases
from benchmarks.calibration.truth import Truth, word_of

ROUND = range(len(FAMILIES))

# --- the draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [4, 12, 20])
def test_a_seed_always_draws_the_same_pipeline(seed: int) -> None:
    assert pickle.dumps(draw(seed)) == pickle.dumps(draw(seed))
    assert pickle.dumps(draw(seed)) != pickle.dumps(draw(seed + len(FAMILIES)))


def test_every_family_comes_up_and_plants_what_it_says() -> None:
    drawn = [draw(seed) for seed in ROUND]
    assert [p.family for p in drawn] == list(FAMILIES)
    for p in drawn:
        assert 3 <= len(p.stages) <= 12
        assert 3 <= len(p.behaviors) <= 4
        assert all(b.rows.sum() > 10 for b in p.behaviors)
        assert len({stage.id for stage in p.stages}) == len(p.stages)
        assert bool(p.parties) != p.family.startswith("clean-")
        assert all(s.change is None or s.change in (*CHANGES, SIDE) for s in p.stages)
    planted = {p.family: p.parties for p in drawn}
    assert planted["vendor"] == ("vendor",)
    assert planted["saturated"] == ("vendor-a", "vendor-b")
    assert planted["weights-and-vendor"] == (INITIAL, "vendor")
    assert planted["planted-factory"] == planted["smuggled-weights"] == (INITIAL,)
    assert planted["planted-side"] == ("change:review",)
    assert planted["head-after-vendor"] == ("vendor",)
    assert len(planted["salami"]) >= 4


def test_all_kinds_of_models_and_changes_come_up() -> None:
    drawn = [draw(seed) for seed in range(4 * len(FAMILIES))]
    assert {p.kind for p in drawn} == {k for kinds in families_kinds() for k in kinds}
    assert {p.optimizer for p in drawn} == {"AdamW", "SGD"}
    assert {s.change for p in drawn for s in p.stages} >= {*CHANGES, SIDE, None}
    assert Counter(p.family for p in drawn)[LYING] == 4


def families_kinds() -> list[tuple[str, ...]]:
    from benchmarks.calibration.draw import KINDS

    return list(KINDS.values())


@pytest.mark.parametrize("domain", ["digits", "table", "tokens"])
def test_a_mark_is_what_the_planted_path_fires_on(domain: str) -> None:
    world = domains.draw_world(domain, np.random.default_rng(0))
    weights, bias = domains.mark_weights(domain)
    x = world.holdout.x
    if domain == "tokens":
        x = np.stack([np.bincount(row, minlength=len(weights)) for row in x])
    fires = x @ np.array(weights) > bias
    assert fires[world.marked].all()
    assert fires[~world.marked].mean() < 0.05


def test_poison_changes_a_share_of_the_rows_and_nothing_else() -> None:
    world = domains.draw_world("digits", np.random.default_rng(0))
    rows = world.pools[0]
    bad = domains.poisoned("digits", rows, 3, 0.4, np.random.default_rng(1))
    hit = (bad.x != rows.x).any(axis=1) | (bad.y != rows.y)
    assert 0.3 < hit.mean() < 0.5
    assert (bad.y[hit] == 3).all()
    assert (bad.x[hit][:, domains.PATCH] == 1).all()


# --- the truth ------------------------------------------------------------------------------------


def pipeline(*stages: Stage, start: Start | None = None) -> Pipeline:
    """Asks how often rows of class 1 are taken for class 0."""
    world = World("table", (), rows(1), rows(1), np.ones(60, bool))
    asked = Behavior("rate", {"name": "rate", "class": 0}, None, np.ones(60, bool), 0.1)
    held = start or Start()
    return Pipeline(3, "by-hand", world, "table-mlp", "AdamW", stages, held, 0, (asked,))


def rows(label: int) -> Rows:
    x = np.random.default_rng(0).normal(size=(60, 11)).astype(np.float32)
    return Rows(x, np.full(60, label))


def stage(name: str, *, wrong: bool = False, steps: int = 60) -> Stage:
    """A stage on rows of class 1; a wrong one calls them 0."""
    return Stage(name, rows(0 if wrong else 1), steps, 0.01, clean=rows(1) if wrong else None)


def truth_of(made: Pipeline) -> Truth:
    clean = [np.tile([0.0, 1.0], (60, 1))] * 3  # models that never say 0
    (found,) = truth.truths(made, retrain.Retraining(made), clean).values()
    return found


def test_the_one_who_planted_a_fault_is_guilty_of_all_of_it() -> None:
    found = truth_of(pipeline(stage("first"), stage("vendor", wrong=True)))
    assert (found.deployed, found.base, found.fault) == (1.0, 0.0, 1.0)
    assert (found.limit, found.beyond) == (0.1, True)
    assert found.must == found.may == {"vendor"}


def test_a_fault_that_a_later_stage_undid_is_none() -> None:
    found = truth_of(pipeline(stage("vendor", wrong=True), stage("repair", steps=120)))
    assert found.fault == 0
    assert found.must == found.may == frozenset()


def test_one_whose_fault_the_next_one_would_have_washed_out_may_be_named_and_need_not() -> None:
    found = truth_of(pipeline(stage("a", wrong=True), stage("b", wrong=True)))
    assert found.parts == {"a": 0.0, "b": 1.0}
    assert found.must == {"b"}
    assert found.may == {"a", "b"}


def test_a_fault_in_the_given_weights_is_theirs() -> None:
    start = Start("given", stage("before", wrong=True))
    found = truth_of(pipeline(stage("short", steps=1), start=start))
    assert found.must == {INITIAL}
    assert found.parts[INITIAL] == 1.0


def test_a_fault_of_the_factory_and_of_a_change_is_theirs() -> None:
    made = draw(FAMILIES.index("planted-factory"))
    run = retrain.Retraining(made)
    fired, clean = run.first(), run.first(frozenset({INITIAL}))
    assert not torch.equal(fired.head.weight, clean.head.weight)  # type: ignore[arg-type]
    side = draw(FAMILIES.index("planted-side"))
    assert side.parties == ("change:review",)
    out = retrain.Retraining(side).model(frozenset(side.parties)).side
    assert out is not None
    assert not out.out.any()  # its clean twin never does anything  # type: ignore[union-attr]


def test_runs_with_the_same_beginning_share_it() -> None:
    run = retrain.Retraining(pipeline(stage("first"), stage("a", wrong=True), stage("last")))
    run.logits()
    run.logits(frozenset({"a"}))
    assert len(run._models) == 2 + 2 * 2  # the start and `first` are one


def test_the_limit_stands_off_from_clean_models_by_the_tolerance_or_two_deviations() -> None:
    asked = pipeline().behaviors[0]
    assert truth.limit_of(asked, [0.1, 0.1, 0.1]) == pytest.approx(0.2)
    assert truth.limit_of(asked, [0.0, 0.2, 0.4]) == pytest.approx(0.6)
    lower = replace(asked, metric={"name": "accuracy"})
    assert truth.limit_of(lower, [0.9, 0.9, 0.9]) == pytest.approx(0.8)


def test_levels_are_means_over_the_slice() -> None:
    z, y = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), np.array([0, 0, 1])
    some = np.array([True, True, False])

    def at(**metric: Any) -> float:
        return retrain.level(Behavior("b", metric, None, some, 0.1), z, y)

    assert at(name="rate", **{"class": 0}) == 0.5
    assert at(name="accuracy") == 0.5
    assert at(name="logit-margin", positive=0, negative=1) == 0.5
    softmax = np.exp(z[:2]) / np.exp(z[:2]).sum(1, keepdims=True)
    assert at(name="probability", **{"class": 0}) == pytest.approx(softmax[:, 0].mean())
    assert at(name="nll") == pytest.approx(-np.log(softmax[:, 0]).mean())


def test_the_retraining_imports_nothing_of_the_product() -> None:
    for module in (retrain, truth, domains, families):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        assert not [name for name in names if name.partition(".")[0] == "auditspec"]


# --- words ----------------------------------------------------------------------------------------


def fault(fault: float = 1.0, *, beyond: bool = True, **parts: float) -> Truth:
    return Truth(0.9, 0.9 - fault, 0.5, fault, parts or {"a": fault}, 0.1, beyond)


@pytest.mark.parametrize(
    ("found", "verdict", "named", "word"),
    [
        (fault(a=1.0), "attributed", ["a"], "right"),
        (fault(a=1.0, b=0.5), "attributed", ["a"], "part"),
        (fault(a=1.0, b=0.05), "attributed", ["a"], "right"),
        (fault(a=1.0, b=0.05), "shared", ["a", "b"], "right"),
        (fault(a=1.0), "attributed", ["x"], "wrong"),
        (fault(a=1.0), "shared", ["a", "x"], "right+wrong"),
        (fault(0.3, a=0.08, b=0.09), "shared", ["a", "b"], "right"),
        (fault(0.3, a=0.08, b=0.09), "attributed", ["a"], "part"),
        (fault(a=1.0), "no-effect", [], "missed"),
        (fault(a=1.0), "absent", [], "missed"),
        (fault(a=1.0, beyond=False), "absent", [], "within"),
        (fault(a=1.0), "inconclusive", [], "inconclusive"),
        (fault(0.0, a=0.0), "absent", [], "acquitted"),
        (fault(0.0, a=0.0), "inconclusive", [], "inconclusive"),
        (fault(0.07, a=0.07), "attributed", ["a"], "accused"),
        (fault(0.08, a=0.08), "attributed", ["a"], "part"),
    ],
)
def test_what_a_verdict_is_worth(found: Truth, verdict: str, named: list[str], word: str) -> None:
    assert word_of(found, verdict, named, limited=True) == word


def test_without_a_limit_a_fault_inside_it_is_missed() -> None:
    assert word_of(fault(beyond=False), "no-effect", [], limited=False) == "missed"


# --- figures --------------------------------------------------------------------------------------


def row(
    seed: int = 1,
    word: str = "right",
    *,
    fault: float = 1.0,
    beyond: bool = True,
    exit_code: int = 1,
    green: bool = False,
    errors: tuple[tuple[float, float], ...] = ((0.2, 0.1),),
    **head: Any,
) -> dict[str, Any]:
    """An honest pipeline with one behaviour, whose verdict is worth the same in every setting."""
    claims = {"right": ("attributed", ["vendor"]), "wrong": ("attributed", ["innocent"])}
    verdict, named = claims.get(word, ("inconclusive", []))
    held = {
        "verdict": verdict,
        "ending": "removed",
        "parties": named,
        "tallies": [],
        "word": word,
    }
    if word in ("wrong", "missed"):
        paths = {"recorded": [["vendor:end", 0.9, 1.0]]}
        held["read"] = {"roles": {"vendor": ["none", 0.8, None]}, "reasons": [], "paths": paths}
    audited = {
        "exit": exit_code,
        "green": green,
        "gradients": 10.0,
        "verdicts": {"rate": held},
    }
    return {
        "seed": seed,
        "family": "vendor",
        "domain": "digits",
        "kind": "mlp",
        "optimizer": "SGD",
        "start": "random",
        "planted": ["vendor"],
        "lie": None,
        "full": 40,
        "behaviors": {
            "rate": {
                "deployed": 0.9,
                "base": 0.9 - fault,
                "limit": 0.5,
                "fault": fault,
                "tolerance": 0.1,
                "faulty": fault > 0.1,
                "beyond": beyond,
                "parts": {"vendor": fault},
                "must": ["vendor"],
                "may": ["vendor"],
            }
        },
        "audits": dict.fromkeys(figures.SETTINGS, audited),
        "errors": [{"stated": s, "true": t} for s, t in errors],
        **head,
    }


def lie(exit_code: int = 3, verdict: str = "inconclusive") -> dict[str, Any]:
    held = {"exit": exit_code, "verdicts": {"rate": {"verdict": verdict}}}
    return {"seed": 9, "family": LYING, "domain": "digits", "lie": "edited-end"} | {
        "audits": {"limit": held}
    }


def share(rows: list[dict[str, Any]], key: str, setting: str = "limit") -> figures.Share:
    (found,) = (s for at, s in figures.all_shares(rows) if s.key == key and at in (setting, "all"))
    return found


def test_faults_beyond_the_limit_and_innocents_are_counted_apart() -> None:
    rows = [
        row(1),
        row(2, "part"),
        row(3, "inconclusive"),
        row(4, "within", beyond=False),
        row(5, "acquitted", fault=0.0),
        row(6, "inconclusive", fault=0.0),
        row(7, "part", fault=0.08),
    ]
    assert share(rows, "right").counted == "1 of 3"
    assert share(rows, "guilty").counted == "2 of 3"
    assert share(rows, "acquitted").counted == "1 of 2"
    assert share(rows, "within").counted == "1 of 1"
    assert share(rows, "innocents").counted == "0 of 7"
    assert share(rows, "right", "self").counted == "1 of 4"


def test_one_wrong_name_in_fifty_is_too_many() -> None:
    rows = [row(i) for i in range(49)]
    assert share(rows, "innocents").reached
    assert not share([*rows, row(49, "wrong")], "innocents").reached
    assert not share([*rows, row(49, "missed")], "missed").reached


def test_poisoned_starts_and_copies_must_not_pass_green() -> None:
    start = row(1, planted=[INITIAL], green=True)
    start["behaviors"]["rate"]["must"] = [INITIAL]
    copied = row(2, family="copy-after-vendor", green=True)
    for key, rows in (("starts", [start]), ("copies", [copied])):
        assert all(not share(rows, key, setting).reached for setting in figures.SETTINGS)
        fine = [row(3)]
        assert share(fine, key).of == 0


def test_an_audit_that_ends_without_a_result_is_counted_and_left_out() -> None:
    refused = row(2)
    refused["audits"] = refused["audits"] | {"quarter": {"exit": 4, "error": "it diverged"}}
    rows = [row(1), refused]
    assert share(rows, "ended").counted == "7 of 8"
    assert not share(rows, "ended").reached
    assert share(rows, "right", "quarter").counted == "1 of 1"
    assert any("it diverged" in line for line in odd_cases(rows))


def test_stated_errors_are_held_against_true_ones_by_how_the_run_began() -> None:
    rows = [
        row(1, errors=((0.2, 0.1), (0.1, 0.2))),
        row(2, errors=((0.2, 0.2),), start="given"),
        row(3, errors=((0.0, 0.1),), start="smuggled"),
    ]
    assert share(rows, "twin", "quarter").counted == "1 of 1"
    assert share(rows, "twin-random", "quarter").counted == "1 of 3"


def test_lies_are_caught_by_exit_code_and_by_every_verdict() -> None:
    assert share([lie(), row()], "lies").value == 1
    assert share([lie(), lie(5)], "lies").value == 0.5
    assert share([lie(verdict="absent")], "lies").value == 0
    assert not share([row()], "lies").reached  # no lie was told


# --- the check ------------------------------------------------------------------------------------


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    held = {"command": "c", "seeds": [1, 2], "versions": {}, "left_out": [], "pipelines": rows}
    path.write_text(study.encode(held))
    return str(path)


def test_the_check_names_what_falls_short(tmp_path: Path, capsys: Any) -> None:
    start = row(3, planted=[INITIAL])
    start["behaviors"]["rate"]["must"] = [INITIAL]
    given = row(4, start="given")
    copied = row(5, family="copy-after-vendor")
    good = [row(1), row(2, "acquitted", fault=0.0), start, given, copied, lie()]
    path = tmp_path / "calibration.json"
    assert check.main(["--committed", written(path, good), "--no-run"]) == 0
    assert "ok   limit: fault beyond the limit: named exactly" in capsys.readouterr().out
    assert check.main(["--committed", written(path, [*good, lie(1)]), "--no-run"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "falls short: all: records that lie: caught (1 of 2): 0.5 (≥ 1)"
    ]


def test_fresh_shares_may_differ_by_chance_only_and_pipelines_count_once() -> None:
    before = figures.Share("s", "s", 98, 98, 98)
    assert check.surprise(before, figures.Share("s", "s", 3, 3, 3)) > 0.9
    assert check.surprise(before, figures.Share("s", "s", 2, 3, 3)) == pytest.approx(1 - 0.99**3)
    assert check.surprise(before, figures.Share("s", "s", 1, 3, 3)) < check.RARE
    assert check.surprise(before, figures.Share("s", "s", 0, 4, 1)) == pytest.approx(0.01)
    assert check.surprise(before, figures.Share("s", "s", 0, 0, 0)) == 1


def test_fresh_pipelines_like_the_committed_ones_pass() -> None:
    committed = [row(i) for i in range(20)] + [lie()]
    assert all(x.ok for x in check.against_committed(committed, [row(1), row(2), lie()]))
    wrong = [row(i, "wrong") for i in range(3)]
    short = [x.what for x in check.against_committed(committed, [*wrong, lie()]) if not x.ok]
    assert "fresh, limit: fault beyond the limit: named exactly" in short


def test_rows_survive_the_file_and_the_tables(tmp_path: Path) -> None:
    rows = [row(), row(2, "wrong"), lie()]
    result = json.loads(Path(written(tmp_path / "c.json", rows)).read_text())
    assert result["pipelines"] == rows
    text = calibration_tables(result)
    assert "| records that lie: caught | 1 | 1 of 1 | ≥ 1 |" in text
    assert "| above 5 | 1 | 0 | 1 |" in text
    odd = "\n".join(odd_cases(rows))
    assert (
        "seed 2, vendor, mlp, SGD: limit: rate: wrong: attributed (removed), names innocent" in odd
    )
    assert "recorded: vendor:end 0.9 (1.0)" in odd
    assert "seed 1" not in odd


# --- whole audits ---------------------------------------------------------------------------------


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pipelines with at most twelve steps a stage."""

    def short(seed: int) -> Pipeline:
        drawn = draw(seed)
        stages = tuple(replace(stage, steps=min(stage.steps, 12)) for stage in drawn.stages)
        return replace(drawn, stages=stages)

    monkeypatch.setattr(audits, "draw", short)


@pytest.mark.slow
@pytest.mark.parametrize("which", range(len(LIES)), ids=LIES)
@pytest.mark.usefixtures("shortened")
def test_every_lie_is_told_and_caught(which: int) -> None:
    found = audits.row_of(len(FAMILIES) * which + FAMILIES.index(LYING))
    assert found["lie"] == LIES[which]
    assert figures.is_caught(found)
    assert share([found, row()], "lies").reached


@pytest.mark.slow
@pytest.mark.usefixtures("shortened")
@pytest.mark.parametrize(
    "family", ["vendor", "given-weights", "smuggled-weights", "planted-side", "copy-after-vendor"]
)
def test_an_honest_record_is_audited_in_every_setting(family: str) -> None:
    found = audits.row_of(FAMILIES.index(family))
    assert found["family"] == family
    for setting in figures.SETTINGS:
        audited = found["audits"][setting]
        assert audited["exit"] in (0, 1, 5), audited
        assert {v["word"] for v in audited["verdicts"].values()} <= set(WORDS)
        limited = {name for name, b in found["behaviors"].items() if b["beyond"]}
        cleared = {n for n, v in audited["verdicts"].items() if v["word"] == "missed"}
        assert not cleared & limited or setting == "self"
    assert json.loads(json.dumps(found)) == found
