"""How the audited code is kept apart, and the processes that it is kept in; without torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from auditspec.sealed.isolation import Wanted, readable
from auditspec.sealed.process import Process
from auditspec.spec.source import LoadedSpec

KEYS = (".key", ".pem", ".p12", ".pfx", ".jks")
"""Files beside the spec that are never readable by the code: they may be keys."""
MOST_LOOKED_AT = 20_000


@dataclass(frozen=True)
class Confinement:
    """How the audited code is to be kept apart.

    Attributes:
        wanted: `required`, as far as the machine can (`best`), or not at all (`none`: in the audit's own process).
        secrets: files and folders that the code must not read, beside the spec's own key.
        allowed: whether the code may be executed at all.
        show: told of every line that the code prints; by default shown so that none is taken for the audit's own.
    """

    wanted: Wanted = "none"
    secrets: tuple[Path, ...] = ()
    allowed: bool = True
    show: Callable[[str], None] = lambda line: print(f"| {line}", file=sys.stderr)
    _started: list[Process] = field(default_factory=list)

    @contextmanager
    def early(self, loaded: LoadedSpec) -> Iterator[Self]:
        """Start the first process already, if one will be needed; what was not taken by the end of the block ends with it."""
        if self.wanted != "none" and self.allowed:
            self._started.append(self._start(loaded, lines=2))
        try:
            yield self
        finally:
            while self._started:
                self._started.pop().end()

    @contextmanager
    def process(self, loaded: LoadedSpec, *, lines: int = 1) -> Iterator[Process]:
        """A process that has no code yet: the one that was started early, or another."""
        process = self._started.pop() if self._started else self._start(loaded, lines=lines)
        try:
            yield process
        finally:
            process.end()

    def _start(self, loaded: LoadedSpec, *, lines: int) -> Process:
        folder, artifacts = loaded.path.parent.absolute(), loaded.spec.artifacts
        evidence = [loaded.where(name) for name in artifacts]
        code = loaded.where("code").absolute()
        beside = dict.fromkeys((folder, code if code.is_dir() else code.parent))
        secrets = [*self.secrets, *_keys(loaded, [*beside])]
        read = readable(evidence, beside, secrets)
        return Process(self.wanted, read, folder, self.show, lines)


UNCONFINED = Confinement()


def _keys(loaded: LoadedSpec, beside: Sequence[Path]) -> list[Path]:
    """Files that are keys by the spec, or by their names."""
    keys = []
    signing = loaded.spec.signing
    if signing is not None and not signing.key.startswith("pkcs11:"):
        keys.append(loaded.path.parent / signing.key)
    for folder in beside:
        for looked_at, path in enumerate(folder.rglob("*")):
            if looked_at > MOST_LOOKED_AT:
                break
            if path.suffix in KEYS:
                keys.append(path)
    return keys
