"""A packet in a store: written here as any other, then put there; brought here to be verified.

No store puts several objects at one moment. What makes them a packet is put last, and taken away first: the envelope,
or the results where nothing is signed. Until then `verify` refuses what lies there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from auditspec.artifacts.fetch import Most, fetch
from auditspec.artifacts.scratch import scratch
from auditspec.artifacts.stores import Store
from auditspec.errors import UsageError
from auditspec.sign.packet import ENVELOPE, RESULTS, SIDECARS, file_names
from auditspec.urls import is_url, last_part


@contextmanager
def folder_for(place: str, *, replace: bool) -> Iterator[Path]:
    """Where a packet is written that is to be at a place: the place itself, or a folder for a while.

    Leaving the block puts the packet into the store; an exception does not.

    Raises:
        UsageError: if something is there already (with `replace`: something other than a packet), or the store cannot be
            written.
    """
    if not is_url(place):
        yield Path(place)
        return
    store = Store(place)
    there = _taken(store, replace)
    with scratch("packet") as around:
        folder = around / "new" / last_part(store.url)  # who writes it locks the folder around it
        yield folder
        _put(store, folder, there)


@contextmanager
def brought_here(place: str, most: Most) -> Iterator[Path]:
    """The folder of a packet, which is fetched for a while where it lies in a store.

    Raises:
        UsageError: if the store cannot be read, or holds nothing there or more than a packet.
        EvidenceError: for files of names that none has.
    """
    if not is_url(place):
        yield Path(place)
        return
    with scratch("packet") as around:
        folder = fetch(place, around, most=most)
        if not folder.exists():
            raise UsageError(f"{place}: no packet is there", "check the address")
        yield folder


def files_at(place: str) -> list[str]:
    """Every file of a packet, sorted, by its path or URL."""
    if not is_url(place):
        return sorted(str(path) for path in Path(place).iterdir())
    store = Store(place)
    return [f"{store.url}/{file.path}" for file in store.files()]


def _taken(store: Store, replace: bool) -> list[str]:
    """Files of the packet that is replaced."""
    names = [file.path for file in store.files()]
    if names and not replace:
        raise UsageError(
            f"{store.url}: something is there already",
            "choose another place, or add --force to replace a packet",
        )
    if not set(names) <= {*file_names(), *SIDECARS}:
        raise UsageError(
            f"{store.url}: holds something other than a packet, so it is not replaced",
            "choose another place",
        )
    return names


def _put(store: Store, folder: Path, there: Sequence[str]) -> None:
    names = sorted(path.name for path in folder.iterdir())
    last = ENVELOPE if ENVELOPE in names else RESULTS
    for name in {ENVELOPE, RESULTS} & {*there}:
        store.remove(name)
    try:
        for name in {*there} - {*names}:
            store.remove(name)
        for name in sorted(names, key=lambda name: name == last):
            store.put(folder / name, name)
    except UsageError:
        for name in {*there, *names}:
            with contextlib.suppress(UsageError):
                store.remove(name)
        raise
