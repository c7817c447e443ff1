"""Behaviours whose scores another tool makes: models written, scored without auditspec, read back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from factories import to_yaml
from small_audit import SPEC, lock, make, ran

from auditspec.artifacts.digest import digest_file
from auditspec.cli.main import cli
from auditspec.elsewhere import models_of
from auditspec.errors import SpecError
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.record.state import State
from auditspec.results import AuditResult, VerdictResult
from auditspec.runs import MadeRun

SCORER = """\
import json, pathlib, sys
import numpy as np, pandas as pd
from safetensors.numpy import load_file

assert not any(name.startswith("auditspec") for name in sys.modules)
models, out = pathlib.Path(sys.argv[1]), sys.argv[2]
data = pd.read_parquet("holdout.parquet")
x, y = data[["x0", "x1", "x2"]].to_numpy(np.float32), data["y"].to_numpy()
rows = []
for model in json.loads((models / "manifest.json").read_text())["models"]:
    w = load_file(models / model["path"])
    logits = np.tanh(x @ w["0.weight"].T + w["0.bias"]) @ w["2.weight"].T + w["2.bias"]
    for example in np.flatnonzero(y == 0):
        margin = float(logits[example, 2] - logits[example, 0])
        rows.append({"model": model["digest"], "example": int(example), "score": margin})
pd.DataFrame(rows).to_parquet(out)
"""
BUILT_IN, ELSEWHERE = "zero-as-two", "scored"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small audit whose behaviour is read off the model, and once more from scores to come."""
    folder = tmp_path_factory.mktemp("elsewhere")
    spec = make(folder)
    (folder / "score.py").write_text(SCORER)
    write(spec, scores=None)
    assert command("counterfactuals", spec, "-o", folder / "models").exit_code == 0
    subprocess.run([sys.executable, "score.py", "models", "scores.parquet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def write(spec: Path, scores: str | None = "scores", **metric: Any) -> Path:
    """The spec with both behaviours, alike but for where scores come from."""
    data = yaml.safe_load(to_yaml(SPEC))
    reads = {"id": "reads", "description": "Others are read", "metric": {"name": "accuracy"}}
    reads |= {"data": "holdout", "where": "y != 0"}
    reads |= {"concern": {"direction": "decrease", "tolerance": 0.9}}
    built_in = data["behaviors"][0] | {"skill": "reads"}
    again = built_in | {
        "id": ELSEWHERE,
        "metric": {"name": "external", "unit": "logits"} | metric,
    }
    if scores is not None:
        again["metric"]["scores"] = scores
        data["artifacts"]["scores"] = {"path": "scores.parquet"}
    data["behaviors"] = [built_in, again, reads]
    spec.write_text(to_yaml(data))
    lock(spec)
    return spec


def command(*words: object) -> Result:
    """A command of auditspec, which keeps no estimates."""
    arguments = [str(word) for word in words]
    return CliRunner().invoke(cli, [*arguments, "--no-cache"], catch_exceptions=False)


def verdict(result: AuditResult, behavior: str) -> VerdictResult:
    """Of one behaviour."""
    return next(v for v in result.verdicts if v.behavior == behavior)


def test_scores_of_another_tool_give_the_verdict_of_the_metric_built_in(folder: Path) -> None:
    result = ran(write(folder / "audit.yaml"))

    built_in, other = verdict(result, BUILT_IN), verdict(result, ELSEWHERE)
    assert built_in.verdict == "attributed"
    assert (other.verdict, other.ending) == (built_in.verdict, built_in.ending)
    assert [(r.party, r.role) for r in other.roles] == [(r.party, r.role) for r in built_in.roles]

    def numbers(behavior: str) -> list[float | None]:
        levels = [
            x
            for path in sorted(result.paths, key=lambda p: p.arm)
            if path.behavior == behavior
            for x in path.levels
        ]
        effects = [
            x for e in result.effects if e.behavior == behavior for x in (e.value, e.low, e.high)
        ]
        value = next(b.value for b in result.behaviors if b.id == behavior)
        return [value, *levels, *effects]

    assert len(numbers(ELSEWHERE)) > 15
    np.testing.assert_allclose(numbers(ELSEWHERE), numbers(BUILT_IN), rtol=0, atol=1e-6)


def test_models_are_ordinary_checkpoints_with_their_provenance(trained: Path) -> None:
    manifest = json.loads((trained / "models" / "manifest.json").read_text())

    by_path = {model["path"]: model for model in manifest["models"]}
    ends = {"deployed", "without-base", "without-labels"}
    assert ends < {path.partition("/")[0] for path in by_path}
    assert all(digest_file(trained / "models" / p)[0] == m["digest"] for p, m in by_path.items())
    assert len({model["digest"] for model in manifest["models"]}) == len(by_path)
    assert manifest["code"] == digest_file(trained / "small_training.py")[0]
    without = by_path["without-labels/model.safetensors"]["of"]
    assert {
        "run": ["omit labels"],
        "state": "polish:end",
        "exact": True,
        "method": "replay",
    } in without


def test_models_come_whole_and_replace_nothing_else(folder: Path) -> None:
    spec, models = write(folder / "audit.yaml", scores=None), folder / "models"
    before = digest_file(models / "manifest.json")[0]
    invoked = CliRunner().invoke(cli, ["counterfactuals", str(spec), "-o", str(models)])
    assert "holds models already" in str(invoked.exception)
    other = folder / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    for words in ((), ("--force",)):
        invoked = CliRunner().invoke(cli, ["counterfactuals", str(spec), "-o", str(other), *words])
        assert "something else" in str(invoked.exception)
    assert command("counterfactuals", spec, "-o", models, "--force").exit_code == 0
    again = json.loads((models / "manifest.json").read_text())
    assert len({m["digest"] for m in again["models"]}) == len(again["models"])
    assert digest_file(models / "manifest.json")[0] == before
    assert not [p for p in folder.iterdir() if p.name.endswith(".new")]

    (folder / "small_training.py").write_text("raise SystemExit\n")
    lock(spec)
    failed = CliRunner().invoke(cli, ["counterfactuals", str(spec), "-o", str(folder / "none")])
    assert failed.exception is not None
    assert not (folder / "none").exists()


def test_without_scores_a_behaviour_is_not_measured_and_says_so(folder: Path) -> None:
    result = ran(write(folder / "audit.yaml", scores=None))

    found = verdict(result, ELSEWHERE)
    assert found.verdict == "inconclusive"
    assert [found.statement.code, *(r.code for r in found.reasons)] == [
        "not-measured",
        "scores-none",
    ]
    assert verdict(result, BUILT_IN).verdict == "attributed"
    assert result.gate.exit_code in (1, 5)
    assert not [p for p in result.paths if p.behavior == ELSEWHERE]
    proposed = CliRunner().invoke(cli, ["limit", str(folder / "audit.yaml")])
    assert f"{ELSEWHERE}: no limit is proposed" in proposed.stderr
    assert f"{BUILT_IN}: limit" in proposed.stdout


def edited(folder: Path, change: Any) -> AuditResult:
    """The audit with other scores."""
    frame = pd.read_parquet(folder / "scores.parquet")
    change(frame).to_parquet(folder / "scores.parquet")
    return ran(write(folder / "audit.yaml"))


def digest_of(folder: Path, path: str) -> str:
    """Of a model that was written."""
    manifest = json.loads((folder / "models" / "manifest.json").read_text())
    return next(m["digest"] for m in manifest["models"] if m["path"].startswith(path + "/"))


def test_a_run_that_nobody_scored_is_missing_by_name(folder: Path) -> None:
    model = digest_of(folder, "without-labels")
    result = edited(folder, lambda frame: frame[frame["model"] != model])

    found = verdict(result, ELSEWHERE)
    assert (found.verdict, found.statement.code) == ("inconclusive", "run-missing")
    assert [(r.code, r.values["arm"]) for r in found.reasons] == [
        ("scores-lack-run", ("omit labels",))
    ]


def test_scores_of_runs_alone_say_nothing_of_the_deployed_model(folder: Path) -> None:
    model = digest_of(folder, "deployed")
    found = verdict(edited(folder, lambda frame: frame[frame["model"] != model]), ELSEWHERE)
    assert [r.code for r in found.reasons] == ["scores-not-of-deployed"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f[1:], "no score of example"),
        (lambda f: pd.concat([f, f[:1]]), "stands twice"),
        (lambda f: f.assign(score=f["score"].where(f.index != 3, np.nan)), "row 3: score nan"),
        (lambda f: f.assign(example=f["example"] + 120), "no row of 'holdout', which has 120"),
        (lambda f: f.assign(model="deployed"), "no digest of a model"),
        (lambda f: f.rename(columns={"score": "value"}), "no column 'score'"),
        (lambda f: f.assign(score="high"), "does not hold numbers"),
        (
            lambda f: pd.concat(
                [f, f[f["model"] == f["model"][0]].assign(model="sha256:" + "0" * 64)]
            ),
            "is no model of this audit",
        ),
    ],
)
def test_scores_that_are_none_are_refused_by_name(folder: Path, change: Any, told: str) -> None:
    result = edited(folder, change)

    integrity = next(check for check in result.checks if check.id == "evidence-integrity")
    assert integrity.outcome == "fail"
    assert "scores 'scores'" in str(integrity.reasons)
    assert told in str(integrity.reasons)
    assert result.gate.exit_code == 3


def test_what_is_no_table_of_scores_is_a_fault_of_the_spec(folder: Path) -> None:
    spec = write(folder / "audit.yaml", scores="code")
    with pytest.raises(SpecError) as raised:
        ran(spec)
    (problem,) = raised.value.problems
    assert (problem.code, problem.message) == ("AS036", "artifact 'code' holds no examples")


def test_a_swapped_table_is_refused_by_its_digest(folder: Path) -> None:
    spec = write(folder / "audit.yaml")
    frame = pd.read_parquet(folder / "scores.parquet")
    frame.assign(score=-frame["score"]).to_parquet(folder / "scores.parquet")
    result = ran(spec)
    assert result.gate.exit_code == 3
    assert [e.name for e in result.evidence if e.state == "mismatched"] == ["scores"]


def test_an_audit_may_have_nothing_but_scores_of_other_tools(folder: Path) -> None:
    spec = write(folder / "audit.yaml")
    data = yaml.safe_load(spec.read_text())
    data["behaviors"] = [b | {"skill": None} for b in data["behaviors"] if b["id"] == ELSEWHERE]
    spec.write_text(to_yaml(data))
    result = ran(spec)
    assert verdict(result, ELSEWHERE).verdict == "attributed"
    assert {e.behavior for e in result.effects} == {ELSEWHERE}
    told = {c.id: (c.outcome, *(r.code for r in c.reasons)) for c in result.checks}
    assert told["precision"] == ("pass", "no-behavior-read")
    assert told["additivity"] == told["placebo"] == ("not-run", "no-behavior-read")
    assert told["batching"] == ("not-run", "no-steady-score")


def test_noise_beyond_the_tolerance_decides_nothing(folder: Path) -> None:
    def twice(size: float) -> Any:
        rng = np.random.default_rng(0)
        return lambda frame: pd.concat(
            [
                frame.assign(
                    repetition=k, score=frame["score"] + rng.normal(size=len(frame)) * size
                )
                for k in range(4)
            ]
        )

    (folder / "quiet").mkdir()
    shutil.copy(folder / "scores.parquet", folder / "quiet")
    quiet = edited(folder, twice(0.2))
    assert verdict(quiet, ELSEWHERE).verdict == "attributed"
    check = next(c for c in quiet.checks if c.id == "evaluation-noise")
    examples = next(b.examples for b in quiet.behaviors if b.id == ELSEWHERE) or 0
    limit = 1.96 * np.sqrt(2) * 0.2 / np.sqrt(4 * examples) / 0.5
    assert check.outcome == "pass"
    assert check.statistic == pytest.approx(limit, rel=0.35)

    shutil.copy(folder / "quiet" / "scores.parquet", folder)
    loud = edited(folder, twice(4.0))
    assert verdict(loud, ELSEWHERE).statement.code == "noise-decides"
    assert next(c for c in loud.checks if c.id == "evaluation-noise").outcome == "fail"


FLIPS = """

def flipped(model, batch):
    right = (model(batch[0]).argmax(1) == batch[1]).float()
    return torch.where(torch.rand(len(right)) < SHARE, 1 - right, right)
"""


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_the_null_control_catches_a_metric_that_flips_scores(folder: Path, share: float) -> None:
    spec = write(folder / "audit.yaml", scores=None)
    code = folder / "small_training.py"
    code.write_text(code.read_text() + FLIPS.replace("SHARE", str(share)))
    data = yaml.safe_load(spec.read_text())
    metric = {"name": "custom", "entrypoint": "small_training:flipped", "unit": "share"}
    flips = {"id": "flips", "description": "Read right", "data": "holdout"}
    flips |= {"metric": metric | {"binary": True, "repeats": 20}, "skill": "reads"}
    flips |= {"concern": {"direction": "decrease", "tolerance": 0.05}}
    data["behaviors"] = [flips, data["behaviors"][2]]
    spec.write_text(to_yaml(data))
    lock(spec)
    result = ran(spec)

    (line,) = next(c for c in result.checks if c.id == "evaluation-noise").details
    limit = 1.96 * np.sqrt(2) * np.sqrt(share * (1 - share) / 120) / 0.05
    assert line.statistic == pytest.approx(limit, rel=0.4)
    assert line.outcome == ("fail" if share else "pass")
    assert (verdict(result, "flips").statement.code == "noise-decides") is (share > 0)
    batching = next(c for c in result.checks if c.id == "batching")
    assert {d.behavior for d in batching.details} == {"reads"}


def test_the_audited_code_is_kept_apart_while_models_are_written(folder: Path) -> None:
    spec = write(folder / "audit.yaml", scores=None)
    code = folder / "small_training.py"
    wrote = "import pathlib\npathlib.Path('trace.txt').write_text('here')\n"
    code.write_text(wrote + code.read_text())
    lock(spec)
    invoked = CliRunner().invoke(
        cli,
        ["counterfactuals", str(spec), "-o", str(folder / "sealed"), "--isolation", "best"],
    )
    assert invoked.exception is not None
    assert not (folder / "sealed").exists()
    assert not [*folder.rglob("trace.txt")]


def test_other_files_of_a_deployed_folder_go_with_every_model(folder: Path) -> None:
    spec = write(folder / "audit.yaml", scores=None)
    (folder / "shipped").mkdir()
    shutil.move(folder / "model.safetensors", folder / "shipped" / "model.safetensors")
    (folder / "shipped" / "config.json").write_text('{"model_type": "small"}')
    data = yaml.safe_load(spec.read_text())
    data["artifacts"]["final"]["path"] = "shipped"
    spec.write_text(to_yaml(data))
    lock(spec)
    assert command("counterfactuals", spec, "-o", folder / "again").exit_code == 0
    manifest = json.loads((folder / "again" / "manifest.json").read_text())
    for model in manifest["models"]:
        place = (folder / "again" / model["path"]).parent
        assert sorted(p.name for p in place.iterdir()) == ["config.json", "model.safetensors"]
    before = json.loads((folder / "models" / "manifest.json").read_text())
    assert [m["digest"] for m in manifest["models"]] == [m["digest"] for m in before["models"]]


def test_estimated_models_count_as_those_read_off_the_model(folder: Path) -> None:
    def estimated(scores: str | None) -> Path:
        spec = write(folder / "audit.yaml", scores=scores)
        data = yaml.safe_load(spec.read_text())
        data["estimator"]["method"] = "krylov"
        data["checks"]["spot-check"] = {"stages": 0}
        spec.write_text(to_yaml(data))
        lock(spec)
        return spec

    spec = estimated(None)
    assert command("counterfactuals", spec, "-o", folder / "models", "--force").exit_code == 0
    models = json.loads((folder / "models" / "manifest.json").read_text())["models"]
    methods = {(use["exact"], use["method"]) for model in models for use in model["of"]}
    assert {(False, "krylov"), (True, "replay")} < methods
    subprocess.run([sys.executable, "score.py", "models", "scores.parquet"], cwd=folder, check=True)
    result = ran(estimated("scores"))

    def arms(behavior: str) -> dict[tuple[str, ...], Any]:
        return {p.arm: p for p in result.paths if p.behavior == behavior}

    ours, theirs = arms(ELSEWHERE), arms(BUILT_IN)
    assert ours.keys() == theirs.keys() > {()}
    assert not all(path.exact for path in ours.values())
    for arm, path in ours.items():
        assert (path.exact, path.states) == (theirs[arm].exact, theirs[arm].states)
        np.testing.assert_allclose(path.levels, theirs[arm].levels, rtol=0, atol=2e-6)
        known = [e for e in path.errors if e is not None]
        assert len(known) == len([e for e in theirs[arm].errors if e is not None])


def test_second_estimates_are_models_of_their_own() -> None:
    one, two = State({"w": torch.zeros(1)}, {}), State({"w": torch.ones(1)}, {})

    def estimate(state: State) -> Counterfactual:
        return Counterfactual(Arm.without("s"), "paired-replay", False, state, {}, 1.0, 0.0)

    paths: Any = SimpleNamespace(
        recorded_states=lambda: iter(()), states_of=lambda c: iter([("s:end", c.state, None)])
    )
    estimator: Any = None
    run = MadeRun(estimator, estimate(one), estimate(two))
    given_up = replace(estimate(one), state=State({}, {}))
    again = MadeRun(estimator, estimate(one), given_up)
    runs = {Arm.without("s"): run, Arm.without("t"): again}
    found = [(m.arm, m.state, m.method, m.twin) for m in models_of(paths, runs)]
    assert found == [
        (Arm.without("s"), one, "paired-replay", False),
        (Arm.without("s"), two, "paired-replay", True),
        (Arm.without("t"), one, "paired-replay", False),
    ]
