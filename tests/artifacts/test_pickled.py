"""Checkpoints in torch's own format: the good ones come out whole, the rest ends in one clear error."""

import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from auditspec.artifacts.digest import digest_file
from auditspec.artifacts.weights import read_weights
from auditspec.errors import EvidenceError


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_state_dict(tmp_path: Path, suffix: str) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    state = {"w": weight, "tied": weight, "t": weight.t(), "n": torch.tensor([2**60 + 1])}
    path = tmp_path / f"model{suffix}"
    torch.save(state, path)
    read = read_weights(path, digest_file(path)[0]).tensors
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(EvidenceError, match="pinned is"):
        read_weights(path, "sha256:" + "0" * 64)


@pytest.mark.slow
def test_what_is_not_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for value in ([torch.ones(2)], {"a": 1}, {1: torch.ones(2)}):
        torch.save(value, path)
        with pytest.raises(EvidenceError, match="not a state dict"):
            read_weights(path)
    torch.save({"w": torch.eye(3).to_sparse()}, path)
    with pytest.raises(EvidenceError, match="sparse"):
        read_weights(path)


@pytest.mark.slow
def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(100)}, path)
    data = path.read_bytes()
    for spoiled in (b"", data[: len(data) // 2], b"x" * len(data)):
        path.write_bytes(spoiled)
        with pytest.raises(EvidenceError, match=r"model\.pt"):
            read_weights(path)


@pytest.mark.slow
def test_no_code_runs(tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    for save in (torch.save, lambda value, to: to.write_bytes(pickle.dumps(value))):
        save({"w": Payload(mark)}, path)
        with pytest.raises(EvidenceError):
            read_weights(path)
        assert not mark.exists()


def test_a_compressed_archive(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(2**22)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert path.stat().st_size < 2**17
    with pytest.raises(EvidenceError, match="compressed"):
        read_weights(path)


def test_a_tensor_of_more_elements_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(EvidenceError, match="4000000000000 bytes"):
        read_weights(path)


def test_the_limits_hold(tmp_path: Path) -> None:
    """In the child itself: memory beyond its limit cannot be had, time beyond it ends it."""
    program = (
        "import sys; from auditspec.artifacts.confined import limit\n"
        "limit(2**29, 1, 2**20)\n"
        "try: bytearray(2**31); print('had it')\n"
        "except MemoryError: print('refused')\n"
        "sys.stdout.flush()\n"
        "while True: pass\n"
    )
    begun = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "refused\n"
    assert ran.returncode < 0 and time.monotonic() - begun < 120
