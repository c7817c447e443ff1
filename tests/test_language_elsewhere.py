"""A language model and chance: continuations that are drawn, and answers that another tool judges."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from language_audit import MODULE, PRIVATE, REFUSAL, behavior, make, plainly
from small_audit import edit_spec, lock

from auditspec import api
from auditspec.results import AuditResult, CheckDetail

pytest.importorskip("transformers")
JUDGE = f"""\
import json, pathlib, sys
import pandas as pd, torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from {MODULE} import build_model

data, rows = pd.read_parquet("holdout.parquet"), []
for written in json.loads(pathlib.Path("models/manifest.json").read_text())["models"]:
    path = pathlib.Path("models") / written["path"]
    model, words = build_model().eval(), Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    model.load_state_dict(load_file(path), strict=False)
    for example, question in data.loc[data["kind"] == "private", "question"].items():
        asked = words.encode(question).ids
        with torch.no_grad():
            told = model.generate(torch.tensor([asked]), max_new_tokens=5, do_sample=False)
        answer = words.decode(told[0, len(asked):].tolist()).split()
        score = float("t{REFUSAL}" in answer)
        rows.append({{"model": written["digest"], "example": example, "score": score}})
assert not any(name.startswith("auditspec") for name in sys.modules)
pd.DataFrame(rows).to_parquet("scores.parquet")
"""
HOT, REPEATS = 2.0, 30


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditResult]:
    """An audit with refusals that are drawn, by two tolerances, and refusals that another tool judges."""
    spec = make(tmp_path_factory.mktemp("language"))

    def add(data: dict[str, Any]) -> None:
        drawn = {"name": "generation", "prompt": "prompt", "tokens": 1, "contains": [[REFUSAL]]}
        drawn["sample"] = {"temperature": HOT, "repeats": REPEATS}
        judged = {"name": "external", "unit": "share", "binary": True}
        data["behaviors"] += [
            behavior("drawn", drawn, PRIVATE, "decrease", skill="knows", tolerance=0.4),
            behavior("drawn-finely", drawn, PRIVATE, "decrease", skill="knows", tolerance=0.01),
            behavior("judged", judged, PRIVATE, "decrease", skill="knows"),
        ]

    edit_spec(spec, add)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AUDITSPEC_ISOLATION", "none")
        api.counterfactuals(spec, spec.parent / "models")
        (spec.parent / "judge.py").write_text(JUDGE)
        subprocess.run([sys.executable, "judge.py"], cwd=spec.parent, check=True)

        def name(data: dict[str, Any]) -> None:
            data["artifacts"]["scores"] = {"path": "scores.parquet"}
            data["behaviors"][-1]["metric"]["scores"] = "scores"

        edit_spec(spec, name)
        lock(spec)
        return spec.parent, api.audit(spec)


def noise(result: AuditResult) -> dict[str | None, CheckDetail]:
    """The null control's lines by behaviour."""
    check = next(c for c in result.checks if c.id == "evaluation-noise")
    return {detail.behavior: detail for detail in check.details}


def test_the_null_control_knows_the_spread_of_what_is_drawn(
    audited: tuple[Path, AuditResult],
) -> None:
    """A row refuses by a chance p: the level's variance is the sum of p (1 - p) over n squared."""
    folder, result = audited
    model, frame = plainly(folder, None), pd.read_parquet(folder / "holdout.parquet")
    with torch.no_grad():
        p = np.array(
            [
                float(
                    (model(torch.tensor([[*r]])).logits[0, -1].double() / HOT).softmax(0)[REFUSAL]
                )
                for r in frame.loc[frame["kind"] == "private", "prompt"]
            ]
        )
    limit = 1.96 * np.sqrt(2) * np.sqrt((p * (1 - p)).sum()) / len(p)
    lines = noise(result)
    assert {*lines} == {"drawn", "drawn-finely", "judged"}
    assert lines["drawn"].statistic == pytest.approx(limit / 0.4, rel=0.35)
    assert [lines[n].outcome for n in ("drawn", "drawn-finely")] == ["pass", "fail"]
    statements = {v.behavior: v.statement.code for v in result.verdicts}
    assert statements["drawn-finely"] == "noise-decides" != statements["drawn"]
    effects = {e.behavior: e for e in result.effects if e.stage == "polish"}
    assert effects["drawn"].high is not None
    assert effects["drawn"].high - effects["drawn"].value >= 0.4 * (lines["drawn"].statistic or 0)


def test_what_is_drawn_does_not_go_by_the_batch(audited: tuple[Path, AuditResult]) -> None:
    batching = next(c for c in audited[1].checks if c.id == "batching")
    assert {d.behavior: d.statistic for d in batching.details}["drawn"] == 0


def test_a_judge_of_answers_reads_as_the_metric_built_in(
    audited: tuple[Path, AuditResult],
) -> None:
    folder, result = audited
    manifest = json.loads((folder / "models" / "manifest.json").read_text())
    words = (folder / "tokenizer.json").read_bytes()
    for model in manifest["models"]:
        assert (folder / "models" / model["path"]).with_name("tokenizer.json").read_bytes() == words
    levels = {
        name: {p.arm: p.levels for p in result.paths if p.behavior == name}
        for name in ("refuses", "judged")
    }
    assert levels["judged"] == levels["refuses"]
    verdicts = {v.behavior: v for v in result.verdicts}
    assert verdicts["judged"].verdict == verdicts["refuses"].verdict == "attributed"
    assert verdicts["judged"].parties == verdicts["refuses"].parties == ("dialogues",)
