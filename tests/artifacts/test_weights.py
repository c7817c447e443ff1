"""Weights as libraries ship them are read whole; what is missing, alien, or hostile ends in one clear error."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from auditspec.artifacts.manifest import digest_path
from auditspec.artifacts.weight_files import aligned, fitted
from auditspec.artifacts.weights import read_weights
from auditspec.errors import EvidenceError

INDEX = "model.safetensors.index.json"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in right)


def sharded(folder: Path) -> Path:
    """As transformers shards: two files and their index."""
    folder.mkdir()
    tensors = model().state_dict()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:2]}
    shards["model-00002-of-00002.safetensors"] = names[2:]
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    where = {name: file for file, held in shards.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text("{}")
    return folder


def refused(path: Path, what: str, **options) -> None:
    with pytest.raises(EvidenceError, match=what) as error:
        read_weights(path, **options)
    assert error.value.remedy


def test_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "out")
    digest = digest_path(folder).digest
    read = read_weights(folder, digest)
    assert read.form == "sharded" and same(read.tensors, model().state_dict())
    (folder / "config.json").write_text('{"changed": 1}')
    refused(folder, "pinned is", expected=digest)
    refused(folder / INDEX, "is the index of shards")


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "out")
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, "its shard model-00002-of-00002.safetensors is missing")


def test_a_shard_of_another_model(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "out")
    save_file({"other": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    refused(folder, "its tensors are not those that")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.bin", "a/b.safetensors", ".x.bin"])
def test_an_index_that_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "out")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    refused(folder, "no file of its folder")


@pytest.mark.parametrize("index", ['{"weight_map": 3}', '{"weight_map": {"w": "code.py"}}', "[]"])
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    folder = sharded(tmp_path / "out")
    (folder / INDEX).write_text(index)
    refused(folder, "weight_map|no file of weights")


def test_a_header_that_claims_too_much(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "out")
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    refused(folder, "its header claims")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "holds no weights")
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / name)
    refused(tmp_path, "which of its files holds the weights")


@pytest.mark.slow
@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_a_state_dict_within_a_dictionary(tmp_path: Path, key: str) -> None:
    optimizer = torch.optim.Adam((own := model()).parameters())
    own(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    value = {key: own.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(value, tmp_path / "model.pt")
    read = read_weights(tmp_path / "model.pt", names=own.state_dict().keys())
    assert (read.form, read.entry) == ("torch", key)
    assert same(read.tensors, own.state_dict())


@pytest.mark.slow
def test_two_state_dicts_of_the_model(tmp_path: Path) -> None:
    path, names = tmp_path / "model.pt", model().state_dict().keys()
    torch.save({"model": model().state_dict(), "ema": {"shadow": model().state_dict()}}, path)
    refused(path, r"model \(4 tensors\), ema.shadow \(4 tensors\)", names=names)
    assert read_weights(path, names=names, entry="ema.shadow").entry == "ema.shadow"
    refused(path, "no state dict stands at 'mean'", entry="mean")
    refused(path, "none of its state dicts has the model's tensors", names=["other.weight"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_distributed_checkpoint(tmp_path: Path) -> None:
    own, path = model(), tmp_path / "dcp"
    torch.distributed.checkpoint.save({"app": {"model": own.state_dict()}}, checkpoint_id=str(path))
    digest = digest_path(path).digest
    read = read_weights(path, digest, names=own.state_dict().keys())
    assert (read.form, read.entry) == ("distributed", "app.model")
    assert same(read.tensors, own.state_dict())
    shard = path / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-2000])
    refused(path, "shorter than")
    refused(path, "pinned is", expected=digest)
    shard.unlink()
    refused(path, "its shard __0_0.distcp is missing")


@pytest.mark.slow
def test_a_hostile_description_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    """Its pickle is read without importing what it names."""
    import pickle
    import subprocess

    class Payload:
        def __reduce__(self):
            return subprocess.getoutput, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "dcp"
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Payload()))
    refused(path, "does not describe it")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers_shards(tmp_path: Path) -> None:
    """Of a folder by `save_pretrained(max_shard_size=…)`, with tied weights left out by safetensors."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=99, n_positions=16)
    own = transformers.GPT2LMHeadModel(config)
    own.save_pretrained(tmp_path / "out", max_shard_size="40KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    read = read_weights(tmp_path / "out", digest_path(tmp_path / "out").digest)
    assert read.form == "sharded" and "lm_head.weight" not in read.tensors
    assert all(torch.equal(own.state_dict()[n], t) for n, t in read.tensors.items())
    shutil.rmtree(tmp_path / "out")
    own.save_pretrained(tmp_path / "out")
    read = read_weights(tmp_path / "out")
    assert read.form == "safetensors" and same(
        read.tensors, load_file(tmp_path / "out" / "model.safetensors")
    )


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ["a.weight", "b"]),
        ("module.", ["module.a.weight", "module.b"]),
        ("_orig_mod.", ["_orig_mod.a.weight", "_orig_mod.b"]),
        ("_orig_mod.module.", ["module._orig_mod.a.weight", "module._orig_mod.b"]),
        ("model.", ["model.a.weight", "model.b", "loss.weight"]),
    ],
)
def test_prefixes_of_wrappers(prefix: str, names: list[str]) -> None:
    tensors = {name: torch.full((1,), float(i)) for i, name in enumerate(names)}
    renamed, taken = aligned(tensors, ["a.weight", "b"]) or ({}, "")
    assert taken == prefix
    assert [float(t) for t in renamed.values()] == list(map(float, range(len(names))))
    assert list(renamed)[:2] == ["a.weight", "b"]


def test_a_prefix_that_the_recorded_model_has() -> None:
    renamed, taken = aligned({"a": torch.ones(1), "b": torch.ones(1)}, ["net.a", "net.b"]) or (
        {},
        "",
    )
    assert (list(renamed), taken) == (["net.a", "net.b"], "+net.")


def test_prefixes_that_are_not_one() -> None:
    two = {f"{model}.{name}": torch.ones(1) for model in ("student", "teacher") for name in "ab"}
    assert aligned(two, ["a", "b"]) is None
    assert aligned({"x": torch.ones(1)}, ["a"]) is None


def test_shared_tensors_under_their_first_name() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    found = fitted({"module.b": one, "module.c": two}, ["a", "c"], {"b": "a"})
    assert found == {"b": one, "c": two, "a": one}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model()

        def training_step(self, batch, index):
            return self.model(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    module, path = Module(), tmp_path / "last.ckpt"
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = torch.utils.data.TensorDataset(torch.randn(4, 3))
    trainer.fit(module, torch.utils.data.DataLoader(rows))
    trainer.save_checkpoint(path)
    names = module.model.state_dict().keys()
    read = read_weights(path, names=names)
    assert (read.form, read.entry) == ("torch", "state_dict")
    renamed, prefix = aligned(read.tensors, names) or ({}, "")
    assert prefix == "model." and same(renamed, module.model.state_dict())


SHARDED = """\
import sys
import torch
import torch.distributed.checkpoint
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{store}")
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(15.0).reshape(5, 3)
dcp.save({"model": {"w": distribute_tensor(whole, mesh, [Shard(0)]), "b": torch.ones(2)}}, checkpoint_id=folder)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_shards_of_two_processes(tmp_path: Path) -> None:
    """A tensor sharded over two processes is put together; without one of the shards it is refused."""
    import subprocess
    import sys

    (tmp_path / "save.py").write_text(SHARDED)
    folder = tmp_path / "dcp"
    ran = [
        subprocess.Popen(
            [sys.executable, "save.py", str(r), tmp_path / "store", folder], cwd=tmp_path
        )
        for r in range(2)
    ]
    assert [process.wait(240) for process in ran] == [0, 0]
    assert len(list(folder.glob("*.distcp"))) == 2
    read = read_weights(folder, names=["w", "b"])
    assert torch.equal(read.tensors["w"], torch.arange(15.0).reshape(5, 3))
    (folder / "__1_0.distcp").unlink()
    refused(folder, "its shard __1_0.distcp is missing")
