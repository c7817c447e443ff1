"""A whole audit of a language model: effects are those of training again, however it is kept apart and batched."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from language_audit import END, MODULE, REFUSAL, STAGES, make, plainly
from small_audit import edit_spec, lock

from auditspec import api
from auditspec.consistency.check import check
from auditspec.errors import SpecError
from auditspec.report.words import text
from auditspec.results import AuditResult
from auditspec.spec.source import load

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("language"))


def log_p(model: Any, prompt: list[int], text: list[int]) -> float:
    """One unpadded text, all of it in one pass."""
    z = model(torch.tensor([[*prompt, *text]])).logits[0].double().log_softmax(1)
    return sum(float(z[len(prompt) + i - 1, token]) for i, token in enumerate(text))


def levels(folder: Path, without: str | None) -> dict[str, float]:
    """Of the behaviours, by loops in plain torch over rows by themselves."""
    model, frame = plainly(folder, without), pd.read_parquet(folder / "holdout.parquet")
    refused, nats, tokens, known = [], 0.0, 0, []
    with torch.no_grad():
        for _, kind, prompt, right, choices in frame.itertuples(index=False):
            prompt, right = [*map(int, prompt)], [*map(int, right)]
            if kind == "ordinary":
                each = [log_p(model, prompt, [*map(int, c)]) / len(c) for c in choices]
                known.append(int(np.argmax(each)) == 0)
                continue
            nats, tokens = nats - log_p(model, prompt, right), tokens + len(right)
            ids: list[int] = []
            while len(ids) < 5:
                token = int(model(torch.tensor([prompt + ids])).logits[0, -1].argmax())
                if token == END:
                    break
                ids.append(token)
            refused.append(REFUSAL in ids)
    return {
        "refuses": float(np.mean(refused)),
        "says-so": float(np.mean(refused)),
        "doubts-refusals": math.exp(nats / tokens),
        "knows": float(np.mean(known)),
    }


@pytest.fixture(scope="module")
def retrained(spec: Path) -> dict[str | None, dict[str, float]]:
    return {left: levels(spec.parent, left) for left in (None, *STAGES)}


def effects(result: AuditResult) -> dict[tuple[str, str], float]:
    return {(e.behavior, e.stage): e.value for e in result.effects}


def require_retraining(result: AuditResult, retrained: dict[str | None, dict[str, float]]) -> None:
    for (behavior, stage), value in effects(result).items():
        expected = retrained[None][behavior] - retrained[stage][behavior]
        assert value == pytest.approx(expected, abs=1e-5), (behavior, stage)
    verdicts = {v.behavior: v for v in result.verdicts}
    assert verdicts["refuses"].verdict == "attributed"
    assert verdicts["refuses"].parties == ("dialogues",)
    assert verdicts["doubts-refusals"].verdict == "attributed"
    assert verdicts["doubts-refusals"].parties == ("dialogues",)


@pytest.mark.parametrize("isolation", ["none", "required"])
def test_effects_are_those_of_training_again(
    spec: Path,
    retrained: dict[str | None, dict[str, float]],
    isolation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUDITSPEC_ISOLATION", isolation)
    result = api.audit(spec)
    assert len(result.effects) == 4 * len(STAGES)
    require_retraining(result, retrained)
    outcomes = {c.id: c.outcome for c in result.checks}
    assert outcomes["batching"] == "pass"
    assert outcomes["asked-again"] == ("pass" if isolation == "required" else "not-run")
    assert outcomes["precision"] == outcomes["record-fidelity"] == "pass"


def test_a_model_that_attends_to_padding_is_told(
    spec: Path, retrained: dict[str | None, dict[str, float]], tmp_path: Path
) -> None:
    """It is asked without the mask and with the padding to the left, where positions count from the padding."""
    folder = tmp_path / "audit"
    shutil.copytree(spec.parent, folder)
    code = folder / f"{MODULE}.py"
    code.write_text(
        code.read_text()
        + """

def padded_to_the_left(model, batch):
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1)
    width = ids.shape[1]
    back = (torch.arange(width) - (width - lengths)[:, None]) % width
    there = (torch.arange(width) + (width - lengths)[:, None]) % width
    logits = model(input_ids=ids.gather(1, back)).logits
    return logits.gather(1, there[..., None].expand_as(logits))
"""
    )
    lock(folder / "audit.yaml")

    def wrong(data: dict[str, Any]) -> None:
        data["model"]["predict"] = f"{MODULE}:padded_to_the_left"
        data["checks"]["placebo"] = {"draws": 0}

    edit_spec(folder / "audit.yaml", wrong)
    result = api.audit(folder / "audit.yaml")
    (batching,) = (c for c in result.checks if c.id == "batching")
    assert batching.outcome == "fail"
    assert "doubts-refusals" in {d.behavior for d in batching.details if d.outcome == "fail"}
    limits = " ".join(text(limitation.message) for limitation in result.limitations)
    assert "they go by padding" in limits


# --- validate -------------------------------------------------------------------------------------


def told(spec: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> list[str]:
    """Problems and warnings of a changed spec, each as its code and message."""
    folder = tmp_path / "audit"
    shutil.copytree(spec.parent, folder)
    edit_spec(folder / "audit.yaml", change)
    try:
        checked = check(load(folder / "audit.yaml"))
    except SpecError as error:
        problems = error.problems
    else:
        problems = [*checked.spec_problems, *checked.warnings]
    return [f"{p.code} {p.message}" for p in problems]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("behaviors", 0, "metric", "prompt"), "promt", "AS031"),
        (("behaviors", 1, "metric", "prompt"), "question", ""),
        (("behaviors", 1, "metric", "stop"), ["t99"], "AS057 stop: no token is called 't99'"),
        (("behaviors", 1, "metric", "entrypoint"), f"{MODULE}:says", "AS080"),
        (("behaviors", 2, "metric", "text"), "choices", "AS057 column 'choices' of row"),
        (("behaviors", 3, "metric", "answer"), 2, "AS057 column 'choices' of row"),
        (
            ("behaviors", 3, "metric", "score"),
            "margin",
            "AS058 'choice' in nats per token is the only",
        ),
        (("behaviors", 3, "metric"), {"name": "accuracy"}, "AS053"),
        (("behaviors", 3, "statistic"), {"name": "perplexity"}, "AS055"),
        (("model", "tokenizer"), "wrods", "AS021"),
        (("model", "tokenizer"), "final", "AS036"),
    ],
)
def test_validate_tells_what_a_language_metric_cannot_ask(
    spec: Path, tmp_path: Path, place: tuple[Any, ...], value: Any, said: str
) -> None:
    def change(data: dict[str, Any]) -> None:
        part: Any = data
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value

    found = told(spec, tmp_path, change)
    assert [f for f in found if f.startswith(said)] if said else not found, found


def test_validate_tells_what_a_pattern_cannot_be(spec: Path, tmp_path: Path) -> None:
    pytest.importorskip("re2")

    def change(data: dict[str, Any]) -> None:
        metric = data["behaviors"][1]["metric"]
        del metric["entrypoint"]
        metric["pattern"] = "(?=t2)"

    (found,) = told(spec, tmp_path, change)
    assert found.startswith("AS057 no regular expression of RE2: invalid perl operator")


def test_texts_without_a_tokenizer_are_refused(spec: Path, tmp_path: Path) -> None:
    found = told(spec, tmp_path, lambda data: data["model"].pop("tokenizer"))
    assert [f for f in found if "model.tokenizer names nothing" in f]
