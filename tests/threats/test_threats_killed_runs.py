"""Threats of runs that are killed at any moment, many at once: into one packet, on one cache (S11)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_audit import edit_spec

pytestmark = pytest.mark.threat
SCRIPT = Path(__file__).parents[1] / "support" / "forked_runs.py"


def came_to_their_end(spec: Path, *numbers: int) -> int:
    folder = spec.parent
    subprocess.run(
        [sys.executable, "-m", "auditspec", "keys", "new", "auditor"],
        cwd=folder, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    edit_spec(
        spec,
        lambda data: data.update(signing={"key": "auditor.key"}, report={"formats": ["json"]}),
    )
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *map(str, numbers)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    return int(ran.stdout)


@pytest.mark.slow
def test_s11_four_runs_of_which_some_are_killed(audit_spec: Path) -> None:
    assert came_to_their_end(audit_spec, 4, 4, 4, 1) >= 1


@pytest.mark.slow
def test_s11_two_hundred_runs_of_which_most_are_killed(audit_spec: Path) -> None:
    """Nothing is lost, half-written, or left: packets verify, numbers are the same, processes and files go."""
    assert came_to_their_end(audit_spec, 200, 4, 8, 0) >= 50
