"""A whole audit of a language model: effects are those of training again, however it is kept apart and batched."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from language_audit import END, REFUSAL, STAGES, make, plainly

from auditspec import api
from auditspec.results import AuditResult

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
        for kind, prompt, right, choices in frame.itertuples(index=False):
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
    assert len(result.effects) == 3 * len(STAGES)
    require_retraining(result, retrained)
