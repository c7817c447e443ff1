"""Artifacts with weights: they have the names and shapes of the record's model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from auditspec.artifacts.files import open_regular
from auditspec.artifacts.tensor_header import BYTES_PER_ITEM, SUFFIX, TensorEntry, read_entries
from auditspec.artifacts.weight_files import aligned
from auditspec.consistency.inquiry import WEIGHTS, Inquiry
from auditspec.errors import EvidenceError
from auditspec.record.format import RecordHeader, TensorInfo, stage_folder, state_file
from auditspec.spec.tree import Location

CHUNK = 2**20
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Of floating-point numbers, as safetensors and the record write them."""
SIZES = {name: BYTES_PER_ITEM[key] for key, name in TYPES.items()}
"""Bytes of one number."""


def check_weights(inquiry: Inquiry) -> None:
    """The checkpoint and the weights to begin with are what they are named as."""
    initial, checkpoint = inquiry.spec.model.initial, inquiry.spec.model.checkpoint
    named: list[tuple[Location, str]] = [(("model", "checkpoint"), checkpoint)]
    for key in ("weights", "reference"):
        name = getattr(initial, key, None)
        if name is not None:
            named.append((("model", "initial", key), name))
    starts = named[1:]
    conversion = inquiry.spec.model.conversion
    if conversion is not None and conversion.base is not None:
        named.append((("model", "conversion", "base"), conversion.base))
    for location, name in named:
        if inquiry.usable(name) and not inquiry.is_weights(name):
            known = ", ".join(n for n in inquiry.evidence if inquiry.is_weights(n)) or "none"
            message = f"{inquiry.spec.artifacts[name].path} holds no weights ({', '.join(WEIGHTS)})"
            inquiry.fault("AS036", message, location, f"artifacts with weights: {known}")
    record = inquiry.record
    if record is None or not record.stages:
        return
    _check_checkpoint(inquiry, record, checkpoint)
    for location, name in starts:
        found = inquiry.tensors(name)
        if found is None:
            continue
        odd = min(
            (list(_odd(found, *model)) for model in _first_models(record)), key=lambda odd: len(odd)
        )
        if odd:
            message = f"artifact {name!r} has other tensors than the record's first state: "
            inquiry.fault("AS037", message + _few(odd), location, "name weights of that model")
    _check_reference(inquiry)


def _check_checkpoint(inquiry: Inquiry, record: RecordHeader, name: str) -> None:
    """Tell another artifact that holds the record's last weights, where the checkpoint does not."""
    found = inquiry.tensors(name)
    if found is None:
        return
    last = record.stages[-1]
    path = inquiry.path("record") / stage_folder(len(record.stages) - 1, last.id)
    state = path / state_file(last.steps)
    files = [n for n in inquiry.evidence if inquiry.path(n).suffix == SUFFIX]
    others = [n for n in files if n != name and inquiry.tensors(n) is not None]
    if name in files and others and not _equals(inquiry.path(name), found, state):
        for other in others:
            if _equals(inquiry.path(other), inquiry.tensors(other) or {}, state):
                message = f"artifact {name!r} does not hold the record's last weights"
                hint = f"{other!r} does: checkpoint: {other}"
                inquiry.fault("AS071", message, ("model", "checkpoint"), hint)
                return
    conversion = inquiry.spec.model.conversion
    if conversion is not None and (conversion.adapters or conversion.quantized):
        return  # other tensors, which record-fidelity makes again
    parameters = inquiry.last_parameters()
    buffers = record.buffers if last.buffers is None else last.buffers
    ties = record.ties if last.ties is None else last.ties
    tied = {*ties, *ties.values()}
    names = [info.name for info in parameters if info.name not in tied]
    found, _ = aligned(found, names or [info.name for info in parameters]) or (found, "")
    if not (odd := list(_odd(found, parameters, buffers, ties))):
        _check_types(inquiry, found, parameters)
    else:
        message = f"other tensors than the record's last state: {_few(odd)}"
        inquiry.defect("AS045", name, message, "ask for the weights that were recorded last")


def _check_types(
    inquiry: Inquiry, found: Mapping[str, TensorEntry], parameters: tuple[TensorInfo, ...]
) -> None:
    """Weights that were cast are declared so, and those that are declared so were."""
    conversion = inquiry.spec.model.conversion
    declared = None if conversion is None else conversion.dtype
    for info in parameters:
        entry = found.get(info.name)
        if entry is None or entry.dtype not in TYPES:
            continue
        kind = TYPES[entry.dtype]
        if declared is not None and kind != declared:
            message = f"the deployed {info.name} is {kind}, {declared} declared"
            location: Location = ("model", "conversion", "dtype")
            inquiry.fault(
                "AS071", message, location, "correct it, or name the weights that were cast"
            )
            return
        if declared is None and BYTES_PER_ITEM[entry.dtype] < SIZES.get(info.dtype, 0):
            message = f"the deployed {info.name} is {kind}, {info.dtype} in the record"
            hint = f"if the weights were cast, declare it: conversion: {{dtype: {kind}}}"
            inquiry.fault("AS071", message, ("model", "checkpoint"), hint)
            return


def _check_reference(inquiry: Inquiry) -> None:
    """Clean weights are others than those that they stand in for."""
    initial = inquiry.spec.model.initial
    reference, given = getattr(initial, "reference", None), getattr(initial, "weights", None)
    for name in (given, inquiry.spec.model.checkpoint):
        if reference is None or name is None or not inquiry.usable(name):
            continue
        digests = {inquiry.evidence[n].found for n in (reference, name)}
        if len(digests) == 1:
            message = f"{reference!r} and {name!r} are the same weights"
            hint = "name weights that are known to be clean"
            inquiry.fault("AS037", message, ("model", "initial", "reference"), hint)


def _first_models(
    record: RecordHeader,
) -> Iterator[tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...], dict[str, str]]]:
    """The model as the factory builds it, and as the first stage trains it."""
    yield record.parameters, record.buffers, record.ties
    first = record.stages[0]
    if first.parameters is not None:
        yield first.parameters, first.buffers or (), first.ties or {}


def _odd(
    found: Mapping[str, TensorEntry],
    parameters: tuple[TensorInfo, ...],
    buffers: tuple[TensorInfo, ...],
    ties: Mapping[str, str],
) -> Iterator[str]:
    """Names that are missing, too many, or of another shape; temporary buffers are not saved."""
    shapes = {info.name: info.shape for info in (*parameters, *buffers)}
    shapes |= {second: shapes[first] for second, first in ties.items() if first in shapes}
    needed = {info.name for info in parameters}
    needed -= {first for second, first in ties.items() if second in found}
    for name in sorted(needed | found.keys()):
        if name not in found or shapes.get(name) != found[name].shape:
            yield name


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")


def _equals(path: Path, found: Mapping[str, TensorEntry], state: Path) -> bool:
    """Whether a file's tensors are, byte by byte, the parameters of a recorded state."""
    try:
        held = read_entries(state)
        with open_regular(path) as ours, open_regular(state) as theirs:
            for key, entry in held.items():
                kind, _, name = key.partition("/")
                if kind != "param":
                    continue
                mine = found.get(name)
                if mine is None or (mine.dtype, mine.shape) != (entry.dtype, entry.shape):
                    return False
                ours.seek(mine.begin)
                theirs.seek(entry.begin)
                for start in range(entry.begin, entry.end, CHUNK):
                    size = min(CHUNK, entry.end - start)
                    if ours.read(size) != theirs.read(size):
                        return False
    except EvidenceError:
        return False
    return True
