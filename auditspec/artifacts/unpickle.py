"""Run by `pickled` in a process of its own: a torch checkpoint in, safetensors out.

Arguments: descriptor of the checkpoint, descriptor to write to, most bytes that the tensors may
take, most seconds of computing. Refusals are one line on stderr and exit code 1.
"""

from __future__ import annotations

import os
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch

SPARE = 2**29
"""Bytes of address space beside the tensors and their copy."""


def main(source: int, target: int, most: int, seconds: int) -> None:
    """Convert one checkpoint.

    Raises:
        SystemExit: if it is not a plain state dict, or would take more than it may.
    """
    limit(most, seconds)
    check_archive(source)
    try:
        found = torch.load(f"/dev/fd/{source}", map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        refuse("it asks for more memory than a checkpoint of its size needs")
    except Exception as error:  # damaged archives and refused pickles fail in many ways
        refuse(f"torch.load(weights_only=True) refuses it: {str(error).splitlines()[0]}")
    data = safetensors.torch.save(tensors_of(found, most))
    with os.fdopen(target, "wb", closefd=False) as file:
        file.write(data)


def limit(most: int, seconds: int) -> None:
    """Bound memory, time, and what is written."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * most + SPARE,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * most + SPARE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def check_archive(source: int) -> None:
    """Torch writes archives without compression: a compressed member is a bomb or a mistake."""
    size = os.fstat(source).st_size
    try:
        with os.fdopen(os.dup(source), "rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # the last: a version it lacks
        refuse(f"it is not an archive by torch.save ({error})")
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        refuse("a member of its archive is compressed")
    if sum(member.file_size for member in members) > size:
        refuse("the members of its archive overlap")


def tensors_of(found: Any, most: int) -> dict[str, torch.Tensor]:
    """A state dict's tensors, each in memory of its own."""
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        refuse("it is not a state dict: a flat dictionary of tensors by name")
    if any(t.layout is not torch.strided or t.is_quantized for t in found.values()):
        refuse("it holds sparse or quantized tensors")
    needed = sum(tensor.numel() * tensor.itemsize for tensor in found.values())
    if needed > most:
        refuse(f"its tensors would take {needed} bytes, which its size does not explain")
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def refuse(why: str) -> NoReturn:
    """End with one line."""
    sys.stderr.write(why.replace("\n", " ") + "\n")
    sys.exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
