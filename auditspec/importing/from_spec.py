"""The run that an audit's spec describes, to be imported: its code, data, and first weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.weights import read_weights
from auditspec.errors import UsageError
from auditspec.importing.trained_again import ImportedRun, ImportedStage, import_run
from auditspec.record.format import RecordHeader
from auditspec.spec.models import GivenStart, RandomStart
from auditspec.spec.source import LoadedSpec


def import_as_specified(
    loaded: LoadedSpec,
    checkpoints: Mapping[str, Path],
    folder: Path,
    *,
    every: int = 1,
    announce: Callable[[str], None] = lambda line: None,
) -> RecordHeader:
    """Train the run of a spec again, and write its record.

    Args:
        loaded: the spec; its artifact `record` need not be there.
        checkpoints: output folder of every stage's trainer, by stage.
        folder: of the record.
        every: steps between recorded states.
        announce: told of every code file before it is executed.

    Raises:
        UsageError: if a folder is named for no stage, a stage has none, or the record is there already.
        EvidenceError: if code, data, weights, or a checkpoint cannot be read or do not belong together.
        RecordError: if the run cannot be recorded.
    """
    spec, here = loaded.spec, loaded.path.parent
    ids = [stage.id for stage in spec.stages]
    if odd := sorted(checkpoints.keys() ^ set(ids)):
        raise UsageError(
            f"stage '{odd[0]}': {'no checkpoints' if odd[0] in ids else 'the spec has no such stage'}",
            "pass --checkpoints STAGE=FOLDER for every stage of the spec",
        )
    if folder.exists():
        raise UsageError(f"{folder} is there already", "delete it, or choose another with --out")

    def where(name: str) -> Path:
        return here / spec.artifacts[name].path

    code = CodeBundle.read(where("code"), None)
    for file in code.files:
        announce(f"executing {file.path} ({file.digest})")
    initial = spec.model.initial
    weights = initial.weights if isinstance(initial, GivenStart) else None
    datasets = {
        name: Dataset.open(where(name), name) for stage in spec.stages for name in stage.data
    }
    with code.importable():
        run = ImportedRun(
            factory=code.load(spec.model.factory),
            load_batch=code.load(spec.model.load_batch),
            stages=[
                ImportedStage(
                    id=stage.id,
                    objective=code.load(stage.objective),
                    checkpoints=checkpoints[stage.id],
                    datasets=tuple(datasets[name] for name in stage.data),
                    extend=None if stage.extend is None else code.load(stage.extend),
                )
                for stage in spec.stages
            ],
            weights=None if weights is None else _weights(where(weights)),
            seed=initial.seed if isinstance(initial, RandomStart) else None,
        )
        return import_run(run, folder, every=every)


def _weights(path: Path) -> dict[str, Tensor]:
    return dict(read_weights(path).tensors)
