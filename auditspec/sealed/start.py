"""Hands the audited code over to its sealed process."""

from __future__ import annotations

import sys

import numpy as np
import torch

from auditspec.artifacts.code import CodeBundle
from auditspec.results import Isolation
from auditspec.sealed.client import Client
from auditspec.sealed.functions import Code
from auditspec.sealed.process import Process
from auditspec.sealed.witness import Repeated, Witness


class SealedCode(Code):
    """The code in its process, with what that is kept from."""

    def __init__(self, process: Process, device: torch.device) -> None:
        super().__init__(Client(process.lines[0], process.wanted, device))
        self._process = process
        self._witness = Witness(self.client)

    def asked_again(self) -> Repeated | None:
        """What came of asking some of the questions again, in a second process; None where there is none."""
        if len(self._process.lines) < 2:
            return None
        second = Client(self._process.lines[1], self._process.wanted, self.client.device)
        return self._witness.ask_again(second)

    @property
    def isolation(self) -> Isolation:
        """What it runs under."""
        return Isolation(process=True, measures=self.client.measures)

    def reads(self) -> dict[str, set[str]]:
        """Files that the code opened so far, as its process tells it."""
        return {str(path): set(map(str, by)) for path, by in self.ask("reads").items()}


def sealed_code(bundle: CodeBundle, process: Process, device: torch.device) -> SealedCode:
    """The code, handed over to a process.

    Args:
        bundle: the code, by the bytes that were checked.
        process: one that has no code yet.
        device: on which it computes.

    Raises:
        UsageError: if the machine does not isolate it as required.
        EvidenceError: if a module of it would take another's name.
        EstimationError: if the process does not start.
    """
    code = SealedCode(process, device)
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
    return code
