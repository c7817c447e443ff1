"""Where the templates and schemas lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path


def folder(name: str) -> Path:
    """The folder `templates` or `schemas`.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    package = Path(__file__).resolve().parent
    for place in (package / name, package.parent / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"auditspec is installed without its {name}/ folder")
