"""What recording costs: the same training with and without the recorder, in turn.

    python -m benchmarks.recording_overhead [digits] [gpt] [minilm] [--pairs 5]

| setting | trains |
|---|---|
| digits | the digits example's CNN, five stages of a plain loop |
| gpt | a GPT-2 of 5 million parameters, by the `Trainer` of transformers |
| minilm | a BERT of MiniLM's size (22.7 million parameters), all of it, by the same |

Both runs of a pair make the same steps on the same batches with the same optimizer. Prints the CPU time of each, the
writer's thread included, and their ratio pair by pair. The bar is held against the ratio of the least times: what else
a machine does can only add to them. The self-check runs in a process of its own, once a stage, and is left out. Exits 1
above a bar.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from auditspec import Dataset, Recorder
from auditspec.integrations.transformers import record, trainer_objective

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "digits"))
import train as digits

STEPS = 50
"""Of a trainer; as many as lie between two recorded states by default."""

# --- the digits example -------------------------------------------------------------------------


def digits_loop(folder: Path | None) -> None:
    """Its five stages, recorded in a folder or not at all."""
    torch.manual_seed(0)
    model, data = digits.build_model(), _digits_data()
    recorder = None
    if folder is not None:
        recorder = Recorder(
            folder,
            model,
            factory=digits.build_model,
            load_batch=digits.load_batch,
            self_check=False,
        )
    for index, stage in enumerate(digits.STAGES):
        optimizer = stage.optimizer(model.parameters())
        dataset, largest = data[stage.data], optimizer.defaults["lr"]
        rows = partial(digits.batch_ids, 0, index, rows=len(dataset))

        def plain(ids: list[int], dataset: Dataset = dataset) -> torch.Tensor:
            return digits.cross_entropy(model, digits.load_batch(dataset, ids))

        make = partial(_steps, optimizer, rows, largest)
        if recorder is None:
            make(plain, range(stage.steps))
        else:
            with recorder.stage(
                stage.id, optimizer, digits.cross_entropy, dataset=dataset, steps=stage.steps
            ) as run:
                make(run.loss, run.steps)
    if recorder is not None:
        recorder.finish()


def _steps(
    optimizer: torch.optim.Optimizer,
    rows: Callable[[int], list[int]],
    largest: float,
    loss_of: Callable[[list[int]], torch.Tensor],
    steps: range,
) -> None:
    """The loop of the example's train.py."""
    for step in steps:
        optimizer.param_groups[0]["lr"] = digits.cosine(largest, step, len(steps))
        loss = loss_of(rows(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


_DATA: dict[str, Dataset] = {}


def _digits_data() -> dict[str, Dataset]:
    if not _DATA:
        folder = Path(tempfile.mkdtemp())
        for name, frame in digits.make_data().items():
            frame.to_parquet(folder / f"{name}.parquet", index=False)
            _DATA[name] = Dataset.open(folder / f"{name}.parquet")
            digits.load_batch(_DATA[name], [0])  # reading the table is not training
    return _DATA


# --- trainers of transformers -------------------------------------------------------------------


GPT: dict[str, Any] = {
    "vocab_size": 1024,
    "n_positions": 128,
    "n_embd": 256,
    "n_layer": 6,
    "n_head": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "loss_type": "ForCausalLM",
}
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "num_labels": 2,
}


def build_gpt() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(**GPT))


def build_minilm() -> nn.Module:
    return BertForSequenceClassification(BertConfig(**MINILM))


def _trainer(model: nn.Module, length: int, size: int) -> Trainer:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 1000, (64, length), generator=draw)
    classes = isinstance(model, BertForSequenceClassification)
    labels = tokens[:, 0] % 2 if classes else tokens
    rows = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]
    arguments = TrainingArguments(
        tempfile.gettempdir(),
        max_steps=STEPS,
        per_device_train_batch_size=size,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(model, arguments, train_dataset=rows)


@trainer_objective
def gpt(model: nn.Module) -> Trainer:
    return _trainer(model, length=128, size=8)


@trainer_objective
def minilm(model: nn.Module) -> Trainer:
    return _trainer(model, length=64, size=16)


def by_trainer(build: Callable[[], nn.Module], objective: Any, folder: Path | None) -> None:
    """One stage, recorded in a folder or not at all."""
    torch.manual_seed(0)
    model = build()
    if folder is None:
        objective.__wrapped__(model).train()
        return
    with (
        Recorder(folder, model, factory=build, self_check=False) as recorder,
        record(recorder, "only", objective) as trainer,
    ):
        trainer.train()


# --- measuring ----------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[Callable[[Path | None], None], float]] = {
    "digits": (digits_loop, 1.10),
    "gpt": (partial(by_trainer, build_gpt, gpt), 1.08),
    "minilm": (partial(by_trainer, build_minilm, minilm), 1.10),
}
"""What is trained, and the bar."""


def seconds(train: Callable[[Path | None], None], folder: Path | None) -> float:
    """CPU time of one run, all threads."""
    began = time.process_time()
    train(folder)
    return time.process_time() - began


def measured(name: str, pairs: int, folder: Path) -> bool:
    """Whether a setting's ratio is within its bar; prints what was measured."""
    train, bar = SETTINGS[name]
    if name == "digits":
        train(None)  # warm-up; a trainer's fifty steps need none
    plain, recorded = [], []
    for pair in range(pairs):
        place = folder / f"{name}-{pair}"
        plain.append(seconds(train, None))
        recorded.append(seconds(train, place))
        size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
        shutil.rmtree(place)
        print(
            f"{name}: plain {plain[-1]:.2f} s  recorded {recorded[-1]:.2f} s  "
            f"ratio {recorded[-1] / plain[-1]:.3f}",
            flush=True,
        )
    middle = statistics.median(r / p for r, p in zip(recorded, plain, strict=True))
    ratio = min(recorded) / min(plain)
    print(
        f"{name}: ratio of the least times {ratio:.3f} (bar {bar:.2f}), median of the pairs' "
        f"{middle:.3f}, record {size / 1e6:.1f} MB",
        flush=True,
    )
    return ratio <= bar


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", default=[*SETTINGS], choices=[*SETTINGS, []])
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        within = [measured(name, options.pairs, folder) for name in options.settings]
    finally:
        shutil.rmtree(folder)
    return int(not all(within))


if __name__ == "__main__":
    sys.exit(main())
