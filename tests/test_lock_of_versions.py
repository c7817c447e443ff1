"""What `make` installs is what constraints.txt lists, by version and hash."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "constraints.txt").read_text()
TORCH = (ROOT / "constraints-torch.txt").read_text()
UNLOCKED = re.compile(r"auditspec|torch|pip|setuptools|wheel|nvidia-.*|cuda-.*|triton")
"""What is here otherwise: torch in whichever build, what that brings along, and what makes environments."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def entries(text: str) -> dict[str, str]:
    """Versions by name."""
    return {normal(n): v for n, v in re.findall(r"^([^\s#=]+)==([^\s;]+)", text, re.MULTILINE)}


def test_every_entry_has_a_hash() -> None:
    for text in (LOCK, TORCH):
        listed = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
        for line in listed.splitlines():
            assert re.fullmatch(r"\S+==\S+( ;[^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+", line), line
    assert entries(TORCH).keys() == {"torch"}


def test_the_lock_is_whole() -> None:
    """Whatever is installed where everything stands that tests need is listed, in its version."""
    here = {normal(d.name): d.version for d in distributions() if d.name != "example-plugins"}
    ours = {name: version for name, version in here.items() if not UNLOCKED.fullmatch(name)}
    locked = entries(LOCK)
    if not ours.items() >= {n: locked[n] for n in ("pytest", "hatchling", "editables")}.items():
        pytest.skip("this environment was not made by `make setup`")
    assert {n: v for n, v in ours.items() if locked.get(n) != v} == {}
