"""Metrics of language models on a causal one, against loops in plain torch that ask it about one text at a time."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measures import metric_of, statistic_of
from torch import Tensor

from auditspec.artifacts.tokenizer import Tokenizer
from auditspec.behaviors.metrics import Asked, Outputs
from auditspec.behaviors.metrics.generation import Generation
from auditspec.behaviors.metrics.sequences import SequenceMetric
from auditspec.behaviors.statistics import SliceStatistic
from auditspec.errors import EstimationError, EvidenceError, UsageError

transformers = pytest.importorskip("transformers")
ROWS, WORDS = 23, 40
SIZES = pytest.mark.parametrize("size", [1, 4, 7, 256])
Columns = Mapping[str, Any]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=48, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def columns() -> Columns:
    """Token ids of many lengths."""
    rng = np.random.default_rng(0)

    def tokens(least: int, most: int) -> list[list[int]]:
        return [rng.integers(0, WORDS, n).tolist() for n in rng.integers(least, most, ROWS)]

    several = [[*map(list, zip(*[iter(t)] * 2, strict=False))] for t in tokens(6, 12)]
    return {
        "prompt": tokens(1, 9),
        "text": tokens(2, 20),
        "other": tokens(1, 5),
        "third": tokens(1, 8),
        "several": several,
        "right": [i % len(choices) for i, choices in enumerate(several)],
    }


def predict(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = model(**batch).logits
    return logits


def scored(
    metric: SequenceMetric,
    model: torch.nn.Module,
    columns: Columns,
    size: int = 256,
    tokenizer: Tokenizer | None = None,
    rows: Any = range(ROWS),
    functions: Mapping[str, Any] | None = None,
) -> Tensor:
    return metric.scores(outputs(metric, model, columns, size, tokenizer, rows, functions))


def outputs(
    metric: SequenceMetric,
    model: torch.nn.Module,
    columns: Columns,
    size: int = 256,
    tokenizer: Tokenizer | None = None,
    rows: Any = range(ROWS),
    functions: Mapping[str, Any] | None = None,
) -> Outputs:
    asked = Asked("token-logits", tokenizer)
    examples = metric.examples(columns, rows, tokenizer)
    none = torch.empty(0, dtype=torch.int64)
    return Outputs(model, examples, none, predict, functions or {}, asked, size)


def of(name: str, **options: Any) -> Any:
    metric = metric_of(name, **options)
    assert isinstance(metric, SequenceMetric)
    return metric


def by_hand(model: Any, before: list[int], text: list[int]) -> float:
    """Log p(text | before), one token after another, of one unpadded text."""
    total = 0.0
    with torch.no_grad():
        for place in range(len(text)):
            seen = before + text[:place]
            if seen:
                z = model(torch.tensor([seen])).logits[0, -1].double()
                total += float(z[text[place]] - z.logsumexp(0))
    return total


# --- likelihoods ----------------------------------------------------------------------------------


@SIZES
def test_likelihoods_and_perplexity_are_the_loops_whatever_the_batch(
    model: torch.nn.Module, columns: Columns, size: int
) -> None:
    texts, prompts = columns["text"], columns["prompt"]
    alone = [by_hand(model, [], t) for t in texts]
    after = [by_hand(model, p, t) for p, t in zip(prompts, texts, strict=True)]
    lengths = [len(t) for t in texts]
    with torch.no_grad():
        nll = scored(of("sequence-nll", text="text"), model, columns, size)
        answer = scored(of("sequence-nll", text="text", prompt="prompt"), model, columns, size)
        a_token = scored(of("sequence-nll", text="text", per="token"), model, columns, size)
        log_p = scored(
            of("completion-logprob", prompt="prompt", completion="text", normalize="tokens"),
            model,
            columns,
            size,
        )
    assert (-nll).tolist() == pytest.approx(alone, abs=1e-6 * max(lengths))
    assert (-answer).tolist() == pytest.approx(after, abs=1e-6 * max(lengths))
    mean = [a / (n - 1) for a, n in zip(alone, lengths, strict=True)]
    assert (-a_token).tolist() == pytest.approx(mean, abs=1e-6)
    mean = [a / n for a, n in zip(after, lengths, strict=True)]
    assert log_p.tolist() == pytest.approx(mean, abs=1e-6)
    tokens = {"tokens": np.array(lengths) - 1}
    perplexity = SliceStatistic(statistic_of("perplexity"), tokens).level(nll.numpy())
    assert perplexity == pytest.approx(math.exp(-sum(alone) / (sum(lengths) - ROWS)), rel=1e-6)
    mean_of_exponentials = float(np.mean(np.exp(a_token.numpy())))
    assert abs(perplexity - mean_of_exponentials) > 0.1 * perplexity


@SIZES
def test_preferences_and_choices_are_the_loops_whatever_the_batch(
    model: torch.nn.Module, columns: Columns, size: int
) -> None:
    prompts = columns["prompt"]
    margins = [
        by_hand(model, p, a) / len(a) - by_hand(model, p, b) / len(b)
        for p, a, b in zip(prompts, columns["text"], columns["other"], strict=True)
    ]
    preferred = of(
        "preference-margin", prompt="prompt", chosen="text", rejected="other", normalize="tokens"
    )
    for normalize in ("none", "tokens"):
        each = [
            [by_hand(model, p, c) / (len(c) if normalize == "tokens" else 1) for c in choices]
            for p, choices in zip(prompts, columns["several"], strict=True)
        ]
        right = columns["right"]
        correct = [float(np.argmax(e) == r) for e, r in zip(each, right, strict=True)]
        best = [e[r] - max(e[:r] + e[r + 1 :]) for e, r in zip(each, right, strict=True)]
        options = {"choices": "several", "answer": "right", "normalize": normalize}
        with torch.no_grad():
            found = scored(of("choice", prompt="prompt", **options), model, columns, size)
            margin = scored(
                of("choice", prompt="prompt", score="margin", **options), model, columns, size
            )
            preference = scored(preferred, model, columns, size)
        assert found.tolist() == correct
        assert 0 < sum(correct) < ROWS
        assert margin.tolist() == pytest.approx(best, abs=1e-5)
        assert preference.tolist() == pytest.approx(margins, abs=1e-6)


def test_choices_may_stand_in_columns_and_the_answer_in_the_spec(
    model: torch.nn.Module, columns: Columns
) -> None:
    named = of("choice", prompt="prompt", choices=["other", "third"], answer=1)
    pairs = list(zip(columns["other"], columns["third"], strict=True))
    listed = {**columns, "pair": pairs, "one": [1] * ROWS}
    again = of("choice", prompt="prompt", choices="pair", answer="one")
    assert torch.equal(scored(named, model, columns), scored(again, model, listed))


def test_exposure_is_carlinis(model: torch.nn.Module, columns: Columns) -> None:
    """A canary that is likelier than all 15 references has log2 16 = 4 bits; one that is as likely as all has none."""
    rng = np.random.default_rng(1)
    references = [rng.integers(0, WORDS, (15, 3)).tolist() for _ in range(ROWS)]
    table = {**columns, "canary": [[1, 2, 3]] * ROWS, "references": references}
    metric = of("exposure", text="canary", references="references", prompt="prompt")
    found = scored(metric, model, table, size=5)
    for row, exposure in enumerate(found.tolist()):
        each = [by_hand(model, table["prompt"][row], c) for c in [[1, 2, 3], *references[row]]]
        rank = sorted(each, reverse=True).index(each[0]) + 1
        assert exposure == pytest.approx(math.log2(16) - math.log2(rank))
    one = {"canary": [[1, 2]], "references": [[[1, 2]] * 3]}
    alone = of("exposure", text="canary", references="references")
    assert scored(alone, model, one, rows=[0]).tolist() == [0.0]


def test_slopes_are_central_differences(model: torch.nn.Module, columns: Columns) -> None:
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    bias = exact.transformer.h[0].mlp.c_fc.bias
    direction = torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)).double()
    for metric in (
        of("sequence-nll", text="text"),
        of("choice", prompt="prompt", choices="several", answer="right", score="margin"),
    ):
        (slope,) = torch.autograd.grad(scored(metric, exact, columns).sum(), bias)

        def moved(step: float, metric: Any = metric) -> float:
            with torch.no_grad():
                bias.add_(step * direction)
                total = float(scored(metric, exact, columns).sum())
                bias.sub_(step * direction)
            return total

        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert float(slope @ direction) == pytest.approx(difference, rel=1e-6)


# --- generation -----------------------------------------------------------------------------------


def written(model: Any, prompt: list[int], tokens: int, stop: int) -> list[int]:
    """Greedily, one unpadded prompt."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == stop:
                break
            ids.append(token)
    return ids[len(prompt) :]


def in_some(written: list[list[int]]) -> int:
    """A token that some continuations hold, and some do not."""
    held = Counter(token for ids in written for token in {*ids})
    return min(held, key=lambda token: abs(held[token] - ROWS / 2))


@SIZES
def test_greedy_continuations_are_the_loops_whatever_the_batch(
    model: torch.nn.Module, columns: Columns, size: int
) -> None:
    free = [written(model, p, 12, -1) for p in columns["prompt"]]
    stop = Counter(token for ids in free for token in ids).most_common(4)[-1][0]
    expected = [written(model, p, 12, stop) for p in columns["prompt"]]
    assert len({*map(len, expected)}) > 2
    wanted = in_some(expected)
    metric = of("generation", prompt="prompt", tokens=12, stop=[stop], contains=[[wanted]])
    asked = outputs(metric, model, columns, size)
    assert list(map(list, metric.continuations(asked))) == expected
    hits = [float(wanted in e) for e in expected]
    assert 0 < sum(hits) < ROWS
    assert metric.scores(asked).tolist() == hits
    library = model.generate(  # type: ignore[operator]
        torch.tensor([columns["prompt"][0]]), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert library[0, len(columns["prompt"][0]) :].tolist() == free[0]


def test_what_is_sampled_is_the_same_again_and_follows_softmax(
    model: torch.nn.Module, columns: Columns
) -> None:
    drawn = {"temperature": 1.5, "seed": 3, "draws": 2}
    metric = of("generation", prompt="prompt", tokens=6, contains=[[0]], sample=drawn)
    whole = metric.continuations(outputs(metric, model, columns))
    assert metric.continuations(outputs(metric, model, columns, 3)) == whole
    few = [4, 17]
    alone = metric.continuations(outputs(metric, model, columns, rows=few))
    assert alone == [whole[row] for row in few]
    assert metric.continuations(outputs(metric, model, columns), draw=1) != whole
    other = of("generation", prompt="prompt", tokens=6, contains=[[0]], sample=drawn | {"seed": 4})
    assert other.continuations(outputs(other, model, columns)) != whole
    again = replace(outputs(metric, model, columns), chance=1)
    then = [[0.0 + (0 in ids) for ids in metric.continuations(again, draw)] for draw in (2, 3)]
    assert metric.scores(again).tolist() == np.mean(then, 0).tolist()
    assert metric.scores(again).tolist() != scored(metric, model, columns).tolist()
    first = of("generation", prompt="same", tokens=1, contains=[[0]], sample={"temperature": 1.5})
    many = {"same": [[5, 7]] * 2000}
    tokens = [ids[0] for ids in first.continuations(outputs(first, model, many, rows=range(2000)))]
    with torch.no_grad():
        p = (model(torch.tensor([[5, 7]])).logits[0, -1].double() / 1.5).softmax(0).numpy()
    shares = np.bincount(tokens, minlength=WORDS) / 2000
    assert (np.abs(shares - p) < 4.5 * np.sqrt(p * (1 - p) / 2000) + 1e-3).all()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A word is a token."""
    from tokenizers import Tokenizer as Inner
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {f"w{i}": i for i in range(WORDS - 1)} | {"[end]": WORDS - 1}
    inner = Inner(WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = Whitespace()
    inner.add_special_tokens(["[end]"])
    inner.enable_padding(length=30)
    inner.enable_truncation(2)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    inner.save(str(path))
    return Tokenizer.open(path)


def texts_of(columns: Columns) -> dict[str, list[str]]:
    return {
        name: [
            " ".join("[end]" if t == WORDS - 1 else f"w{t}" for t in ids) for ids in columns[name]
        ]
        for name in ("prompt", "text", "other")
    }


def test_texts_score_as_their_tokens_do(
    model: torch.nn.Module, columns: Columns, tokenizer: Tokenizer
) -> None:
    """Neither the padding nor the truncation of the file counts, and special tokens are read where they stand."""
    texts = texts_of(columns)
    for name, options in {
        "sequence-nll": {"text": "text"},
        "preference-margin": {"prompt": "prompt", "chosen": "text", "rejected": "other"},
    }.items():
        found = scored(of(name, **options), model, texts, tokenizer=tokenizer)
        assert torch.equal(found, scored(of(name, **options), model, columns))
    whole = of("completion-logprob", prompt="prompt", completion="text")
    a_character = of(
        "completion-logprob", prompt="prompt", completion="text", normalize="characters"
    )
    lengths = torch.tensor([len(t) for t in texts["text"]])
    total = scored(whole, model, texts, tokenizer=tokenizer)
    divided = scored(a_character, model, texts, tokenizer=tokenizer)
    assert divided.tolist() == pytest.approx((total / lengths).tolist(), rel=1e-12)


def test_continuations_match_by_texts_columns_patterns_and_functions(
    model: torch.nn.Module, columns: Columns, tokenizer: Tokenizer
) -> None:
    texts = texts_of(columns)
    plain = of("generation", prompt="prompt", tokens=5, stop=["[end]"], contains=["w1"])
    ids = plain.continuations(outputs(plain, model, texts, tokenizer=tokenizer))
    said = [tokenizer.decode(i) for i in ids]
    word = f"w{in_some(list(map(list, ids)))}"
    secret = [s if row % 2 else "w1 w1 w1" for row, s in enumerate(said)]

    def judge(model: Any, batch: dict[str, Any]) -> Tensor:
        assert batch["text"] == said
        assert batch["generated"] == [*map(list, ids)]
        return torch.tensor([float(g[-1] % 2) for g in batch["generated"]])

    for options, hits in (
        ({"contains": ["no word", word]}, [word in s for s in said]),
        ({"answer": "secret"}, [c in s for c, s in zip(secret, said, strict=True)]),
        ({"entrypoint": "train:judge"}, [i[-1] % 2 for i in ids]),
        ({"pattern": rf"\b{word}$"}, [s.split()[-1] == word for s in said]),
    ):
        if "pattern" in options:
            pytest.importorskip("re2")
        metric = of("generation", prompt="prompt", tokens=5, stop=["[end]"], **options)
        found = scored(
            metric,
            model,
            texts | {"secret": secret},
            tokenizer=tokenizer,
            functions={"train:judge": judge},
        )
        assert found.tolist() == [float(hit) for hit in hits]
        assert 0 < sum(hits) < ROWS


def test_a_pattern_cannot_hang() -> None:
    """A backtracking engine takes 2^n steps here."""
    pytest.importorskip("re2")
    from auditspec.behaviors.metrics.patterns import PatternError, compiled

    assert compiled(r"(a|a)*$").search("a" * 50_000 + "b") is not None
    assert compiled(r"^(a+)+$").search("a" * 50_000 + "b") is None
    for wrong in (r"(?=a)", r"(a)\1", "("):
        with pytest.raises(PatternError):
            compiled(wrong)


# --- refusals -------------------------------------------------------------------------------------

NLL = {"name": "sequence-nll", "text": "text"}


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [
        (NLL, "a text", "model.tokenizer names nothing"),
        (NLL, [3], "too short"),
        (NLL, 7, "neither a text nor a list of token ids"),
        (NLL, [1.5, 2.5], "neither a text nor a list of token ids"),
        (NLL, [-1, 2], "neither a text nor a list of token ids"),
        (NLL, None, "neither a text nor a list of token ids"),
        (NLL | {"prompt": "empty"}, [1, 2], "'empty' of row 0 is empty"),
        (
            {
                "name": "completion-logprob",
                "prompt": "text",
                "completion": "text",
                "normalize": "characters",
            },
            [1, 2],
            "no text whose characters",
        ),
        ({"name": "choice", "prompt": "text", "choices": "text", "answer": 0}, [1, 2], "token ids"),
        (
            {"name": "choice", "prompt": "one", "choices": "text", "answer": 2},
            [[1], [2]],
            "no number of a choice, 0 to 1",
        ),
        ({"name": "choice", "prompt": "one", "choices": "text", "answer": 0}, [[1]], "single"),
        ({"name": "exposure", "text": "one2", "references": "text"}, "no list", "no list"),
        ({"name": "generation", "prompt": "text", "tokens": 1, "pattern": "a"}, [1], "pattern"),
        (
            {"name": "generation", "prompt": "text", "tokens": 1, "contains": [[1]], "stop": ["x"]},
            [1],
            "no token is called 'x'",
        ),
    ],
)
def test_rows_that_do_not_hold_what_is_asked_are_refused(
    options: dict[str, Any], text: Any, said: str
) -> None:
    columns = {"text": [text], "empty": [[]], "one": [[1]], "one2": [[1, 2]]}
    metric = of(**options)
    with pytest.raises(EvidenceError, match=said):
        metric.examples(columns, [0], None)


def test_outputs_of_another_shape_and_tokens_that_the_model_lacks_are_refused(
    model: torch.nn.Module,
) -> None:
    metric = of("sequence-nll", text="text")
    with pytest.raises(EstimationError, match="token 39 is asked for; the model has tokens 0 to 9"):
        few = Outputs(
            model,
            metric.examples({"text": [[1, 39]]}, [0], None),
            torch.empty(0),
            lambda m, b: torch.zeros(*b["input_ids"].shape, 10),
            {},
            Asked("token-logits"),
        )
        metric.scores(few)
    with pytest.raises(EstimationError, match=r"\[B, T, V\]"):
        metric.scores(
            Outputs(
                model,
                metric.examples({"text": [[1, 2]]}, [0], None),
                torch.empty(0),
                lambda m, b: torch.zeros(1, 10),
                {},
                Asked("token-logits"),
            )
        )


def test_a_continuation_is_matched_in_one_way() -> None:
    from pydantic import ValidationError

    for options in ({}, {"contains": ["a"], "pattern": "b"}):
        with pytest.raises(ValidationError, match="one of contains, answer, pattern, entrypoint"):
            Generation.model_validate({"name": "generation", "prompt": "p", "tokens": 1, **options})


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": 3}')
    with pytest.raises(EvidenceError, match="no tokenizer"):
        Tokenizer.open(path)
    with pytest.raises(EvidenceError, match="digest"):
        Tokenizer.open(path, "sha256:" + "0" * 64)


def test_packages_that_are_not_installed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from auditspec.behaviors.metrics.patterns import compiled

    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    for package, use in (
        ("tokenizers", lambda: Tokenizer.open(path)),
        ("re2", lambda: compiled("asked only here")),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UsageError, match="is not installed") as caught:
            use()
        assert "auditspec[language]" in caught.value.remedy
