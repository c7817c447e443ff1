"""How a record begins: the header that its run has now, held against the one that stands in the folder."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from auditspec.errors import RecordError
from auditspec.record.describe import check_same_run, function_ref, no_batches, tensor_infos
from auditspec.record.format import HEADER, RecordHeader
from auditspec.record.numerics import numerics_now
from auditspec.record.outline import read_header
from auditspec.record.state import device_of, named_buffers, named_parameters, ties
from auditspec.recorder.ranks import Ranks
from auditspec.recorder.writer import write_header


def fresh_header(
    model: nn.Module,
    ranks: Ranks,
    every: int | Literal["boundaries"],
    factory: Callable[[], nn.Module],
    load_batch: Callable[[Any, Any], Any] | None,
) -> RecordHeader:
    """The header of a run that has no stage yet; arguments as those of `Recorder`.

    Raises:
        RecordError: if a function does not stand at the top of a module.
    """
    return RecordHeader(
        created=dt.datetime.now(dt.UTC).replace(microsecond=0),
        versions={
            "auditspec": version("auditspec"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        device=str(device_of(model)),
        **arithmetic_now(),
        layout=ranks.layout,
        every=every,
        factory=function_ref(factory),
        load_batch=function_ref(load_batch or no_batches),
        parameters=tuple(tensor_infos(named_parameters(model))),
        buffers=tuple(tensor_infos(named_buffers(model))),
        ties=ties(model),
    )


def begun_header(folder: Path, fresh: RecordHeader, resume: bool) -> RecordHeader:
    """The header of the record that stands in a folder, or a fresh one, which is written.

    Raises:
        RecordError: if a record is there that may not be gone on with, or is of another run.
    """
    if not (folder / HEADER).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_header(folder, fresh)
        return fresh
    if not resume:
        raise RecordError(
            f"{folder} holds a record already",
            "choose another folder, delete it, or pass resume=True to go on with it",
        )
    recorded = read_header(folder)
    check_same_run(recorded, fresh)
    if (size := fresh.layout.world_size) > 1:
        raise RecordError(
            f"{folder}: a run on {size} processes cannot be resumed: the record holds the random "
            "state of the first one only",
            "record it from its start in another folder",
        )
    return recorded


def arithmetic_now() -> dict[str, Any]:
    """What decides how numbers round, besides device and versions, by its key in the header."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "numerics": numerics_now(),
    }
