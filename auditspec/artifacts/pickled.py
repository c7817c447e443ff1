"""What torch saved in its own format, which is a pickle: read by a process of its own, within limits.

That process unpickles tensors, containers, and plain values only (`weights_only=True`; it imports nothing that
the file names) from a private copy, whose digest was taken while it was made. Memory, time, and output are
bounded. What comes back is safetensors, and is checked like any other file of that format.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from auditspec.artifacts import confined, strict_json
from auditspec.artifacts.checkpoints import read_checkpoint
from auditspec.artifacts.digest import check
from auditspec.artifacts.files import open_regular
from auditspec.artifacts.manifest import DISTRIBUTED, FileEntry, Manifest
from auditspec.artifacts.scratch import scratch
from auditspec.errors import EvidenceError

CHILD = "auditspec.artifacts.unpickle"
EXPANSION = 4
"""Most bytes of tensors for each byte of the file: tied tensors are written more than once."""
MIN_BYTES = 2**20
SECONDS = 600
CHUNK = 2**20


@dataclass(frozen=True, eq=False)
class Unloaded:
    """An object of a class that was not loaded: what it would have been made of."""

    name: str
    """Of the class or function, `module.name`."""
    arguments: tuple[Any, ...]
    state: Any
    """What would have become its attributes; None for most functions."""


def is_distributed(path: Path) -> bool:
    """Whether a folder was written by torch.distributed.checkpoint."""
    return path.is_dir() and (path / DISTRIBUTED).is_file()


def read_saved(path: Path, expected: str | None = None, *, objects: bool = False) -> Any:
    """What `torch.save` or torch.distributed.checkpoint wrote, of plain values and tensors on the CPU.

    Arrays of numpy are tensors, sets are tuples, dtypes and devices are text, and lists within a folder of
    torch.distributed.checkpoint are dictionaries by number.

    Args:
        path: a file by `torch.save`, or a folder by torch.distributed.checkpoint.
        expected: the digest of exactly the bytes that are read.
        objects: take objects of other classes as `Unloaded`; else they are refused. Nothing of them is
            imported or called either way.

    Raises:
        EvidenceError: if it is missing, unsafe to read, not what `expected` says, damaged, or needs more
            memory or time than its size explains.
    """
    with tempfile.TemporaryFile() as out:
        if path.is_dir():
            with scratch("checkpoint") as copy:
                size = _copy_folder(path, copy, expected)
                _run(path, str(copy), (), out.fileno(), size, objects=objects)
        else:
            with tempfile.TemporaryFile() as file:
                digest, size = _copy(path, file)
                file.flush()
                if expected is not None:
                    check(path, expected, digest)
                source = file.fileno()
                _run(path, str(source), (source,), out.fileno(), size, objects=objects)
        out.seek(0)
        tensors, metadata = read_checkpoint(out.read())
    try:
        return _value(strict_json.parse(metadata["tree"].encode(), str(path)), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"what was read from it makes no sense ({error})") from None


def _run(
    path: Path, source: str, given: tuple[int, ...], out: int, size: int, *, objects: bool
) -> None:
    """Let the child read `source` and write to `out`."""
    most = EXPANSION * max(size, MIN_BYTES)
    arguments = [source, out, most, SECONDS, int(objects)]
    try:
        confined.run(CHILD, arguments, (*given, out), 2 * SECONDS)
    except confined.StoppedError as error:
        raise _refused(path, str(error)) from None


def _copy(path: Path, to: Any) -> tuple[str, int]:
    """Copy a file, and give the digest and the size of what was copied."""
    hashed, size = hashlib.sha256(), 0
    with open_regular(path) as source:
        while piece := source.read(CHUNK):
            hashed.update(piece)
            size += to.write(piece)
    return f"sha256:{hashed.hexdigest()}", size


def _copy_folder(folder: Path, to: Path, expected: str | None) -> int:
    """Copy the files of a folder, which has none below it, and give their size together."""
    entries = []
    for entry in Manifest.scan(folder).files:
        if "/" in entry.path:
            raise _refused(folder, f"it holds a folder ({entry.path})")
        with (to / entry.path).open("wb") as file:
            digest, size = _copy(folder / entry.path, file)
        entries.append(FileEntry(entry.path, size, digest))
    copied = Manifest(tuple(entries))
    if expected is not None:
        check(folder, expected, copied.digest)
    return copied.size


def _value(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value that the child encoded."""
    kind, content = node
    match kind:
        case "tensor":
            return tensors[content]
        case "value":
            return content
        case "int":
            return int(content)
        case "float":
            return float.fromhex(content)
        case "bytes":
            return bytes.fromhex(content)
        case "dict":
            return {_value(key, tensors): _value(value, tensors) for key, value in content}
        case "list":
            return [_value(item, tensors) for item in content]
        case "tuple":
            return tuple(_value(item, tensors) for item in content)
        case "object":
            name, arguments, state = content
            return Unloaded(name, _value(arguments, tensors), _value(state, tensors))
    raise ValueError(f"unknown kind {kind!r}")


def _refused(path: Path, why: str) -> EvidenceError:
    return EvidenceError(
        f"{path}: {why}",
        "convert it where it is trusted: safetensors.torch.save_file(state_dict, 'model.safetensors')",
    )
