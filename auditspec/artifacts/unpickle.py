"""Run by `pickled` in a process of its own: what torch saved in, plain values and tensors out.

Arguments: descriptor of the file, or path of a folder of torch.distributed.checkpoint; descriptor to write
to, most bytes that the tensors may take, most seconds of computing, and 1 where objects of unknown classes
are to come out as what they were made of. Refusals are one line on stderr and exit code 1.

What is written is safetensors: tensors by number, and under the metadata's `tree` the values as JSON, each a
list of its kind and its content.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from auditspec.artifacts.confined import limit, refuse

SPARE = 2**29
"""Bytes of address space beside the tensors and their copy."""
MOST_VALUES, MOST_DEPTH = 2_000_000, 100
METADATA = ".metadata"


class Inert:
    """What stands for an object of a class that is not loaded: what it would have been made of."""

    what = ""

    def __new__(cls, *arguments: Any, **_: Any) -> Inert:
        """Take whatever the class would have been called with."""
        self = super().__new__(cls)
        self.__dict__.update(arguments=arguments, state=None)
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing: see `__new__`."""

    def __setstate__(self, state: Any) -> None:
        """Keep the state, and do nothing with it."""
        self.__dict__["state"] = state


def inert(name: str) -> type[Inert]:
    """The stand-in of a class or function, by its full name."""
    return type("Inert", (Inert,), {"what": name})


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle without importing anything: whatever it names is a stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in of that name."""
        return inert(f"{module}.{name}")


def main(source: str, *arguments: str) -> None:
    """Convert one checkpoint.

    Raises:
        SystemExit: if it is unsafe, damaged, or would take more than it may.
    """
    target, most, seconds, objects = map(int, arguments)
    limit(4 * most + SPARE, seconds, 2 * most + SPARE)
    try:
        if source.isdigit():
            value = load(Path(f"/dev/fd/{source}"), int(source), objects=bool(objects))
        else:
            value = load_distributed(Path(source), most)
        data = Encoder(most).encode(value)
    except MemoryError:
        refuse("it asks for more memory than a checkpoint of its size needs")
    except (KeyError, safetensors.SafetensorError) as error:
        refuse(f"it holds a tensor of a type that cannot be stored ({error})")
    with os.fdopen(target, "wb", closefd=False) as file:
        file.write(data)


# --- one file by torch.save --------------------------------------------------------------------------


def load(path: Path, descriptor: int, *, objects: bool) -> Any:
    """What `torch.save` wrote: tensors, containers, and plain values."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        check_archive(file, os.fstat(descriptor).st_size)
    allowed = numpy_globals()
    if objects:
        with torch.serialization.safe_globals(allowed):
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        allowed += [(inert(name), name) for name in unknown]
    with torch.serialization.safe_globals(allowed):
        return loaded(path, mmap=True)


def loaded(source: Any, *, mmap: bool) -> Any:
    """By torch's restricted unpickler, on the CPU."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except Exception as error:  # damaged archives and refused pickles fail in many ways
        refuse(f"torch.load(weights_only=True) refuses it: {str(error).splitlines()[0]}")


def numpy_globals() -> list[Any]:
    """What numpy's arrays and numbers are pickled by; random states hold some."""
    from numpy._core import multiarray

    found: list[Any] = [np.ndarray, np.dtype]
    found += [type(np.dtype(kind)) for kind in ("u1", "u4", "u8", "i4", "i8", "f4", "f8", "?")]
    for name in ("_reconstruct", "scalar"):
        function = getattr(multiarray, name)
        found += [(function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    return found


def check_archive(file: Any, size: int) -> None:
    """Torch writes archives without compression: a compressed member is a bomb or a mistake."""
    try:
        with zipfile.ZipFile(file) as archive:
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


# --- a folder by torch.distributed.checkpoint --------------------------------------------------------


def load_distributed(folder: Path, most: int) -> Any:
    """The nested value that a folder of torch.distributed.checkpoint holds, its shards put together."""
    try:
        with (folder / METADATA).open("rb") as file:
            metadata = InertUnpickler(file).load().state
        described, paths = metadata["state_dict_metadata"], metadata["planner_data"]
        stored: dict[str, list[tuple[Any, Any]]] = {}
        for index, info in metadata["storage_data"].items():
            stored.setdefault(index.state["fqn"], []).append(
                (index.state.get("offset"), info.state)
            )
        tree: dict[Any, Any] = {}
        needed = 0
        for name, entry in described.items():
            parts = [(numbers(offset), chunk(folder, info)) for offset, info in stored[name]]
            if entry.what.endswith(".TensorStorageMetadata"):
                shape = numbers(entry.state["size"])
                first = parts[0][1]
                needed += int(np.prod(shape, dtype=object)) * first.itemsize
                if needed > most:
                    refuse(
                        f"its tensors would take {needed} bytes, which its size does not explain"
                    )
                value = whole(name, shape, parts)
            else:
                value = parts[0][1]
            put(tree, tuple((paths or {}).get(name, (name,))), value)
    except (MemoryError, SystemExit):
        raise
    except Exception as error:  # a hostile description fails in many ways
        refuse(f"its {METADATA} does not describe it ({type(error).__name__}: {error})")
    return tree


def numbers(size: Any) -> tuple[int, ...]:
    """The integers of a stand-in of torch.Size; none for None."""
    return () if size is None else tuple(int(n) for n in size.arguments[0])


def chunk(folder: Path, info: Any) -> Any:
    """One stored value: an archive by torch.save within one of the folder's files."""
    name, offset, length = info["relative_path"], int(info["offset"]), int(info["length"])
    if Path(name).name != name or name.startswith("."):
        refuse(f"its {METADATA} names {name!r}, which is no file of the folder")
    if info.get("transform_descriptors"):
        refuse("its tensors are compressed or encrypted")
    path = folder / name
    if not path.is_file():
        refuse(f"its shard {name} is missing")
    if not 0 <= offset <= offset + length <= path.stat().st_size:
        refuse(f"its shard {name} is shorter than the {METADATA} says")
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    check_archive(io.BytesIO(data), length)
    with torch.serialization.safe_globals(numpy_globals()):
        return loaded(io.BytesIO(data), mmap=False)


def whole(name: str, shape: tuple[int, ...], parts: list[tuple[tuple[int, ...], Any]]) -> Any:
    """A tensor of its parts, each at its offset; they must cover it exactly once."""
    tensor = torch.empty(shape, dtype=parts[0][1].dtype)
    covered = torch.zeros(shape, dtype=torch.bool)
    for offset, part in parts:
        place = tuple(slice(start, start + n) for start, n in zip(offset, part.shape, strict=True))
        if tensor[place].shape != part.shape or part.dtype != tensor.dtype or covered[place].any():
            refuse(f"its parts of {name!r} do not fit together")
        tensor[place] = part
        covered[place] = True
    if not covered.all():
        refuse(f"it holds only a part of {name!r}: a shard is missing")
    return tensor


def put(tree: Any, path: tuple[Any, ...], value: Any) -> None:
    """Enter a value at its path; numbered entries stay a dictionary by number."""
    *above, last = path
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = value


# --- what comes out ----------------------------------------------------------------------------------


class Encoder:
    """Turns plain values with tensors into safetensors.

    Args:
        most: bytes that the tensors may take.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tensors: dict[str, torch.Tensor] = {}
        self.bytes = self.values = 0

    def encode(self, value: Any) -> bytes:
        """The whole value."""
        tree = json.dumps(self.node(value, 0), separators=(",", ":"))
        data = {n: t.detach().clone().contiguous() for n, t in self.tensors.items()}
        encoded: bytes = safetensors.torch.save(data, {"tree": tree})
        return encoded

    def node(self, value: Any, depth: int) -> list[Any]:
        """One value, as its kind and its content."""
        self.values += 1
        if depth > MOST_DEPTH or self.values > MOST_VALUES:
            refuse("it is nested too deeply, or holds too many values")
        if isinstance(value, torch.Tensor):
            return ["tensor", self.tensor(value)]
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            return ["tensor", self.tensor(torch.from_numpy(np.array(value)))]
        if value is None or isinstance(value, bool | str):
            return ["value", value]
        if isinstance(value, int):
            return ["int", str(value)]
        if isinstance(value, float):
            return ["float", value.hex()]
        if isinstance(value, bytes | bytearray):
            return ["bytes", bytes(value).hex()]
        inner = depth + 1
        if isinstance(value, dict):
            pairs = [[self.node(k, inner), self.node(v, inner)] for k, v in value.items()]
            return ["dict", pairs]
        if isinstance(value, list | tuple | set):
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, [self.node(item, inner) for item in value]]
        if isinstance(value, Inert):
            parts = (
                self.node(value.__dict__["arguments"], inner),
                self.node(value.__dict__["state"], inner),
            )
            return ["object", [value.what, *parts]]
        if isinstance(value, type) and issubclass(value, Inert):
            return ["object", [value.what, ["tuple", []], ["value", None]]]
        return ["value", str(value)]  # a dtype, a device, a layout

    def tensor(self, value: torch.Tensor) -> str:
        """The number under which a tensor is written."""
        if value.layout is not torch.strided or value.is_quantized:
            refuse("it holds sparse or quantized tensors")
        if value.is_meta:
            refuse("it holds tensors without values")
        self.bytes += value.numel() * value.itemsize
        if self.bytes > self.most:
            refuse(f"its tensors would take {self.bytes} bytes, which its size does not explain")
        number = str(len(self.tensors))
        self.tensors[number] = value
        return number
