"""What people pass who have a GPT-2 and its libraries: each is recorded faithfully, or refused by name.

The loops of tests/recorder/test_naive_runs.py; whatever a re-run imports stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from auditspec import Dataset, Recorder

VOCABULARY, PAD = 40, 0


def build_model() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=PAD,
        )
    )


def build_bf16() -> Any:
    return build_model().to(torch.bfloat16)


def build_compiled() -> Any:
    model = build_model()
    model.compile()
    return model


def load(dataset: Dataset, ids: Any) -> dict[str, Tensor]:
    rows = [torch.tensor(dataset.frame["input_ids"].iloc[int(i)]) for i in ids]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    mask = (padded != PAD).long()
    labels = torch.where(mask.bool(), padded, -100)
    return {"input_ids": padded, "attention_mask": mask, "labels": labels}


def load_masked(dataset: Dataset, ids: Any) -> dict[str, Tensor]:
    batch = load(dataset, ids)
    drop = torch.rand(batch["input_ids"].shape) < 0.15
    return batch | {"input_ids": batch["input_ids"].masked_fill(drop, 3)}


def load_masked_by_numpy(dataset: Dataset, ids: Any) -> dict[str, Tensor]:
    batch = load(dataset, ids)
    drop = torch.from_numpy(np.random.rand(*batch["input_ids"].shape)) < 0.15
    return batch | {"input_ids": batch["input_ids"].masked_fill(drop, 3)}


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def inject_adapter(model: Any) -> None:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(lora(), model)
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)


def wrap_in_adapter(model: Any) -> Any:
    from peft import get_peft_model

    return get_peft_model(model, lora())


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["c_attn"], lora_dropout=0.1, fan_in_fan_out=True)


def grow(model: Any) -> None:
    model.resize_token_embeddings(VOCABULARY + 8)


@dataclass
class Bench:
    """A model, its data, and a record to be written."""

    folder: Path
    data: Dataset
    steps: int = 6

    @classmethod
    def of(cls, folder: Path) -> Bench:
        draw = np.random.default_rng(0)
        rows = [
            [1, *((3 + (draw.integers(3, 20) + np.arange(draw.integers(6, 16))) % 17).tolist()), 2]
            for _ in range(120)
        ]
        pd.DataFrame({"input_ids": rows}).to_parquet(folder / "a.parquet")
        return cls(folder / "record", Dataset.open(folder / "a.parquet"))

    def recorder(self, model: Any, factory: Any = build_model, load_batch: Any = load) -> Recorder:
        return Recorder(self.folder, model, every=2, factory=factory, load_batch=load_batch)

    def stage(self, recorder: Recorder, optimizer: Any, id_: str = "s", steps: int = 0) -> Any:
        steps = steps or self.steps
        return recorder.stage(id_, optimizer, loss_of, dataset=self.data, steps=steps)

    def train(
        self,
        recorder: Recorder,
        id_: str = "s",
        casting: Callable[[], Any] = nullcontext,
    ) -> None:
        """A plain loop by row ids."""
        free = [p for p in recorder.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(free, lr=1e-3)
        with self.stage(recorder, optimizer, id_) as run:
            for step in run.steps:
                optimizer.zero_grad()
                with casting():
                    loss = run.loss(rows_of(step))
                loss.backward()
                optimizer.step()


def rows_of(step: int) -> list[int]:
    return list(range(step * 8, step * 8 + 8))


# --- the cases: each takes a bench and gives the recorder ------------------------------------------


def plain(bench: Bench) -> Recorder:
    with bench.recorder(build_model()) as recorder:
        bench.train(recorder)
    return recorder


def dict_batches(bench: Bench) -> Recorder:
    model = build_model()
    with bench.recorder(model, load_batch=None) as recorder:
        optimizer = torch.optim.AdamW(model.parameters())
        with recorder.stage("s", optimizer, loss_of, steps=2) as run:
            for step in run.steps:
                batch = load(bench.data, rows_of(step))
                optimizer.zero_grad()
                run.batch(tensors=batch)
                loss_of(model, batch).backward()
                optimizer.step()
    return recorder


def lambda_factory(bench: Bench) -> Recorder:
    return bench.recorder(build_bf16(), lambda: build_bf16())


def bf16_weights(bench: Bench) -> Recorder:
    with bench.recorder(build_bf16(), build_bf16) as recorder:
        bench.train(recorder)
    return recorder


def accelerated(bench: Bench, precision: str = "no", *, wrapped: bool = True) -> Recorder:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision=precision, cpu=True)
    model = build_model()
    made = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, made)
    with bench.recorder(model) as recorder:
        given = optimizer if wrapped else optimizer.optimizer
        with bench.stage(recorder, given, steps=4) as run:
            for i in range(8):
                with accelerator.accumulate(model):
                    accelerator.backward(run.loss(rows_of(i)))
                    optimizer.step()
                    optimizer.zero_grad()
    AcceleratorState._reset_state(True)
    return recorder


def accelerated_bf16(bench: Bench) -> Recorder:
    return accelerated(bench, "bf16")


def accelerated_bf16_unwrapped(bench: Bench) -> Recorder:
    return accelerated(bench, "bf16", wrapped=False)


def autocast_outside(bench: Bench) -> Recorder:
    with bench.recorder(build_model()) as recorder:
        bench.train(recorder, casting=lambda: torch.autocast("cpu", torch.bfloat16))
    return recorder


class Numbers(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> int:
        return index


def loader_with_workers(bench: Bench) -> Recorder:
    model = build_model()
    loader = torch.utils.data.DataLoader(
        Numbers(), batch_size=8, shuffle=True, num_workers=2, collate_fn=list
    )
    with bench.recorder(model) as recorder:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with bench.stage(recorder, optimizer, steps=len(loader)) as run:
            for ids in loader:
                optimizer.zero_grad()
                run.loss(ids).backward()
                optimizer.step()
    return recorder


def compiled_model(bench: Bench) -> Recorder:
    return bench.recorder(torch.compile(build_model()))


def compiled_in_place(bench: Bench) -> Recorder:
    return bench.recorder(build_compiled())


def injected_adapter(bench: Bench) -> Recorder:
    with bench.recorder(build_model()) as recorder:
        bench.train(recorder)
        recorder.model.zero_grad()
        recorder.extend(inject_adapter)
        bench.train(recorder, "t")
    return recorder


def wrapped_adapter(bench: Bench) -> Recorder:
    with bench.recorder(build_model()) as recorder:
        bench.train(recorder)
        recorder.model.zero_grad()
        recorder.extend(wrap_in_adapter)
        bench.train(recorder, "t")
    return recorder


def wrapped_unseen(bench: Bench) -> Recorder:
    """`get_peft_model` without `recorder.extend`."""
    model = build_model()
    with bench.recorder(model) as recorder:
        bench.train(recorder)
        adapted = wrap_in_adapter(model)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad])
        with bench.stage(recorder, optimizer, "t") as run:
            for step in run.steps:
                optimizer.zero_grad()
                run.loss(rows_of(step)).backward()
                optimizer.step()
    return recorder


def resized_embeddings(bench: Bench) -> Recorder:
    with bench.recorder(build_model()) as recorder:
        bench.train(recorder)
        recorder.extend(grow)
        bench.train(recorder, "t")
    return recorder


def gradient_scaler(bench: Bench) -> Recorder:
    model = build_model()
    with bench.recorder(model) as recorder:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        with bench.stage(recorder, optimizer) as run:
            for step in run.steps:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = run.loss(rows_of(step))
                scaler.scale(loss).backward()
                if step == 2:
                    model.lm_head.weight.grad.fill_(torch.inf)
                scaler.step(optimizer)
                scaler.update()
    return recorder


def checkpointing(bench: Bench) -> Recorder:
    model = build_model()
    model.gradient_checkpointing_enable()
    with bench.recorder(model) as recorder:
        bench.train(recorder)
    return recorder


def random_collator(bench: Bench) -> Recorder:
    with bench.recorder(build_model(), load_batch=load_masked) as recorder:
        bench.train(recorder)
    return recorder


def random_collator_by_numpy(bench: Bench) -> Recorder:
    with bench.recorder(build_model(), load_batch=load_masked_by_numpy) as recorder:
        bench.train(recorder)
    return recorder


REFUSED: dict[str, tuple[Callable[[Bench], Recorder], str]] = {
    "a lambda as factory": (lambda_factory, "cannot be named"),
    "torch.compile(model)": (compiled_model, "compiled"),
    "model.compile()": (compiled_in_place, "compiled, but not by"),
    "get_peft_model unseen": (wrapped_unseen, ""),
}
RECORDED: dict[str, Callable[[Bench], Recorder]] = {
    function.__name__: function
    for function in (
        plain,
        dict_batches,
        bf16_weights,
        accelerated,
        accelerated_bf16,
        accelerated_bf16_unwrapped,
        autocast_outside,
        loader_with_workers,
        injected_adapter,
        wrapped_adapter,
        resized_embeddings,
        gradient_scaler,
        checkpointing,
        random_collator,
        random_collator_by_numpy,
    )
}
FRESH: dict[str, Callable[[Bench], Recorder]] = {
    function.__name__: function for function in (random_collator_by_numpy, accelerated_bf16)
}
"""Checked in a fresh process besides."""
