"""Artifacts that lie in a store, fetched before anything else looks at them."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from auditspec.artifacts.fetch import fetch
from auditspec.errors import SpecError
from auditspec.progress import SILENT, Progress
from auditspec.spec.lock import own_pins, pins
from auditspec.spec.source import LoadedSpec
from auditspec.urls import is_url
from auditspec.user_folders import cache_folder


def fetched(
    loaded: LoadedSpec,
    *,
    anew: bool = False,
    without: Collection[str] = (),
    progress: Progress = SILENT,
) -> LoadedSpec:
    """The spec with a local copy of every artifact whose path is a URL; itself where none is.

    Args:
        loaded: the spec.
        anew: ask the store, whatever is pinned and was fetched before.
        without: artifacts that are not needed.
        progress: told of each.

    Raises:
        UsageError: if a store cannot be read.
        EvidenceError: if a file's name is refused.
    """
    urls = {n: a.path for n, a in loaded.spec.artifacts.items() if is_url(a.path)}
    if not urls:
        return loaded
    pinned = {} if anew else _pins(loaded)
    copies = dict(loaded.copies)
    for name, url in urls.items():
        if name not in {*without, *copies}:
            with progress.phase(f"fetching {name}"):
                copies[name] = fetch(url, _folder(), pinned.get(name))
    return replace(loaded, copies=copies)


def local(place: str | os.PathLike[str]) -> Path:
    """A path, or the local copy of what lies at a URL.

    Raises:
        UsageError: as `fetched`.
        EvidenceError: as `fetched`.
    """
    return fetch(os.fspath(place), _folder()) if is_url(place) else Path(place)


def _folder() -> Path:
    return cache_folder() / "artifacts"


def _pins(loaded: LoadedSpec) -> dict[str, str]:
    try:
        pinned = pins(loaded)
    except SpecError:  # what is wrong with the lock is told together with all else
        pinned = own_pins(loaded)
    return {name: pin.digest for name, pin in pinned.items()}
