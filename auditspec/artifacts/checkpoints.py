"""Reading and writing tensors: safetensors; torch's own format is converted to it, within limits.

A file is read once, its digest and its whole header are checked, and only then do its bytes reach
the library. Layout: 8 bytes little-endian header length, the header (JSON), the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from auditspec.artifacts import pickled, strict_json
from auditspec.artifacts.digest import check, digest_bytes, read_verified
from auditspec.artifacts.files import open_regular, write_atomically
from auditspec.errors import EvidenceError

SUFFIX = ".safetensors"
MAX_HEADER = 100_000_000
"""Bytes; the bound that the safetensors library sets as well."""
MAX_DIMENSIONS = 64
BYTES_PER_ITEM = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
METADATA = "__metadata__"


def read_tensors(source: Path | bytes, expected: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU, by name; or of torch's own format (`pickled`).

    With `expected`, exactly the bytes that are returned as tensors have this digest.

    Raises:
        EvidenceError: if the file is missing, unsafe to read, of another format, not what `expected`
            says, or damaged.
    """
    if isinstance(source, bytes):
        what = "checkpoint"
        if expected is not None:
            check(Path(what), expected, digest_bytes(source))
        data = source
    else:
        what = str(source)
        if source.suffix in pickled.SUFFIXES:
            data = pickled.convert(source, expected)
        else:
            _require_suffix(source)
            data = read_verified(source, expected)
    end = 8 + _header_length(data[:8], len(data), what)
    _check_layout(_parse_header(data[8:end], what), len(data) - end, what)
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(what, str(error)) from None


def read_metadata(path: Path, expected: str | None = None) -> dict[str, str]:
    """The text that a safetensors file carries beside its tensors.

    Reads the header only; with `expected` the whole file, whose bytes must have this digest.

    Raises:
        EvidenceError: as `read_tensors`.
    """
    _require_suffix(path)
    with open_regular(path) if expected is None else BytesIO(read_verified(path, expected)) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = _header_length(file.read(8), size, str(path))
        header = _parse_header(file.read(length), str(path))
    _check_layout(header, size - 8 - length, str(path))
    return dict(header.get(METADATA, {}))


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write tensors atomically; equal tensors and metadata give equal bytes.

    `durable` is that of `write_atomically`. Each tensor is copied to contiguous CPU memory, so
    tied and sliced tensors are stored in full.

    Raises:
        EvidenceError: if the path does not end in `.safetensors`, or the format cannot hold a tensor's
            type or the metadata.
        OSError: if the folder cannot be written.
    """
    _require_suffix(path)
    if METADATA in tensors:
        raise EvidenceError(f"{path}: {METADATA} is not a name for a tensor", "rename it")
    if not all(isinstance(text, str) for pair in (metadata or {}).items() for text in pair):
        raise EvidenceError(f"{path}: metadata holds something other than text", "write it as text")
    copies = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    try:
        data = safetensors.torch.save(copies)
    except (KeyError, safetensors.SafetensorError) as error:
        raise EvidenceError(f"{path}: a tensor's type cannot be stored ({error})") from None
    # The library writes metadata in random order, so it is added here, in a fixed one.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | ({METADATA: dict(metadata)} if metadata else {})
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, len(text).to_bytes(8, "little") + text + data[end:], durable=durable)


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        EvidenceError: naming the first tensor, in sorted order, that holds one.
    """
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.is_floating_point() and tensor.itemsize == 1:
            tensor = tensor.float()  # torch.isfinite knows no 8-bit floats
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise EvidenceError(
                f"{where}: tensor '{name}' holds {bad} values that are not finite, of {tensor.numel()}",
                "a diverged or damaged run cannot be audited; use a state from before it diverged",
            )


def _require_suffix(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise EvidenceError(
            f"{path}: not a {SUFFIX} file; other checkpoint formats can run code when opened",
            "convert it where it is trusted: safetensors.torch.save_file(state_dict, 'model.safetensors')",
        )


def _header_length(start: bytes, size: int, what: str) -> int:
    if len(start) < 8:
        raise _damaged(what, "shorter than its header")
    length = int.from_bytes(start, "little")
    if length > min(MAX_HEADER, size - 8):
        raise _damaged(what, f"its header claims {length} bytes")
    return length


def _parse_header(data: bytes, what: str) -> dict[str, Any]:
    """The header as a dict whose entries have the right types.

    Raises:
        EvidenceError: if it is not strict JSON (repeated keys included), or not of this shape.
    """
    if not data.startswith(b"{"):
        raise _damaged(what, "its header is not a JSON object")
    header: dict[str, Any] = strict_json.parse(data, f"{what}: header")
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise _damaged(what, f"header entry {name!r} is not an object")
        if name == METADATA:
            if not all(isinstance(value, str) for value in entry.values()):
                raise _damaged(what, "its metadata holds something other than text")
        elif entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise _damaged(what, f"tensor {name!r} has the fields {sorted(entry)}")
        elif entry["dtype"] not in list(BYTES_PER_ITEM):
            raise _damaged(what, f"tensor {name!r} has the unknown type {entry['dtype']!r}")
        elif not (_are_sizes(entry["shape"]) and len(entry["shape"]) <= MAX_DIMENSIONS):
            raise _damaged(what, f"tensor {name!r} has no valid shape")
        elif not (_are_sizes(entry["data_offsets"]) and len(entry["data_offsets"]) == 2):
            raise _damaged(what, f"tensor {name!r} has no valid offsets")
    return header


def _check_layout(header: dict[str, Any], size: int, what: str) -> None:
    """Check that the tensors cover the `size` bytes after the header exactly once, in some order.

    Raises:
        EvidenceError: for gaps, overlaps, bytes outside the file, or a shape that needs another size.
    """
    entries = [(entry, name) for name, entry in header.items() if name != METADATA]
    position = 0
    for entry, name in sorted(entries, key=lambda item: item[0]["data_offsets"]):
        begin, end = entry["data_offsets"]
        needed = math.prod(entry["shape"]) * BYTES_PER_ITEM[entry["dtype"]]
        if begin != position or end - begin != needed or end > size:
            raise _damaged(
                what,
                f"tensor {name!r} needs {needed} bytes from {position}, "
                f"the header says {begin} to {end}, the file has {size}",
            )
        position = end
    if position != size:
        raise _damaged(what, f"{size - position} bytes belong to no tensor")


def _are_sizes(value: object) -> bool:
    """A list of integers that fit 63 bits and are not negative (True is none)."""
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _damaged(what: str, why: str) -> EvidenceError:
    return EvidenceError(f"{what}: not a sound {SUFFIX} file: {why}", "restore the file")
