"""Checkpoints in torch's own format, which is a pickle: read by a process of its own, within limits.

That process unpickles tensors only (`weights_only=True`; never anything else) from a private copy,
whose digest was taken while it was made. Memory, time, and output are bounded. What comes back is
safetensors, and is checked like any other file of that format.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from auditspec.artifacts.digest import check
from auditspec.artifacts.files import open_regular
from auditspec.errors import EvidenceError

SUFFIXES = (".pt", ".pth", ".bin")
CHILD = Path(__file__).with_name("unpickle.py")
EXPANSION = 4
"""Most bytes of tensors for each byte of the file: tied tensors are written more than once."""
MIN_BYTES = 2**20
SECONDS = 600
CHUNK = 2**20


def convert(path: Path, expected: str | None) -> bytes:
    """The checkpoint's tensors as safetensors.

    Raises:
        EvidenceError: if the file is missing, unsafe to read, not what `expected` says, not a flat
            state dict, or needs more memory or time than its size explains.
    """
    with tempfile.TemporaryFile() as copy, tempfile.TemporaryFile() as out:
        hashed, size = hashlib.sha256(), 0
        with open_regular(path) as source:
            while chunk := source.read(CHUNK):
                hashed.update(chunk)
                size += copy.write(chunk)
        copy.flush()
        if expected is not None:
            check(path, expected, f"sha256:{hashed.hexdigest()}")
        most = EXPANSION * max(size, MIN_BYTES)
        arguments = [copy.fileno(), out.fileno(), most, SECONDS]
        try:
            ran = subprocess.run(  # noqa: S603 - our own program
                [sys.executable, "-I", str(CHILD), *map(str, arguments)],
                pass_fds=(copy.fileno(), out.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=2 * SECONDS,
                cwd="/",
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _refused(path, f"reading it took more than {2 * SECONDS} seconds") from None
        if ran.returncode != 0:
            said = ran.stderr.decode(errors="replace").strip().splitlines()
            stopped = f"reading it was stopped at its limits (status {ran.returncode})"
            raise _refused(path, said[-1] if ran.returncode == 1 and said else stopped)
        out.seek(0)
        return out.read()


def _refused(path: Path, why: str) -> EvidenceError:
    return EvidenceError(
        f"{path}: {why}",
        "convert it where it is trusted: safetensors.torch.save_file(state_dict, 'model.safetensors')",
    )
