"""Estimates kept by the digest of everything that they depend on, and where an interrupted one stood.

An entry's name is the sha256 of its dependencies: the record, the code, the training data, the
precision and machine settings, the method and its options, and for paired replay whose recorded gradients
the check of the record pays for. A behaviour, another check, or a report option is none of them, so that changing one re-runs no estimate; changing an artifact re-runs what read it.

A journal holds the states of an unfinished estimate at the last window that it finished. Both are
files of the auditor's own machine: whoever may write there could change an estimate, so the folder is
readable and writable by its owner only, and an entry that does not match its own digest is dropped.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from auditspec.artifacts.digest import canonical_json, digest_bytes, read_verified
from auditspec.artifacts.files import write_atomically
from auditspec.errors import EvidenceError, UsageError
from auditspec.estimator.counterfactual import Counterfactual, difference
from auditspec.estimator.interventions import Arm
from auditspec.messages import Message
from auditspec.record.codec import decoded, encoded, from_bytes, to_parts
from auditspec.record.state import State

ALGORITHMS = 7
"""Raised whenever an estimator of this package gives other numbers than before, or files hold something else."""
LARGEST = 10 * 2**30
"""Bytes that the cache may hold; the entries that were used longest ago go first."""
ABANDONED = 24 * 3600.0
"""Seconds after which a file that is still being written was left by a killed run."""
SHARE = 0.1
"""Largest share of the time that keeping a journal may take."""


@dataclass(frozen=True)
class Dependencies:
    """What every estimate of an audit depends on, besides its method and options."""

    record: str
    code: str
    datasets: Mapping[str, str]
    """Digest of each data set that training read."""
    dtype: str
    device: str
    threads: int
    deterministic: bool
    repeat: bool
    """Whether both worlds are repeated on this machine."""
    engine: str
    plugins: tuple[str, ...]
    """Digests of the code of the plug-ins that are installed."""
    torch: str = field(default_factory=lambda: torch.__version__)
    algorithms: int = ALGORITHMS

    def key(self, **options: Any) -> str:
        """The name of an entry: equal dependencies and options give equal names."""
        return digest_bytes(canonical_json(asdict(self) | {"options": options})).partition(":")[2]


@dataclass(frozen=True)
class Store:
    """Where finished estimates are kept, and what they all depend on."""

    cache: Cache
    on: Dependencies
    fresh: set[str] = field(default_factory=set)
    """Names of those that other ranks made in this audit, and nobody has asked for yet."""

    def take(self, key: str, final: Mapping[str, Tensor]) -> Counterfactual | None:
        """`Cache.get`, but what was made in this audit counts as made, once."""
        found = self.cache.get(key, final)
        if found is None or key not in self.fresh:
            return found
        self.fresh.discard(key)
        return replace(found, cached=False)

    def key(self, arm: Arm, **options: Any) -> str:
        """Name of an arm's estimate."""
        return self.on.key(arm=arm.name, **options)


class Journal(Protocol):
    """Where an estimate notes what it has finished, so that it can be taken up again.

    States may be any tensors by parameter and buffer, such as displacements.
    """

    @property
    def due(self) -> bool:
        """Whether `save` would note anything now; asked where gathering the states takes time."""
        ...

    def load(self) -> tuple[dict[str, Any], dict[str, State]] | None:
        """The position and the states noted last; None where there is nothing to go on from."""
        ...

    def save(self, position: Mapping[str, Any], states: Mapping[str, State]) -> None:
        """Note a position and the states that belong to it; may skip one to save time."""
        ...


class NoJournal:
    """Notes nothing."""

    due = False

    def load(self) -> None:
        """There is nothing to go on from."""

    def save(self, position: Mapping[str, Any], states: Mapping[str, State]) -> None:
        """Forget it."""


NO_JOURNAL = NoJournal()


class FileJournal:
    """Notes in one file, which is replaced whole.

    A note is skipped while less time has passed since the last one than would keep the journal's
    share of the time below `share`; the first is always taken.
    """

    def __init__(self, path: Path, share: float = SHARE) -> None:
        self._path = path
        self._share = share
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last note."""
        return time.monotonic() >= self._next

    def load(self) -> tuple[dict[str, Any], dict[str, State]] | None:
        """The position and the states noted last; None where there are none, or they are damaged."""
        noted = _read(self._path)
        if noted is None:
            return None
        tensors, facts = noted
        states = {
            name: decoded(tensors, scalars, f"{name}|") for name, scalars in facts["states"].items()
        }
        return facts["position"], states

    def save(self, position: Mapping[str, Any], states: Mapping[str, State]) -> None:
        """Note a position and its states, unless the last note is too recent.

        Raises:
            UsageError: if the folder cannot be written.
        """
        if not self.due:
            return
        began = time.monotonic()
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Any] = {}
        for name, state in states.items():
            named, scalars[name] = encoded(state, f"{name}|")
            tensors |= named
        facts = {"position": dict(position), "states": scalars}
        _write(self._path, to_parts(tensors, facts, sealed=True))
        now = time.monotonic()
        self._next = now + (now - began) * (1 / self._share - 1) if self._share else now

    def clear(self) -> None:
        """Forget it: the estimate is done."""
        self._path.unlink(missing_ok=True)


class Cache:
    """A folder of finished estimates and of journals of unfinished ones.

    Args:
        folder: created for its owner only where it is missing.
        largest: bytes to keep.

    Raises:
        UsageError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, largest: int = LARGEST) -> None:
        self.folder = folder
        self._largest = largest
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder}: the cache's folder cannot be made ({error.strerror})",
                "choose another with --cache, or go without one with --no-cache",
            ) from None

    def get(self, key: str, final: Mapping[str, Tensor]) -> Counterfactual | None:
        """A finished estimate; None where there is none, or it is damaged.

        Args:
            key: its name.
            final: parameters of theta_K, from which its displacement is measured.
        """
        path = self._path(key)
        entry = _read(path)
        if entry is None:
            return None
        tensors, facts = entry
        with contextlib.suppress(OSError):  # another run made room meanwhile
            os.utime(path)
        state = decoded(tensors, {}, "state|")
        ends = {stage: decoded(tensors, {}, f"end of {stage}|") for stage in facts.pop("path")}
        if facts.pop("ends"):
            state = list(ends.values())[-1]
        delta = difference(state.parameters, final) if facts.pop("between") else _delta(tensors)
        unreliable = facts["unreliable"]
        facts |= {
            "arm": Arm.of(facts["arm"]),
            "cached": True,
            "notes": tuple(map(Message.model_validate, facts["notes"])),
            "unreliable": None if unreliable is None else Message.model_validate(unreliable),
        }
        return Counterfactual(**facts, state=state, delta=delta, path=ends)

    def holds(self, key: str) -> bool:
        """Whether an estimate of that name is there."""
        return self._path(key).exists()

    def put(self, key: str, counterfactual: Counterfactual, final: Mapping[str, Tensor]) -> None:
        """Keep an estimate, and forget the ones used longest ago where the cache grows too large.

        Its displacement is not written where it is nothing but the difference of its end from theta_K.

        Args:
            key: its name.
            counterfactual: the estimate.
            final: parameters of theta_K.

        Raises:
            UsageError: if the folder cannot be written.
        """
        between = _between(counterfactual, final)
        delta = {} if between else counterfactual.delta
        tensors = {f"delta|{name}": tensor for name, tensor in delta.items()}
        left_out = ("state", "delta", "path")
        facts: dict[str, Any] = {k: v for k, v in vars(counterfactual).items() if k not in left_out}
        unreliable = counterfactual.unreliable
        facts |= {
            "arm": counterfactual.arm.name,
            "diagnostics": dict(counterfactual.diagnostics),
            "notes": [note.model_dump() for note in counterfactual.notes],
            "unreliable": None if unreliable is None else unreliable.model_dump(),
        }
        ends = any(counterfactual.state is state for state in counterfactual.path.values())
        facts |= {"path": list(counterfactual.path), "ends": ends, "between": between}
        for stage, state in counterfactual.path.items():
            tensors |= encoded(state, f"end of {stage}|")[0]
        tensors |= encoded(counterfactual.state, "state|")[0]
        _write(self._path(key), to_parts(tensors, facts, sealed=True))
        self._shrink()

    def journal(self, key: str) -> FileJournal:
        """The journal of an estimate that is not finished."""
        return FileJournal(self.folder / f"{key}.journal.safetensors")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _shrink(self) -> None:
        total = 0
        for used, size, path in sorted(self._files(), reverse=True):
            written = path.suffix == ".part"
            total += 0 if written else size
            if time.time() - used > ABANDONED if written else total > self._largest:
                path.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was used last, its bytes, and its path; other runs may remove some meanwhile."""
        for path in self.folder.iterdir():
            if path.name.endswith((".safetensors", ".part")):
                with contextlib.suppress(FileNotFoundError):
                    found = path.stat()
                    yield found.st_mtime, found.st_size, path


def _between(counterfactual: Counterfactual, final: Mapping[str, Tensor]) -> bool:
    """Whether an estimate's displacement is, bit by bit, its end less theta_K."""
    state, delta = counterfactual.state.parameters, counterfactual.delta
    if delta.keys() != state.keys() or not delta.keys() <= final.keys():
        return False
    return all(torch.equal(d, delta[name]) for name, d in difference(state, final).items())


def _delta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    lead = "delta|"
    return {n.removeprefix(lead): t for n, t in tensors.items() if n.startswith(lead)}


def _write(path: Path, data: Iterable[bytes | memoryview]) -> None:
    try:
        write_atomically(path, data, durable=False)
    except OSError as error:
        raise UsageError(
            f"{path.parent}: the cache cannot be written ({error.strerror})",
            "free some space, choose another folder with --cache, or use --no-cache",
        ) from None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and facts of a file of the cache; None where it is missing or damaged."""
    try:
        return from_bytes(read_verified(path, None), sealed=True)
    except EvidenceError:
        return None
