"""A small piece of audited code, in a sealed process and in this one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from auditspec.artifacts.code import CodeBundle
from auditspec.sealed.isolation import readable
from auditspec.sealed.process import Process
from auditspec.sealed.start import SealedCode, sealed_code

CODE = Path(__file__).with_name("sealed_sample.py")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the code stands, beside a key and a secret."""
    place = tmp_path_factory.mktemp("sealed")
    (place / "sealed_sample.py").write_text(CODE.read_text())
    (place / "beside.txt").write_text("read me")
    (place / "auditor.key").write_text("a key")
    (place / "rows.csv").write_text("p,q,y\n0.5,3,0\n1,4,1\n2,5.5,2\n")
    (place / "secret").mkdir()
    (place / "secret" / "cache").write_text("a cache")
    return place


@pytest.fixture(scope="session")
def printed() -> list[str]:
    """What the code printed."""
    return []


@pytest.fixture(scope="session")
def sealed(folder: Path, printed: list[str]) -> Iterator[SealedCode]:
    """The code in its process."""
    bundle = CodeBundle.read(folder / "sealed_sample.py", None)
    read = readable([], [folder], [folder / "auditor.key", folder / "secret"])
    read += [folder / f"{'x' * 100}-{n}" for n in range(5000)]  # no command line holds that
    process = Process("best", read, folder, printed.append)
    yield sealed_code(bundle, process, torch.device("cpu"))
    process.end()


@pytest.fixture(scope="session")
def here(folder: Path) -> Iterator[CodeBundle]:
    """The same code in this process, under another name of its module."""
    other = folder / "here"
    other.mkdir()
    (other / "sample_here.py").write_text(CODE.read_text())
    bundle = CodeBundle.read(other / "sample_here.py", None)
    with bundle.importable():
        yield bundle
    sys.modules.pop("sample_here", None)
