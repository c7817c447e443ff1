"""Checkpoints that real trainers left behind: step, weights, optimizer state, random state."""

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import save_file

from auditspec.artifacts.pickled import Unloaded, read_saved
from auditspec.artifacts.saved import (
    checkpoints_by_step,
    read_saved_checkpoint,
    saved_checkpoints,
    step_of,
)
from auditspec.errors import EvidenceError


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in right)


def test_a_random_state(tmp_path: Path) -> None:
    numpy_state = np.random.get_state()
    states = {"python": random.getstate(), "numpy": numpy_state, "cpu": torch.get_rng_state()}
    torch.save(states, tmp_path / "rng_state.pth")
    read = read_saved(tmp_path / "rng_state.pth")
    assert read["python"] == random.getstate()
    assert torch.equal(read["cpu"], torch.get_rng_state())
    assert np.array_equal(read["numpy"][1].numpy(), numpy_state[1])
    assert read["numpy"][2:] == tuple(numpy_state[2:])


def test_values_come_out_as_they_are(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "x"], "b": (float("inf"), 2**70, b"\x00"), 3: {"c": []}}
    torch.save(value, tmp_path / "value.pt")
    assert read_saved(tmp_path / "value.pt") == value


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return subprocess.getoutput, (f"touch {self.mark}",)


@pytest.mark.slow
def test_objects_are_not_made(tmp_path: Path) -> None:
    """Where unknown objects are taken, they come out as what they were made of; nothing is called."""
    torch.save({"w": Payload(tmp_path / "ran")}, tmp_path / "value.pt")
    read = read_saved(tmp_path / "value.pt", objects=True)
    assert isinstance(read["w"], Unloaded) and not (tmp_path / "ran").exists()
    with pytest.raises(EvidenceError, match="refuses it"):
        read_saved(tmp_path / "value.pt")


@pytest.mark.slow
def test_a_value_that_unfolds_without_end(tmp_path: Path) -> None:
    bomb: list = []
    for _ in range(60):
        bomb = [bomb, bomb]
    torch.save(bomb, tmp_path / "bomb.pt")
    with pytest.raises(EvidenceError, match="too many values"):
        read_saved(tmp_path / "bomb.pt")


def test_state_dicts_in_the_order_of_their_steps(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for step in (20, 3, 100):
        value = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(value, tmp_path / f"run-{step}.pt")
    (tmp_path / "notes.txt").write_text("7")
    paths = saved_checkpoints(tmp_path)
    assert [path.name for path in paths] == ["run-3.pt", "run-20.pt", "run-100.pt"]
    saved = read_saved_checkpoint(paths[0])
    assert (saved.form, saved.step) == ("file", 3)
    assert same(saved.weights, model.state_dict())
    assert saved.optimizer is not None
    assert torch.equal(
        saved.optimizer["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
    assert saved.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_name_that_says_another_step(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2).state_dict(), "step": 6}, tmp_path / "step-5.pt")
    (stored,) = checkpoints_by_step(tmp_path).values()
    with pytest.raises(EvidenceError, match="is of step 6 by what it holds, of step 5 by its name"):
        stored.read()


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-10", 10),
        ("checkpoint_0010", 10),
        ("epoch=1-step=300-v1", 300),
        ("model-7b-iter200", 200),
        ("checkpoint-2_step-300", 300),
        ("run-3", 3),
        ("epoch-3", None),
        ("last", None),
    ],
)
def test_steps_in_names(tmp_path: Path, name: str, step: int | None) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    assert step_of(tmp_path / f"{name}.safetensors") == step


def test_folders_without_checkpoints(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(EvidenceError, match=r"holds no checkpoints|no such folder"):
            saved_checkpoints(folder)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(EvidenceError, match="is no saved checkpoint"):
        read_saved_checkpoint(tmp_path / "x.txt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_folders(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    rows = [{key: torch.arange(8) + i for key in ("input_ids", "labels")} for i in range(12)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        save_steps=2,
        max_steps=4,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=0.01,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    first, last = map(read_saved_checkpoint, saved_checkpoints(tmp_path))
    assert (first.form, first.step, last.step) == ("huggingface", 2, 4)
    assert all(torch.equal(last.weights[n], model.state_dict()[n]) for n in last.weights)
    assert last.optimizer is not None and last.rng is not None and last.arguments is not None
    moments = trainer.optimizer.state_dict()["state"]
    assert torch.equal(last.optimizer["state"][3]["exp_avg_sq"], moments[3]["exp_avg_sq"])
    assert last.rng.keys() == {"python", "numpy", "cpu"}
    assert last.arguments.state["learning_rate"] == 0.01
    assert last.facts["max_steps"] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_files(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 3})
            self.model = torch.nn.Linear(3, 2)

        def training_step(self, batch, index):
            return self.model(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=str(tmp_path), every_n_train_steps=1, save_top_k=-1
    )
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
    )
    module = Module()
    rows = torch.utils.data.TensorDataset(torch.randn(9, 3))
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=1))
    saved = [read_saved_checkpoint(path) for path in saved_checkpoints(tmp_path)]
    assert [(s.form, s.step) for s in saved] == [("lightning", step) for step in (1, 2, 3)]
    assert same(saved[-1].weights, module.state_dict())
    moments = trainer.optimizers[0].state_dict()["state"]
    assert torch.equal(saved[-1].optimizer["state"][1]["exp_avg"], moments[1]["exp_avg"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_distributed_folder(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    value = {"model": model.state_dict(), "optim": {"state": {}, "param_groups": []}, "step": 7}
    torch.distributed.checkpoint.save(value, checkpoint_id=str(tmp_path / "step-7"))
    (path,) = saved_checkpoints(tmp_path)
    saved = read_saved_checkpoint(path)
    assert (saved.form, saved.step) == ("distributed", 7)
    assert same(saved.weights, model.state_dict())
