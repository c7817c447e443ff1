"""Reading and writing tensors in files of safetensors.

A file is opened once, its digest and its whole header are checked, and only then do its bytes reach
the library. What a header must be, `tensor_header` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from auditspec.artifacts.digest import check, digest_bytes, digest_open, read_verified
from auditspec.artifacts.files import only_ours, open_regular, write_atomically
from auditspec.artifacts.tensor_header import (
    METADATA,
    check_layout,
    damaged,
    header_length,
    parse_header,
    require_suffix,
)
from auditspec.errors import EvidenceError

AT_ONCE = 2**20
"""Elements of a tensor that are looked at together: looking makes copies."""
_WORDS = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's words for types, in the order in which the library lays tensors out."""


def read_tensors(source: Path | bytes, expected: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU, by name.

    With `expected`, exactly the bytes that are returned as tensors have this digest.

    Raises:
        EvidenceError: if the file is missing, unsafe to read, of another format, not what `expected`
            says, or damaged.
    """
    return read_checkpoint(source, expected)[0]


def read_checkpoint(
    source: Path | bytes, expected: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file, as `read_tensors`, and the text that it carries beside them.

    Raises:
        EvidenceError: as `read_tensors`.
    """
    if isinstance(source, bytes):
        what = "checkpoint"
        if expected is not None:
            check(Path(what), expected, digest_bytes(source))
        data = source
    else:
        what = str(source)
        require_suffix(source)
        data = read_verified(source, expected)
    end = 8 + header_length(data[:8], len(data), what)
    header = parse_header(data[8:end], what)
    check_layout(header, len(data) - end, what)
    try:
        return safetensors.torch.load(data), dict(header.get(METADATA, {}))
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise damaged(what, str(error)) from None


def map_checkpoint(
    path: Path, expected: str | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What `read_checkpoint` gives, of which the system loads what is used, and drops what is not.

    What was hashed is what is used here too: a file to which others may write is read instead. Changes of a tensor stay
    with its holder.

    Raises:
        EvidenceError: as `read_tensors`.
    """
    require_suffix(path)
    with open_regular(path) as file:
        if not only_ours(file.fileno()):
            return read_checkpoint(path, expected)
        if expected is not None:
            check(path, expected, digest_open(file, path))
        text = _text(file, path)
        try:
            # By its descriptor, whatever has the name by now.
            with safetensors.safe_open(f"/dev/fd/{file.fileno()}", framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.offset_keys()}, text
        except (safetensors.SafetensorError, ValueError, RuntimeError, OSError) as error:
            raise damaged(str(path), str(error)) from None


def read_metadata(path: Path) -> dict[str, str]:
    """The text that a safetensors file carries beside its tensors; reads the header only.

    Raises:
        EvidenceError: as `read_tensors`.
    """
    require_suffix(path)
    with open_regular(path) as file:
        return _text(file, path)


def _text(file: BufferedReader, path: Path) -> dict[str, str]:
    """The text of an open file whose header is right."""
    size = file.seek(0, 2)
    file.seek(0)
    length = header_length(file.read(8), size, str(path))
    header = parse_header(file.read(length), str(path))
    check_layout(header, size - 8 - length, str(path))
    return dict(header.get(METADATA, {}))


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write tensors atomically; equal tensors and metadata give equal bytes.

    `durable` is that of `write_atomically`. Tied and sliced tensors are stored in full.

    Raises:
        EvidenceError: if the path does not end in `.safetensors`, or as `encode_tensors`.
        OSError: if the folder cannot be written.
    """
    require_suffix(path)
    write_atomically(path, encoded_parts(tensors, metadata, str(path)), durable=durable)


def encode_tensors(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    what: str = "checkpoint",
) -> bytes:
    """Tensors and text as the bytes of a safetensors file; arguments and errors as those of `encoded_parts`."""
    return b"".join(encoded_parts(tensors, metadata, what))


def encoded_parts(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    what: str = "checkpoint",
) -> Iterator[bytes | memoryview]:
    """Tensors and text as the parts of a safetensors file: its header, then each tensor, laid out as the library lays them out.

    Equal ones give equal bytes, where the library writes metadata in random order; and a tensor is copied only as it is asked
    for, where the library holds all of them a second time.

    Args:
        tensors: by name.
        metadata: text beside them.
        what: what is written, for messages.

    Raises:
        EvidenceError: if the format cannot hold a tensor's name or type, or the metadata.
    """
    metadata = metadata or {}
    if METADATA in tensors:
        raise EvidenceError(f"{what}: {METADATA} is not a name for a tensor", "rename it")
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise EvidenceError(f"{what}: metadata holds something other than text", "write it as text")
    if odd := next((t.dtype for t in tensors.values() if t.dtype not in _WORDS), None):
        raise EvidenceError(f"{what}: a tensor's type cannot be stored ({odd})")
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    order, position = [*_WORDS], 0
    laid = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    for name in laid:
        tensor, begin = tensors[name], position
        position += tensor.numel() * tensor.itemsize
        place = {"shape": [*tensor.shape], "data_offsets": [begin, position]}
        header[name] = {"dtype": _WORDS[tensor.dtype], **place}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in laid:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        bare: Any = flat.view(torch.uint8).numpy()
        yield memoryview(bare)


def check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse NaN and infinities.

    Raises:
        EvidenceError: naming the first tensor, in sorted order, that holds one.
    """
    for name in sorted(tensors):
        tensor = tensors[name]
        tiny = tensor.is_floating_point() and tensor.itemsize == 1
        bad = tensor.numel()
        flat = tensor.reshape(-1)
        for start in range(0, flat.numel(), AT_ONCE):
            part = flat[start : start + AT_ONCE]
            known = part.float() if tiny else part  # torch.isfinite knows no 8-bit floats
            bad -= int(torch.isfinite(known).sum())
        if bad:
            raise EvidenceError(
                f"{where}: tensor '{name}' holds {bad} values that are not finite, of {tensor.numel()}",
                "a diverged or damaged run cannot be audited; use a state from before it diverged",
            )
