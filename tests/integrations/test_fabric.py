"""Loops that train through Lightning Fabric, recorded and audited; truth comes from training again with Fabric."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from library_audit import hold_against_truth
from library_loops import data_in, items, landed, load_batch, objective
from torch import Tensor, nn
from torch.utils.data import DataLoader

fabric_of: Any = pytest.importorskip("lightning.fabric")

from auditspec import Recorder  # noqa: E402
from auditspec.errors import RecordError  # noqa: E402
from auditspec.integrations.fabric import through  # noqa: E402
from auditspec.integrations.loader import recorded  # noqa: E402

ROWS = 40
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def build_net() -> nn.Module:
    """Its first operation is one that autocast leaves alone, so that it sees inputs as they are."""
    return nn.Sequential(
        nn.LayerNorm(2), nn.Linear(2, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


MIX = torch.tensor([[1.0, 0.3], [-0.2, 0.7]])


def mixing(model: nn.Module, batch: Any) -> Tensor:
    """Multiplies outside the model, where only `fabric.autocast()` sees to the precision."""
    return nn.functional.cross_entropy(model(batch[0]) @ MIX, batch[1])


def loop(
    fabric: Any,
    model: Any,
    optimizer: Any,
    passes: Any,
    *,
    n: int = 1,
    clip: float | None = None,
    around: bool = False,
    loss: Any = objective,
) -> None:
    """Accumulates over `n` batches; as Fabric's documentation has it."""
    for batches in passes:
        for number, batch in enumerate(batches, 1):
            with fabric.no_backward_sync(model, enabled=number % n != 0):
                with fabric.autocast() if around else nullcontext():
                    value = loss(model, batch)
                fabric.backward(value / n if n > 1 else value)
            if number % n == 0:
                if clip is not None:
                    fabric.clip_gradients(model, optimizer, max_norm=clip)
                optimizer.step()
                optimizer.zero_grad()


def train(
    folder: Path, *, workers: int = 0, records: bool = True, how: dict[str, Any], **options: Any
) -> Any:
    data = data_in(folder, ROWS)
    torch.manual_seed(0)
    model = build_net()
    recorder = Recorder(folder / "record", model, every=2, factory=build_net, load_batch=load_batch)
    n, loss = how.get("n", 1), how.get("loss", objective)
    for number in range(2):
        torch.manual_seed(number)
        fabric = fabric_of.Fabric(accelerator="cpu", devices=1, **options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        wrapped, optimizer = fabric.setup(model, optimizer)
        loader = fabric.setup_dataloaders(
            DataLoader(items(ROWS), batch_size=4, shuffle=True, num_workers=workers)
        )
        if not records:
            loop(fabric, wrapped, optimizer, [loader, loader], **how)
            continue
        with recorder.stage(
            f"stage-{number}",
            optimizer,
            loss,
            dataset=data,
            steps=2 * len(loader) // n,
            clip_norm=how.get("clip"),
            source=through(fabric),
        ) as run:
            passes = (recorded(loader, run, weight=1 / n) for _ in range(2))
            loop(fabric, wrapped, optimizer, passes, **how)
        assert not {"backward", "clip_gradients", "autocast"} & vars(fabric).keys()
    if not records:
        return model, None
    recorder.finish()
    return model, landed(folder, data, build_net, loss)


CASES: dict[str, dict[str, Any]] = {
    "plain": {"how": {}},
    "accumulation": {"how": {"n": 2}},
    "clipping": {"how": {"clip": 0.1, "n": 2}},
    "workers": {"how": {}, "workers": 2},
    "bf16-mixed": {"how": {"n": 2}, "precision": "bf16-mixed"},
    "autocast around": {"how": {"around": True, "loss": mixing}, "precision": "bf16-mixed"},
    "no autocast around": {"how": {"around": True, "loss": mixing}},
}
AUTOCAST = {"bf16-mixed": ("forward", True), "autocast around": ("objective", True)}


@pytest.mark.parametrize("name", CASES)
def test_what_is_trained_is_run_again_bit_for_bit(tmp_path: Path, name: str) -> None:
    ours, trajectory = train(tmp_path, **CASES[name])
    draw = torch.rand(1)
    (tmp_path / "plain").mkdir()
    theirs, _ = train(tmp_path / "plain", **CASES[name], records=False)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    assert torch.equal(draw, torch.rand(1))
    steps = [step for stage in trajectory.stages for step in stage.steps]
    batches = [b for step in steps for b in step.batches]
    assert all(b.batch is None and b.dataset == "data" for b in batches)
    assert sorted(row for b in batches[-10:] for row in b.ids) == list(range(ROWS))
    assert {b.weight for b in batches} == {1 / CASES[name]["how"].get("n", 1)}
    autocast = trajectory.stages[0].header.autocast
    seen = None if autocast is None else (autocast.around, autocast.inputs)
    assert seen == AUTOCAST.get(name)


def test_steps_that_a_scaler_skips(tmp_path: Path) -> None:
    from lightning.fabric.plugins.precision import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=3)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    data = data_in(tmp_path, ROWS)
    torch.manual_seed(0)
    model = build_net()
    fabric = fabric_of.Fabric(accelerator="cpu", devices=1, plugins=plugins)
    wrapped, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=0.05))
    loader = fabric.setup_dataloaders(DataLoader(items(ROWS), batch_size=4, shuffle=True))
    options: dict[str, Any] = {"factory": build_net, "load_batch": load_batch, "every": 3}
    with (
        Recorder(tmp_path / "record", model, **options) as recorder,
        recorder.stage(
            "one", optimizer, objective, dataset=data, steps=20, source=through(fabric)
        ) as run,
    ):
        loop(fabric, wrapped, optimizer, (recorded(loader, run) for _ in range(2)))
    (stage,) = landed(tmp_path, data, build_net).stages
    weights = [b.weight for step in stage.steps for b in step.batches]
    assert 0 < weights.count(0.0) == stage.header.skipped
    assert len(stage.steps) == stage.header.steps == 20 - stage.header.skipped
    assert stage.header.autocast is not None
    assert (stage.header.autocast.dtype, stage.header.autocast.around) == ("float16", "forward")


@pytest.mark.parametrize("what", ["values", "other norm", "processes"])
def test_what_is_refused_by_name(tmp_path: Path, what: str, monkeypatch: Any) -> None:
    said = "2 processes" if what == "processes" else "clipping by value, or by another norm"
    data = data_in(tmp_path, ROWS)
    model = build_net()
    fabric = fabric_of.Fabric(accelerator="cpu", devices=1)
    if what == "processes":
        monkeypatch.setattr(type(fabric), "world_size", 2)
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    recorder = Recorder(tmp_path / "record", model, factory=build_net, load_batch=load_batch)
    clip = {"clip_val": 0.1} if what == "values" else {"max_norm": 1.0, "norm_type": 1}
    with (
        pytest.raises(RecordError, match=said) as error,
        recorder.stage(
            "one", optimizer, objective, dataset=data, steps=1, source=through(fabric)
        ) as run,
    ):
        run.batch([0, 1])
        fabric.backward(objective(wrapped, items(ROWS)[:2]))
        fabric.clip_gradients(wrapped, optimizer, **clip)
    assert error.value.remedy


TRAINING = """
def build_model():
    return nn.Sequential(
        nn.LayerNorm(3), nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3)
    )


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model, stage, source, recorder):
    from contextlib import nullcontext

    from lightning.fabric import Fabric

    model.train()
    fabric = Fabric(accelerator="cpu", devices=1, OPTIONS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[stage])
    wrapped, optimizer = fabric.setup(model, optimizer)
    loader = DataLoader(Rows(tables()[source]), batch_size=8, shuffle=True)
    loader = fabric.setup_dataloaders(loader)
    stage_of = nullcontext()
    if recorder is not None:
        from auditspec import Dataset
        from auditspec.integrations.fabric import through
        from auditspec.integrations.loader import recorded

        data = Dataset.open(f"{source}.parquet")
        stage_of = recorder.stage(
            stage, optimizer, objective, dataset=data, steps=4 * 5, source=through(fabric)
        )
    with stage_of as run:
        for epoch in range(4):
            batches = loader if run is None else recorded(loader, run, weight=1 / 2)
            for number, batch in enumerate(batches):
                with fabric.no_backward_sync(wrapped, enabled=number % 2 == 0):
                    fabric.backward(objective(wrapped, batch) / 2)
                if number % 2 == 1:
                    optimizer.step()
                    optimizer.zero_grad()
"""
ADAMW = {"name": "AdamW", "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_an_audit_says_what_training_without_the_stage_gives(
    tmp_path: Path, precision: str
) -> None:
    options = f"precision={precision!r}"
    hold_against_truth(
        tmp_path, TRAINING.replace("OPTIONS", options), ADAMW, self_check="bf16" in options
    )
