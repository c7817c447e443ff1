"""Threats to artifacts (T15 to T21): exit code 3, and nothing runs, hangs, or fills memory."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from factories import SPEC_TEXT
from said import said as in_words

import auditspec.artifacts.digest
from auditspec.artifacts import parquet
from auditspec.artifacts.checkpoints import check_finite, read_tensors, write_tensors
from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.digest import digest_bytes, digest_file
from auditspec.artifacts.manifest import Manifest, digest_path
from auditspec.artifacts.weights import read_weights
from auditspec.errors import EvidenceError, Exit
from auditspec.evidence import inspect_all
from auditspec.spec.lock import write_lock
from auditspec.spec.source import load

pytestmark = pytest.mark.threat
Change = Callable[[Path], object]


def refused(call: Callable[[], object], said: str | None = None) -> None:
    with pytest.raises(EvidenceError, match=said) as caught:
        call()
    assert caught.value.exit_code == Exit.EVIDENCE == 3


@pytest.fixture
def audited(tmp_path: Path) -> Path:
    """A spec whose artifacts are pinned in its lock."""
    folder = tmp_path / "audit"
    (folder / "src" / "sub").mkdir(parents=True)
    (folder / "record").mkdir()
    for name in ("src/train.py", "src/sub/more.py", "record/a", "train.csv", "holdout.csv"):
        (folder / name).write_text(f"# {name}\n")
    write_tensors(folder / "model.safetensors", {"w": torch.ones(4)})
    (folder / "audit.yaml").write_text(SPEC_TEXT)
    loaded = load(folder / "audit.yaml")
    paths = {name: folder / artifact.path for name, artifact in loaded.spec.artifacts.items()}
    write_lock(
        folder / "audit.yaml", {name: digest_path(path).digest for name, path in paths.items()}
    )
    assert {item.state for item in inspect_all(load(folder / "audit.yaml"))} == {"verified"}
    return folder


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda f: (f / "train.csv").write_text("other"), "mismatched"),
        (lambda f: (f / "train.csv").unlink(), "missing"),
        (lambda f: (f / "src" / "new.py").write_text(""), "mismatched"),
        (lambda f: (f / "src" / "train.py").unlink(), "mismatched"),
        (lambda f: (f / "src" / "train.py").rename(f / "src" / "learn.py"), "mismatched"),
    ],
    ids=["changed", "missing", "added", "removed", "renamed"],
)
def test_t15_artifacts_that_are_not_the_pinned_ones(
    audited: Path, change: Change, state: str
) -> None:
    change(audited)
    found = inspect_all(load(audited / "audit.yaml"))
    assert [item.state for item in found if item.state != "verified"] == [state]


def link(folder: Path) -> None:
    (folder / "src" / "train.py").rename(folder / "elsewhere.py")
    (folder / "src" / "train.py").symlink_to(folder / "elsewhere.py")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (link, "symbolic link"),
        (lambda f: (f / "src" / "link").symlink_to("/etc"), "symbolic link"),
        (lambda f: os.mkfifo(f / "src" / "pipe"), "FIFO"),
        (lambda f: (f / "src" / ".hidden").mkdir(), "hidden"),
        (lambda f: (f / "src" / "a\\b").write_text(""), "backslash"),
    ],
    ids=["link", "link-to-folder", "fifo", "hidden", "backslash"],
)
def test_t16_what_is_no_plain_file(audited: Path, change: Change, said: str) -> None:
    change(audited)
    refused(lambda: Manifest.scan(audited / "src"), said)
    (code,) = (item for item in inspect_all(load(audited / "audit.yaml")) if item.name == "code")
    assert code.state == "mismatched" and said in in_words(code.notes)


def test_t16_a_manifest_that_climbs(tmp_path: Path) -> None:
    for path in ("../secret", "/etc/passwd", "a/../b", ".hidden/x", "a//b"):
        entry = {"path": path, "size": 0, "sha256": "0" * 64}
        refused(lambda e=entry: Manifest.decode(json.dumps({"files": [e]}).encode()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_t17_a_checkpoint_swapped_between_hash_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"model{suffix}"
    save = write_tensors if suffix == ".safetensors" else lambda to, state: torch.save(state, to)
    save(path, {"w": torch.ones(4)})
    digest, compared = digest_file(path)[0], auditspec.artifacts.digest.check

    def check_then_swap(where: Path, expected: str, found: str) -> None:
        compared(where, expected, found)
        save(path, {"w": torch.zeros(4)})

    for module in ("digest", "pickled"):
        monkeypatch.setattr(f"auditspec.artifacts.{module}.check", check_then_swap)
    assert torch.equal(read_weights(path, digest).tensors["w"], torch.ones(4))
    monkeypatch.undo()
    refused(lambda: read_weights(path, digest), "pinned is")


def test_t17_code_and_data_swapped_between_hash_and_load(tmp_path: Path) -> None:
    code, table = tmp_path / "swapped_code.py", tmp_path / "table.csv"
    code.write_text("def answer():\n    return 'hashed'\n")
    table.write_text("x\n1\n")
    bundle = CodeBundle.read(code, digest_file(code)[0])
    dataset = Dataset.open(table, "t", digest_file(table)[0])
    code.write_text("def answer():\n    return 'swapped'\n")
    table.write_text("x\n2\n")
    with bundle.importable():
        assert bundle.load("swapped_code:answer")() == "hashed"
    assert dataset.frame["x"].tolist() == [1]


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_t18_a_pickle_that_runs_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"w": Payload(mark)}, tmp_path / "model.pt")
    refused(lambda: read_weights(tmp_path / "model.pt"), "refuses it")
    assert not mark.exists()


def test_t16_an_index_that_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"")
    folder = tmp_path / "shipped"
    folder.mkdir()
    index = {"weight_map": {"w": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: read_weights(folder), "no file of its folder")


def test_t18_a_distributed_checkpoint_that_runs_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(mark)))
    refused(lambda: read_weights(folder), "does not describe it")
    assert not mark.exists()


def test_t19_an_archive_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(512):
                member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    refused(lambda: read_weights(path), "compressed")


def test_t19_a_table_that_claims_more_than_its_file_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"x": np.zeros(20_000_000, dtype=np.int8)}), path, compression="zstd")
    assert path.stat().st_size < 2**20
    assert len(Dataset.open(path).frame) == 20_000_000
    monkeypatch.setattr(parquet, "MAX_EXPANSION", 10)
    refused(lambda: Dataset.open(path).frame, "claims to hold")


def test_t20_a_tensor_of_a_trillion_elements(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(1).expand(10**12)}, path)
    refused(lambda: read_weights(path), "would take 4000000000000 bytes")


def container(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def test_t21_a_header_with_a_key_twice() -> None:
    entry = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    refused(lambda: read_tensors(container(b"{" + entry + b"," + entry + b"}", bytes(4))), "twice")


def test_t21_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"w": torch.ones(100)})
    data, digest = path.read_bytes(), digest_file(path)[0]
    for length in (0, 7, 50, len(data) - 1):
        refused(lambda n=length: read_tensors(data[:n]))
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    refused(lambda: read_tensors(flipped, digest), digest_bytes(flipped))
    write_tensors(path, {"w": torch.full((3,), float("nan"))})
    refused(lambda: check_finite(read_tensors(path), "model"), "3 values that are not finite, of 3")
