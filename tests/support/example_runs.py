"""An example of the repository from its data to a verified packet, by the commands of its README."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from examples.fetch import NotAvailableError, unpack

EXAMPLES = Path(__file__).parents[2] / "examples"
AUDITSPEC = [sys.executable, "-m", "auditspec"]


def command(folder: Path, *arguments: str, expect: int = 0) -> str:
    """Run a command in the example's folder; what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(EXAMPLES.parent), str(folder / "code")])
    ran = subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert ran.returncode == expect, ran.stderr + ran.stdout
    return ran.stdout


def audited(name: str, folder: Path, *recorded: Sequence[str]) -> Path:
    """A copy of an example below `folder`: fetched, trained, pinned, audited, verified.

    `recorded` are the arguments of the Python commands that leave a record; by default, those of `train.py`.
    Skips the test where the example's data cannot be had. The audit's gate fails, as in every example.
    """
    example = folder / name
    shutil.copytree(
        EXAMPLES / name, example, ignore=shutil.ignore_patterns("build*", "*packet", "*.lock.json")
    )
    try:
        unpack(example / "archives.toml", example / "build")
    except NotAvailableError as error:
        pytest.skip(str(error))
    for arguments in recorded or [["train.py"]]:
        command(example, sys.executable, *arguments)
    command(example, *AUDITSPEC, "keys", "new", "build/auditor")
    command(example, *AUDITSPEC, "digest", "--lock", "audit.yaml")
    command(example, *AUDITSPEC, "run", "audit.yaml", "-o", "packet", expect=1)
    command(example, *AUDITSPEC, "verify", "packet", "--trust", "build/trust.yaml")
    return example


def results(example: Path) -> dict[str, Any]:
    """Content of the packet's results.json."""
    content: dict[str, Any] = json.loads((example / "packet" / "results.json").read_text())
    return content


def truths(example: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """By behaviour and stage: the effect by training again without the audit, and the audit's."""
    printed = command(example, sys.executable, "truth.py")  # trainers print lines of their own
    lines = re.findall(r"^(\S+) +(\S+) +truth (\S+) +audit (\S+)$", printed, re.MULTILINE)
    return {
        (behavior, stage): (float(truth), float(audit)) for behavior, stage, truth, audit in lines
    }
