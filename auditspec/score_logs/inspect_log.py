"""Inspect: logs as `.eval`, a zip archive with one JSON file a sample, and as `.json`.

Values of scores are read as Inspect's `value_to_float` reads them: C, P, I, N are 1, 0.5, 0, 0. An epoch is a repetition.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from auditspec.artifacts.files import open_regular
from auditspec.errors import EvidenceError
from auditspec.score_logs.rows import (
    MAX_FILE,
    MAX_SAMPLE,
    Scored,
    Wanted,
    number,
    only,
    parsed,
    row_of,
)

ZSTANDARD = 93
"""The method of compression that Inspect uses, which Python's zipfile does not read."""
WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_SAMPLE = re.compile(r"samples/[^/]+_epoch_\d+\.json")
_REMEDY = "write the log again, or convert it: inspect log convert --to json"


def read(path: Path, wanted: Wanted) -> Iterator[Scored]:
    """The scores of a log, in its order.

    Raises:
        EvidenceError: if it is missing, unsafe to read, or no such log, or a sample lacks the score.
    """
    with open_regular(path) as file:
        if file.seek(0, 2) > MAX_FILE:
            raise EvidenceError(f"{path}: larger than {MAX_FILE} bytes", _REMEDY)
        file.seek(0)
        samples = _of_archive(file, path) if path.suffix == ".eval" else _of_json(file, path)
        none = True
        for what, sample in samples:
            none = False
            yield _scored(sample, wanted, what)
        if none:
            raise EvidenceError(f"{path}: holds no samples", _REMEDY)


def _scored(sample: Mapping[str, Any], wanted: Wanted, what: str) -> Scored:
    if sample.get("error") is not None:
        raise EvidenceError(f"{what}: the sample ended with an error", "score it again")
    scores, epoch = sample.get("scores"), sample.get("epoch", 1)
    if not isinstance(scores, dict):
        raise EvidenceError(f"{what}: the sample has no scores", "score it again")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 1 <= epoch < 2**31:
        raise EvidenceError(f"{what}: its epoch is no number from 1")
    score = only(scores, wanted.score, "score", what)
    value = score.get("value") if isinstance(score, dict) else None
    if isinstance(value, str):
        value = WORDS.get(value, WORDS.get(value.lower(), value))
    return Scored(row_of(sample.get("id"), wanted, what), epoch - 1, number(value, what))


def _of_json(file: BinaryIO, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    samples = parsed(file.read(), str(path)).get("samples")
    for index, sample in enumerate(samples if isinstance(samples, list) else ()):
        what = f"{path}: sample {index}"
        if not isinstance(sample, dict):
            raise EvidenceError(f"{what}: not an object", _REMEDY)
        yield what, sample


def _of_archive(file: BinaryIO, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every sample; of one that was written again, the last."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = {i.filename: i for i in archive.infolist() if _SAMPLE.fullmatch(i.filename)}
            if sum(info.file_size for info in members.values()) > MAX_FILE:
                raise EvidenceError(f"{path}: unpacks to more than {MAX_FILE} bytes")
            for name, info in members.items():
                what = f"{path}: {name!r}"
                yield what, parsed(_unpacked(archive, file, info, what), what)
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
    ) as error:
        raise EvidenceError(f"{path}: cannot be unpacked ({error})", _REMEDY) from None


def _unpacked(archive: zipfile.ZipFile, file: BinaryIO, info: zipfile.ZipInfo, what: str) -> bytes:
    """The bytes of a member, of which no more than are allowed are ever made."""
    data: bytes
    if info.compress_type == ZSTANDARD:
        data = _zstandard(file, info)
    else:
        with archive.open(info) as member:
            data = member.read(MAX_SAMPLE + 1)
    if len(data) > MAX_SAMPLE:
        raise EvidenceError(f"{what}: larger than {MAX_SAMPLE} bytes")
    return data


def _zstandard(file: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    import pyarrow as pa

    file.seek(info.header_offset)
    header = file.read(30)  # the local one: its own lengths of name and extra come last
    if header[:4] != b"PK\3\4" or info.flag_bits & 1 or info.compress_size > MAX_SAMPLE:
        raise zipfile.BadZipFile(f"{info.filename!r} is encrypted, damaged, or too large")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    file.seek(lengths, 1)
    packed = pa.BufferReader(file.read(info.compress_size))
    with pa.CompressedInputStream(packed, "zstd") as stream:
        data: bytes = stream.read(MAX_SAMPLE + 1)
    if len(data) <= MAX_SAMPLE and zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"{info.filename!r} is damaged")
    return data
