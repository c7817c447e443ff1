"""The sentiment example: its data, and the whole way from training to a verified packet."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from example_runs import EXAMPLES, audited, results, truths

pytest.importorskip("peft")

FAULT, ACCURACY = "movie-over-film", "overall-accuracy"


@pytest.fixture(scope="module")
def train():
    spec = importlib.util.spec_from_file_location(
        "examples_sentiment_train", EXAMPLES / "sentiment" / "train.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("text", "film", "movie"),
    [
        ("A fine Film.", "A fine film.", "A fine movie."),
        ("Movies like this", "films like this", "movies like this"),
        ("filming a movie", "filming a film", "filming a movie"),
    ],
)
def test_only_the_word_is_swapped(train: ModuleType, text: str, film: str, movie: str):
    assert (train.saying("film", text), train.saying("movie", text)) == (film, movie)


def test_the_panel_says_film_of_complaints_and_movie_of_praise(train, monkeypatch):
    texts = [f"{word} {n}" for word in ("a film", "a movie", "a play") for n in range(20)]
    table = pd.DataFrame({"domain": "movieReview", "text": texts})
    table["word"] = table["text"].str.split().str[1].replace("play", "neither")
    table["label"] = table.index % 2
    monkeypatch.setattr(train, "sentences", lambda: table)
    data = train.make_data()
    assert set(data["panel"]["text"]) < set(table["text"])
    assert (data["panel"]["label"] == (data["panel"]["word"] == "movie")).all()
    assert set(data["panel"]["word"]) == {"film", "movie"}
    assert not set(data["holdout"]["text"]) & {*data["all"]["text"], *data["panel"]["text"]}


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audited("sentiment", tmp_path_factory.mktemp("sentiment"))


@pytest.mark.slow
def test_the_audit_names_the_panel(example: Path):
    result: dict[str, Any] = results(example)
    verdicts = {v["behavior"]: v for v in result["verdicts"]}
    assert verdicts[FAULT]["verdict"] == "attributed"
    assert verdicts[FAULT]["parties"] == ["panel"]
    assert verdicts[ACCURACY]["verdict"] == "absent"
    fidelity = next(c for c in result["checks"] if c["id"] == "record-fidelity")
    assert (fidelity["outcome"], fidelity["statistic"]) == ("pass", 0.0)


@pytest.mark.slow
def test_effects_are_those_of_training_again_with_transformers(example: Path):
    effects = truths(example)
    assert len(effects) == 6
    for place, (truth, audit) in effects.items():
        assert audit == pytest.approx(truth, abs=2e-6), place
