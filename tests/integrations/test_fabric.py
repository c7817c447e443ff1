"""Loops that train through Lightning Fabric, recorded and audited; truth comes from training again with Fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from library_audit import hold_against_truth
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

fabric_of: Any = pytest.importorskip("lightning.fabric")

from auditspec import Dataset, Recorder  # noqa: E402
from auditspec.engine.loading import Functions  # noqa: E402
from auditspec.engine.rerun import Rerun  # noqa: E402
from auditspec.errors import RecordError  # noqa: E402
from auditspec.integrations.fabric import through  # noqa: E402
from auditspec.integrations.loader import recorded  # noqa: E402
from auditspec.record.state import deviation  # noqa: E402
from auditspec.record.trajectory import Trajectory  # noqa: E402

ROWS = 40
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def build_net() -> nn.Module:
    """Its first operation is one that autocast leaves alone, so that it sees inputs as they are."""
    return nn.Sequential(
        nn.LayerNorm(2), nn.Linear(2, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 2)
    )


def load_batch(dataset: Dataset, ids: Any) -> list[Tensor]:
    rows = torch.tensor(dataset.frame.to_numpy().take(list(ids), axis=0))
    return [rows[:, :2].float(), rows[:, 2].long()]


def objective(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def items() -> TensorDataset:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(ROWS, 2, generator=draw), torch.randint(0, 2, (ROWS,), generator=draw)
    return TensorDataset(x, y)


def data_in(folder: Path) -> Dataset:
    import pandas as pd

    x, y = items().tensors
    frame = pd.DataFrame(x.double().numpy(), columns=["a", "b"]).assign(y=y.numpy().astype(float))
    frame.to_parquet(folder / "data.parquet")
    return Dataset.open(folder / "data.parquet")


def loop(fabric: Any, model: Any, optimizer: Any, passes: Any, n: int, clip: float | None) -> None:
    """Accumulates over `n` batches; as Fabric's documentation has it."""
    for batches in passes:
        for number, batch in enumerate(batches, 1):
            with fabric.no_backward_sync(model, enabled=number % n != 0):
                loss = objective(model, batch)
                fabric.backward(loss / n if n > 1 else loss)
            if number % n == 0:
                if clip is not None:
                    fabric.clip_gradients(model, optimizer, max_norm=clip)
                optimizer.step()
                optimizer.zero_grad()


def train(
    folder: Path,
    *,
    n: int = 1,
    clip: float | None = None,
    workers: int = 0,
    records: bool = True,
    **options: Any,
) -> Any:
    data = data_in(folder)
    torch.manual_seed(0)
    model = build_net()
    recorder = Recorder(folder / "record", model, every=2, factory=build_net, load_batch=load_batch)
    for number in range(2):
        torch.manual_seed(number)
        fabric = fabric_of.Fabric(accelerator="cpu", devices=1, **options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        wrapped, optimizer = fabric.setup(model, optimizer)
        loader = fabric.setup_dataloaders(
            DataLoader(items(), batch_size=4, shuffle=True, num_workers=workers)
        )
        if not records:
            loop(fabric, wrapped, optimizer, [loader, loader], n, clip)
            continue
        with recorder.stage(
            f"stage-{number}",
            optimizer,
            objective,
            dataset=data,
            steps=2 * len(loader) // n,
            clip_norm=clip,
            source=through(fabric),
        ) as run:
            passes = (recorded(loader, run, weight=1 / n) for _ in range(2))
            loop(fabric, wrapped, optimizer, passes, n, clip)
        assert not {"backward", "clip_gradients"} & vars(fabric).keys()
    if not records:
        return model, None
    recorder.finish()
    trajectory = Trajectory.open(folder / "record")
    functions = Functions(
        build_net, load_batch, {s.id: objective for s in trajectory.stages}, objective
    )
    rerun = Rerun(trajectory, functions, {"data": data})
    for stage, start, stop in trajectory.windows():
        assert deviation(rerun.run(stage, stage.state(start), start, stop), stage.state(stop)) == 0
    return model, trajectory


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"n": 2},
    "clipping": {"clip": 0.1, "n": 2},
    "workers": {"workers": 2},
    "bf16-mixed": {"precision": "bf16-mixed", "n": 2},
}


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
    assert {b.weight for b in batches} == {1 / CASES[name].get("n", 1)}
    autocast = trajectory.stages[0].header.autocast
    assert (None if autocast is None else (autocast.around, autocast.inputs)) == (
        ("forward", True) if name == "bf16-mixed" else None
    )


@pytest.mark.parametrize("what", ["values", "other norm", "processes"])
def test_what_is_refused_by_name(tmp_path: Path, what: str, monkeypatch: Any) -> None:
    said = "2 processes" if what == "processes" else "clipping by value, or by another norm"
    data = data_in(tmp_path)
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
        fabric.backward(objective(wrapped, items()[:2]))
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
    hold_against_truth(tmp_path, TRAINING.replace("OPTIONS", options), ADAMW)
