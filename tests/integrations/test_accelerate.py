"""Loops that train through accelerate, recorded and audited; truth comes from training again with accelerate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from library_audit import hold_against_truth
from library_loops import data_in, items, landed, load_batch, objective
from torch import nn
from torch.utils.data import DataLoader

accelerate: Any = pytest.importorskip("accelerate")

from auditspec import Recorder  # noqa: E402
from auditspec.errors import RecordError  # noqa: E402
from auditspec.integrations.accelerate import through  # noqa: E402
from auditspec.integrations.loader import recorded  # noqa: E402

ROWS = 42


@pytest.fixture(autouse=True)
def _one_precision_a_process() -> Iterator[None]:
    """Accelerate keeps its state in the process; each test begins without."""
    forget()
    yield
    forget()


def forget() -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def build_net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


def loop(
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    passes: Any,
    *,
    clip: float | None = None,
    scheduler: Any = None,
    share: float = 1.0,
) -> None:
    """As accelerate's documentation has it."""
    for batches in passes:
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(objective(model, batch) * share)
                if clip is not None and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
                optimizer.zero_grad()


def train(
    folder: Path,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    schedule: bool = False,
    skip: int = 0,
    workers: int = 0,
    by_hand: int = 1,
    records: bool = True,
    seedable: bool = False,
    **options: Any,
) -> Any:
    """Two stages of two epochs; gives the model, and the record, whose windows re-run bit for bit."""
    data = data_in(folder, ROWS)
    if seedable:
        options["dataloader_config"] = accelerate.DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=5
        )
    torch.manual_seed(0)
    model = build_net()
    recorder = Recorder(folder / "record", model, every=3, factory=build_net, load_batch=load_batch)
    for number in range(2):
        torch.manual_seed(number)
        accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=accumulate, **options
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=bool(number))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) if schedule else None
        loader = DataLoader(items(ROWS), batch_size=8, shuffle=True, num_workers=workers)
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        if scheduler is not None:
            scheduler = accelerator.prepare(scheduler)
        loaders = [accelerator.skip_first_batches(loader, skip) if skip else loader, loader]
        steps = sum(-(-len(each) // accumulate) for each in loaders)
        how: dict[str, Any] = {"clip": clip, "scheduler": scheduler, "share": 1 / by_hand}
        if not records:
            loop(accelerator, prepared, optimizer, loaders, **how)
            continue
        with recorder.stage(
            f"stage-{number}",
            optimizer,
            objective,
            dataset=data,
            steps=steps,
            clip_norm=clip,
            source=through(accelerator),
        ) as run:
            passes = (recorded(each, run, weight=1 / by_hand) for each in loaders)
            loop(accelerator, prepared, optimizer, passes, **how)
        assert not {"backward", "clip_grad_value_", "clip_grad_norm_"} & vars(accelerator).keys()
    if not records:
        return model, None
    recorder.finish()
    return model, landed(folder, data, build_net)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulate": 4},
    "clipping": {"clip": 0.1, "accumulate": 2},
    "a schedule": {"schedule": True},
    "bf16": {"mixed_precision": "bf16", "accumulate": 2},
    "workers": {"workers": 2},
    "a seedable sampler": {"seedable": True},
    "batches left out": {"skip": 2},
    "a loss divided by hand": {"by_hand": 2, "accumulate": 3},
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_trained_is_run_again_bit_for_bit(tmp_path: Path, name: str) -> None:
    _, trajectory = train(tmp_path, **CASES[name])
    steps = [step for stage in trajectory.stages for step in stage.steps]
    batches = [b for step in steps for b in step.batches]
    x = items(ROWS).tensors[0].numpy()
    assert all(b.batch is None and b.dataset == "data" for b in batches)
    epoch = [row for b in batches[-6:] for row in b.ids]
    assert sorted(epoch) == list(range(ROWS))
    assert np.unique(x, axis=0).shape == x.shape
    n = CASES[name].get("accumulate", 1) * CASES[name].get("by_hand", 1)
    assert {b.weight for b in batches} == {1 / n}
    autocast = trajectory.stages[0].header.autocast
    assert (None if autocast is None else autocast.around) == (
        "forward" if name == "bf16" else None
    )
    if name == "accumulation":
        assert [len(s.batches) for s in trajectory.stages[0].steps] == [4, 2, 4, 2]


@pytest.mark.parametrize("name", ["plain", "clipping", "a seedable sampler", "workers"])
def test_nothing_changes_by_being_recorded(tmp_path: Path, name: str) -> None:
    ours, _ = train(tmp_path, **CASES[name])
    draw = torch.rand(1)
    forget()
    (tmp_path / "plain").mkdir()
    theirs, _ = train(tmp_path / "plain", **CASES[name], records=False)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert torch.equal(draw, torch.rand(1))


def test_a_run_that_goes_on_in_a_later_epoch_has_the_rows_that_it_was_trained_on(
    tmp_path: Path,
) -> None:
    """In whatever order accelerate goes on (accelerate#4071)."""

    def prepared() -> tuple[Any, ...]:
        torch.manual_seed(0)
        config = accelerate.DataLoaderConfiguration(use_seedable_sampler=True, data_seed=5)
        accelerator = accelerate.Accelerator(cpu=True, dataloader_config=config)
        model = build_net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        loader = DataLoader(items(ROWS), batch_size=8, shuffle=True)
        return accelerator, model, *accelerator.prepare(model, optimizer, loader)

    data = data_in(tmp_path, ROWS)
    accelerator, model, wrapped, optimizer, loader = prepared()
    loop(accelerator, wrapped, optimizer, [loader, itertools.islice(loader, 2)])
    accelerator.save_state(str(tmp_path / "two"))
    forget()
    accelerator, model, wrapped, optimizer, loader = prepared()
    accelerator.load_state(str(tmp_path / "two"))
    seen = []

    def noted(batches: Any) -> Iterator[Any]:
        for batch in batches:
            seen.append(batch)
            yield batch

    with (
        Recorder(
            tmp_path / "record", model, every=3, factory=build_net, load_batch=load_batch
        ) as recorder,
        recorder.stage(
            "one", optimizer, objective, dataset=data, steps=10, source=through(accelerator)
        ) as run,
    ):
        loader.set_epoch(1)
        rest = accelerator.skip_first_batches(loader, 2)
        passes = (noted(recorded(each, run)) for each in (rest, loader))
        loop(accelerator, wrapped, optimizer, passes)
    (stage,) = landed(tmp_path, data, build_net).stages
    assert stage.header.boundary == "given"
    batches = [b for step in stage.steps for b in step.batches]
    for batch, (x, y) in zip(batches, seen, strict=True):
        loaded = load_batch(data, batch.ids)
        assert torch.equal(loaded[0], x)
        assert torch.equal(loaded[1], y)
    later = [row for b in batches[4:] for row in b.ids]
    assert sorted(later) == list(range(ROWS)) != later


def test_steps_that_a_scaler_skips(tmp_path: Path) -> None:
    """On a CPU accelerate makes no scaler itself; the steps of its optimizer through one are these."""
    data = data_in(tmp_path, ROWS)
    torch.manual_seed(0)
    model = build_net()
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**112, backoff_factor=2.0**-6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    loader = DataLoader(items(ROWS), batch_size=8, shuffle=True)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    skipped = 0
    with (
        Recorder(
            tmp_path / "record", model, every=3, factory=build_net, load_batch=load_batch
        ) as recorder,
        recorder.stage(
            "one", optimizer, objective, dataset=data, steps=12, source=through(accelerator)
        ) as run,
    ):
        for _ in range(2):
            for batch in recorded(loader, run, weight=2.0**16):
                accelerator.backward(objective(prepared, batch) * 2.0**16)
                optimizer.step()
                skipped += accelerator.optimizer_step_was_skipped
                optimizer.zero_grad()
    (stage,) = landed(tmp_path, data, build_net).stages
    weights = [b.weight for step in stage.steps for b in step.batches]
    assert weights.count(0.0) == skipped > 0
    assert set(weights) == {0.0, 2.0**16}
    assert len(stage.steps) == stage.header.steps == 12 - skipped


@pytest.mark.parametrize(
    "what", ["values", "other norm", "left out", "compile", "processes", "engine"]
)
def test_what_is_refused_by_name(tmp_path: Path, what: str, monkeypatch: Any) -> None:
    said = {
        "values": "clipping by value",
        "other norm": "clipping by another norm",
        "left out": "leaves out its first batches",
        "compile": "a model that accelerate compiles",
        "processes": "an accelerator of 2 processes",
        "engine": "training by DEEPSPEED",
    }[what]
    data = data_in(tmp_path, ROWS)
    model = build_net()
    options = {"dynamo_backend": "eager"} if what == "compile" else {}
    accelerator = accelerate.Accelerator(cpu=True, **options)
    kind = type(accelerator)
    if what == "processes":
        monkeypatch.setattr(kind, "num_processes", 2)
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    if what == "engine":
        monkeypatch.setattr(kind, "distributed_type", accelerate.DistributedType.DEEPSPEED)
    recorder = Recorder(tmp_path / "record", model, factory=build_net, load_batch=load_batch)
    with (
        pytest.raises(RecordError, match=said) as error,
        recorder.stage(
            "one", optimizer, objective, dataset=data, steps=1, source=through(accelerator)
        ) as run,
    ):
        if what == "left out":
            shard = accelerate.data_loader.DataLoaderShard(items(ROWS), skip_batches=2)
            next(recorded(shard, run))
        run.batch([0, 1])
        accelerator.backward(objective(model, items(ROWS)[:2]))
        if what == "other norm":
            accelerator.clip_grad_norm_(model.parameters(), 0.1, norm_type=1)
        accelerator.clip_grad_value_(model.parameters(), 0.1)
    assert error.value.remedy


TRAINING = """
def build_model():
    return nn.Sequential(
        nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3)
    )


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model, stage, source, recorder):
    from contextlib import nullcontext

    from accelerate import Accelerator

    model.train()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, OPTIONS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[stage])
    loader = DataLoader(Rows(tables()[source]), batch_size=8, shuffle=True)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    stage_of = nullcontext()
    if recorder is not None:
        from auditspec import Dataset
        from auditspec.integrations.accelerate import through
        from auditspec.integrations.loader import recorded

        data = Dataset.open(f"{source}.parquet")
        stage_of = recorder.stage(
            stage, optimizer, objective, dataset=data, steps=4 * 5, clip_norm=1.0,
            source=through(accelerator),
        )
    with stage_of as run:
        for epoch in range(4):
            for batch in loader if run is None else recorded(loader, run):
                with accelerator.accumulate(prepared):
                    accelerator.backward(objective(prepared, batch))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
"""
ADAMW = {"name": "AdamW", "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}


@pytest.mark.slow
@pytest.mark.parametrize("options", ["mixed_precision='no'", "mixed_precision='bf16'"])
def test_an_audit_says_what_training_without_the_stage_gives(tmp_path: Path, options: str) -> None:
    hold_against_truth(
        tmp_path, TRAINING.replace("OPTIONS", options), ADAMW, self_check="bf16" in options
    )
