"""Starts the audited code in its sealed process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from auditspec.artifacts.code import CodeBundle
from auditspec.results import Isolation
from auditspec.sealed.client import Client
from auditspec.sealed.functions import Code
from auditspec.sealed.isolation import Wanted


class SealedCode(Code):
    """The code in its process, with what that is kept from."""

    @property
    def isolation(self) -> Isolation:
        """What it runs under."""
        return Isolation(process=True, measures=self.client.measures)

    def reads(self) -> dict[str, set[str]]:
        """Files that the code opened so far, as its process tells it."""
        return {str(path): set(map(str, by)) for path, by in self.ask("reads").items()}


@contextmanager
def sealed_code(
    bundle: CodeBundle,
    wanted: Wanted,
    read: Sequence[Path],
    folder: Path,
    device: torch.device,
    show: Callable[[str], None],
) -> Iterator[SealedCode]:
    """The code in a process of its own, which ends with the block.

    Args:
        bundle: the code, by the bytes that were checked.
        wanted: how it is to be isolated.
        read: files and folders that it may read.
        folder: where it runs.
        device: on which it computes.
        show: told of every line that it prints.

    Raises:
        UsageError: if the machine does not isolate it as required.
        EvidenceError: if a module of it would take another's name.
        EstimationError: if the process does not start.
    """
    client = Client(wanted, read, folder, device, show)
    try:
        code = SealedCode(client)
        files = [
            [
                file.path,
                torch.from_numpy(np.frombuffer(bytearray(bundle.contents[file.path]), np.uint8)),
                file.digest,
            ]
            for file in bundle.files
        ]
        code.ask(
            "begin",
            root=str(bundle.root),
            digest=bundle.digest,
            package=bundle.package,
            files=files,
            path=[p for p in sys.path if p],
        )
        yield code
    finally:
        client.close()
