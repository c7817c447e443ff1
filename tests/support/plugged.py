"""Distributions with plug-ins, as pip would leave them on the search path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    modules: Mapping[str, str],
    points: Mapping[str, Mapping[str, str]],
    name: str = "example-plugins",
) -> None:
    """Put modules and the entry points of a distribution on the search path.

    Args:
        folder: where they are written.
        monkeypatch: takes the folder off the search path again.
        modules: source by module name.
        points: `module:Class` by the member's name, by kind.
        name: of the distribution.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = []
    for kind, members in points.items():
        lines += [f"[auditspec.{kind}]", *(f"{n} = {where}" for n, where in members.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(folder)
