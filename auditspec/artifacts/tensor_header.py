"""The header of a safetensors file: names, types, and shapes of its tensors, without torch.

Layout: 8 bytes little-endian header length, the header (JSON), the tensors' bytes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from auditspec.artifacts import strict_json
from auditspec.artifacts.files import open_regular
from auditspec.errors import EvidenceError

SUFFIX = ".safetensors"
MAX_HEADER, MAX_TENSORS = 100_000_000, 100_000
"""Bytes, which is the bound that the safetensors library sets as well, and tensors."""
MAX_DIMENSIONS = 64
BYTES_PER_ITEM = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
METADATA = "__metadata__"


class TensorEntry(NamedTuple):
    """What a header says of one tensor."""

    dtype: str
    """As the format writes it, for example F32."""
    shape: tuple[int, ...]
    begin: int
    """First byte in the file."""
    end: int


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a safetensors file, by name; the tensors themselves are not read.

    Raises:
        EvidenceError: if the file is missing, unsafe to read, of another format, or damaged.
    """
    require_suffix(path)
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = header_length(file.read(8), size, str(path))
        header = parse_header(file.read(length), str(path))
    check_layout(header, size - 8 - length, str(path))
    return {
        name: TensorEntry(
            entry["dtype"],
            tuple(entry["shape"]),
            *(8 + length + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
        if name != METADATA
    }


def require_suffix(path: Path) -> None:
    """Refuse a file of another format by its name.

    Raises:
        EvidenceError: then.
    """
    if path.suffix != SUFFIX:
        raise EvidenceError(
            f"{path}: not a {SUFFIX} file; other checkpoint formats can run code when opened",
            "convert it where it is trusted: safetensors.torch.save_file(state_dict, 'model.safetensors')",
        )


def header_length(start: bytes, size: int, what: str) -> int:
    """Bytes of the header, from the first 8 bytes of a file of `size` bytes; `what` names the file.

    Raises:
        EvidenceError: if it cannot be that long.
    """
    if len(start) < 8:
        raise damaged(what, "shorter than its header")
    length = int.from_bytes(start, "little")
    if length > min(MAX_HEADER, size - 8):
        raise damaged(what, f"its header claims {length} bytes")
    return length


def parse_header(data: bytes, what: str) -> dict[str, Any]:
    """The header as a dict whose entries have the right types.

    Raises:
        EvidenceError: if it is not strict JSON (repeated keys included), or not of this shape.
    """
    if not data.startswith(b"{"):
        raise damaged(what, "its header is not a JSON object")
    if data.count(b'"data_offsets"') > MAX_TENSORS:
        raise damaged(what, f"its header lists more than {MAX_TENSORS} tensors")
    header: dict[str, Any] = strict_json.parse(data, f"{what}: header")
    if len(header) > MAX_TENSORS + 1:
        raise damaged(what, f"its header lists more than {MAX_TENSORS} tensors")
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise damaged(what, f"header entry {name!r} is not an object")
        if name == METADATA:
            if not all(isinstance(value, str) for value in entry.values()):
                raise damaged(what, "its metadata holds something other than text")
        elif entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise damaged(what, f"tensor {name!r} has the fields {sorted(entry)}")
        elif not isinstance(entry["dtype"], str) or entry["dtype"] not in BYTES_PER_ITEM:
            raise damaged(what, f"tensor {name!r} has the unknown type {entry['dtype']!r}")
        elif not (_are_sizes(entry["shape"]) and len(entry["shape"]) <= MAX_DIMENSIONS):
            raise damaged(what, f"tensor {name!r} has no valid shape")
        elif not (_are_sizes(entry["data_offsets"]) and len(entry["data_offsets"]) == 2):
            raise damaged(what, f"tensor {name!r} has no valid offsets")
    return header


def check_layout(header: dict[str, Any], size: int, what: str) -> None:
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
            raise damaged(
                what,
                f"tensor {name!r} needs {needed} bytes from {position}, "
                f"the header says {begin} to {end}, the file has {size}",
            )
        position = end
    if position != size:
        raise damaged(what, f"{size - position} bytes belong to no tensor")


def _are_sizes(value: object) -> bool:
    """A list of integers that fit 63 bits and are not negative (True is none)."""
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def damaged(what: str, why: str) -> EvidenceError:
    """The error for a file that is not what its format asks for."""
    return EvidenceError(f"{what}: not a sound {SUFFIX} file: {why}", "restore the file")
