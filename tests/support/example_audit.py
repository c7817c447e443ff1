"""An example of `examples/` from its data to a verified packet, by the commands of its README."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.fetch import Archive, NotAvailableError, cache, unpack

EXAMPLES = Path(__file__).parents[2] / "examples"
AUDITSPEC = [sys.executable, "-c", "from auditspec.cli.main import main; main()"]


def run(folder: Path, command: list[str], expect: int = 0) -> str:
    """What a command prints."""
    ran = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == expect, ran.stderr[-3000:] + ran.stdout[-3000:]
    return ran.stdout


def audited(name: str, archive: Archive, folder: Path) -> dict[str, Any]:
    """Train, audit, and verify a copy of an example; gives the results.

    Skips where its archive was not fetched before: no test goes to the network.
    """
    if not (cache() / f"{archive.package}-{archive.version}").exists():
        pytest.skip(f"{archive.package} {archive.version} was not fetched")
    shutil.copytree(
        EXAMPLES / name,
        folder,
        ignore=shutil.ignore_patterns("build*", "*.lock.json", "packet", "__pycache__"),
    )
    try:
        unpack(folder / "archives.toml", folder / "build")
    except NotAvailableError as error:
        pytest.skip(str(error))
    run(folder, [sys.executable, "train.py"])
    run(folder, [*AUDITSPEC, "keys", "new", "build/auditor"])
    run(folder, [*AUDITSPEC, "digest", "--lock", "audit.yaml"])
    run(folder, [*AUDITSPEC, "run", "audit.yaml", "-o", "packet"], expect=1)
    run(folder, [*AUDITSPEC, "verify", "packet", "--trust", "build/trust.yaml"])
    found: dict[str, Any] = json.loads((folder / "packet" / "results.json").read_text())
    return found


def beside_truth(folder: Path) -> list[tuple[str, str, float, float]]:
    """Stage, behaviour, its effect by retraining, and by the audit, as `truth.py` prints them."""
    printed = run(folder, [sys.executable, "truth.py", "packet"])
    lines = re.findall(r"^(\S+) +(\S+) +(\S+) +the audit says (\S+)$", printed, re.MULTILINE)
    return [(stage, behaviour, float(true), float(said)) for stage, behaviour, true, said in lines]
