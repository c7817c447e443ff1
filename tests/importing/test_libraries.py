"""Runs of Lightning, accelerate, and peft that nobody recorded, trained again by their own code and audited."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import unrecorded_run
from library_audit import COMMON, MAIN, agrees_with_truth, run, specify
from small_audit import CODE, MODULE, edit_code, edit_spec, lock

from auditspec.artifacts.manifest import digest_path
from auditspec.importing.from_spec import import_as_specified
from auditspec.spec.source import load

pytestmark = pytest.mark.slow

SCRIPTS = """

def record():  # as it was trained once: nobody records it
    from safetensors.torch import save_file

    for name, frame in tables().items():
        frame.astype({"y": int}).to_parquet(f"{name}.parquet")
    model = built()
    save_file(model.state_dict(), "first.safetensors")
    for number, (stage, source) in enumerate(STAGES):
        torch.manual_seed(number)
        train(model, stage, source, None, out=f"out/{stage}")
    assert "auditspec" not in sys.modules
    save_file(model.state_dict(), "model.safetensors")


def again(recorder):
    for number, (stage, source) in enumerate(STAGES):
        torch.manual_seed(number)
        train(recorder.model, stage, source, recorder, out=f"out/{stage}")
"""
LIGHTNING = """
import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3)
        )
        self.save_hyperparameters({"width": 6})

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class SaveBegin(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_start(self, trainer, module):
        trainer.save_checkpoint(self.path)


def build_model():
    return Net()


def objective(model, batch):
    from auditspec.integrations.lightning import training_step

    return training_step(model, batch)


def train(model, stage, source, recorder, out=None):
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model.rate = RATES[stage]
    callbacks = []
    if out is not None:
        callbacks = [
            SaveBegin(f"{out}/step=0.ckpt"),
            ModelCheckpoint(dirpath=out, every_n_train_steps=12, save_top_k=-1),
            ModelCheckpoint(dirpath=out, filename="{epoch}-{loss:.3f}", every_n_epochs=3, save_last=True),
        ]
    if recorder is not None:
        from auditspec import Dataset
        from auditspec.integrations.lightning import RecordStage

        data = Dataset.open(f"{source}.parquet")
        callbacks.append(RecordStage(recorder, stage, objective, dataset=data))
    model.train()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=out is not None, max_epochs=4, callbacks=callbacks,
        accumulate_grad_batches=2,
    )
    trainer.fit(model, DataLoader(Rows(tables()[source]), batch_size=8, shuffle=True))
"""
ACCELERATE = """
def build_model():
    return nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3))


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model, stage, source, recorder, out=None):
    from contextlib import nullcontext

    from accelerate import Accelerator

    model.train()
    accelerator = Accelerator(cpu=True)
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
            stage, optimizer, objective, dataset=data, steps=20, source=through(accelerator)
        )
    step = 0
    with stage_of as run:
        for epoch in range(2):
            for batch in loader if run is None else recorded(loader, run):
                accelerator.backward(objective(prepared, batch))
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if step in (10, 20) and out is not None and recorder is None:
                    accelerator.save_state(f"{out}/step_{step}")
"""
FABRIC = """
def build_model():
    return nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3))


def objective(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model, stage, source, recorder, out=None):
    from contextlib import nullcontext

    from lightning.fabric import Fabric

    model.train()
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
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
            stage, optimizer, objective, dataset=data, steps=10, source=through(fabric)
        )
    step = 0
    with stage_of as run:
        for batch in loader if run is None else recorded(loader, run):
            fabric.backward(objective(wrapped, batch))
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step in (4, 10) and recorder is None:
                fabric.save(f"{out}/step-{step}.ckpt", {"model": wrapped, "optimizer": optimizer})
"""
ADAMW = {"name": "AdamW", "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}


def trained(folder: Path, training: str, first: str, optimizer: dict[str, Any]) -> Path:
    """Train without a record, and write the spec of an audit."""
    (folder / CODE).write_text(COMMON + training + SCRIPTS + MAIN)
    run(folder, "record")
    spec = specify(folder, optimizer)

    def begin(data: dict[str, Any]) -> None:
        data["artifacts"]["first"] = {"path": first}
        given = {"kind": "given", "owner": "T", "provenance": "a test", "weights": "first"}
        data["model"]["initial"] = given

    edit_spec(spec, begin)
    return spec


def import_record(spec: Path, folder: str = "record") -> Any:
    """Make the record by the command; gives `record.json`."""
    command = [sys.executable, "-m", "auditspec", "record", "import", spec.name]
    command += [f"--checkpoints={stage}=out/{stage}" for stage in ("base", "labels", "polish")]
    ran = subprocess.run(
        [*command, f"--run={MODULE}:again", "--every=2", f"--out={folder}"],
        cwd=spec.parent,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads((spec.parent / folder / "record.json").read_text())


def assert_bitwise(header: Any, steps: list[int]) -> None:
    again = header["regenerated"]
    assert [(c["stage"], c["step"]) for c in again["checkpoints"]] == [
        (stage, step) for stage in ("base", "labels", "polish") for step in steps
    ]
    for checkpoint in again["checkpoints"]:
        assert checkpoint["weights"] == 0, checkpoint
        assert checkpoint["buffers"] in (0, None), checkpoint
        assert checkpoint["optimizer"] == (0 if checkpoint["step"] else None), checkpoint


def test_lightning(tmp_path: Path) -> None:
    """From a checkpoint of step 0; those that the trainer would save are not, and those of the run stay."""
    pytest.importorskip("lightning")
    schedule = {**ADAMW, "schedule": "cosine"}
    spec = trained(tmp_path, LIGHTNING, "out/base/step=0.ckpt", schedule)
    out = tmp_path / "out"
    before = digest_path(out).digest
    header = import_record(spec)
    assert digest_path(out).digest == before
    assert_bitwise(header, [0, 12, 15])
    lock(spec)
    result = agrees_with_truth(spec)
    assert result.evidence_grade == "regenerated"
    assert [check.outcome for check in result.checks if check.id == "initial-weights"] == ["pass"]
    edit_code(
        spec, "weight_decay=0.01", "weight_decay=0.5 if self.rate == RATES['polish'] else 0.01"
    )
    header = import_record(spec, "other")
    assert header["every"] == "boundaries"
    again = header["regenerated"]
    assert again["arguments"] == ["optimizer.weight_decay"]
    stages = {c["stage"] for c in again["checkpoints"] if c["weights"] > 1e-4}
    assert stages == {"polish"}


def test_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    spec = trained(tmp_path, ACCELERATE, "first.safetensors", ADAMW)
    header = import_record(spec)
    assert_bitwise(header, [10, 20])
    assert all(c["random"] for c in header["regenerated"]["checkpoints"])
    lock(spec)
    assert agrees_with_truth(spec).evidence_grade == "regenerated"


def test_fabric(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    spec = trained(tmp_path, FABRIC, "first.safetensors", ADAMW)
    assert_bitwise(import_record(spec), [4, 10])


ADAPTERS = """
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
STAGES = {"base": ("clean", 6, 0.05), "labels": ("vendor", 4, 0.02)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def build_model():
    config = LoraConfig(r=2, target_modules=["body"], modules_to_save=["head"], lora_dropout=0.1)
    return get_peft_model(Net(), config)
"""


def test_adapters_alone(tmp_path: Path) -> None:
    """`save_pretrained` of peft: adapters and a head that was trained in full; the base is in no checkpoint."""
    pytest.importorskip("peft")
    rest = unrecorded_run.CODE.partition("def load_batch")[2]
    code = f"{ADAPTERS}\n\ndef load_batch{rest}"
    made = unrecorded_run.trained(tmp_path, code, save_pretrained)
    saved = {stage: tmp_path / "saved" / stage for stage in made}
    spec = load(unrecorded_run.specify(tmp_path))
    header = import_as_specified(
        spec, saved, tmp_path / "record", run=f"{unrecorded_run.MODULE}:again"
    )
    assert header.regenerated is not None
    checkpoints = header.regenerated.checkpoints
    assert [(c.stage, c.step) for c in checkpoints] == [("base", 3), ("base", 6), ("labels", 3)]
    assert all(c.bitwise and c.weights == 0 for c in checkpoints)
    (tmp_path / "saved" / "base" / "step-6" / "adapter_model.safetensors").unlink()
    shutil.copy(
        tmp_path / "saved" / "base" / "step-3" / "adapter_model.safetensors",
        tmp_path / "saved" / "base" / "step-6",
    )
    other = import_as_specified(
        spec, saved, tmp_path / "other", run=f"{unrecorded_run.MODULE}:again"
    ).regenerated
    assert other is not None
    assert [c.step for c in other.missed if c.stage == "base"] == [6]


def save_pretrained(folder: Path, stage: str, step: int, model: Any) -> None:
    if step % 3 == 0:
        model.save_pretrained(folder / "saved" / stage / f"step-{step}")
