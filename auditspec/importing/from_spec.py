"""The run that an audit's spec describes, to be imported: its code, data, and first weights."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.datasets import Dataset
from auditspec.errors import UsageError
from auditspec.importing.trained_again import ImportedRun, ImportedStage, import_run
from auditspec.importing.untouched import untouched
from auditspec.record.format import RecordHeader
from auditspec.recorder.recorder import Recorder
from auditspec.spec.models import GivenStart, RandomStart
from auditspec.spec.source import LoadedSpec


def import_as_specified(
    loaded: LoadedSpec,
    checkpoints: Mapping[str, Path],
    folder: Path,
    *,
    run: str | None = None,
    every: int = 1,
    announce: Callable[[str], None] = lambda line: None,
) -> RecordHeader:
    """Train the run of a spec again, and write its record, which appears whole or not at all.

    Args:
        loaded: the spec; its artifact `record` need not be there.
        checkpoints: what every stage saved, by stage: a folder, or a file.
        folder: of the record.
        run: `module:function` of the spec's code: (recorder) -> None, which trains `recorder.model` as the run
            was trained, and records every stage; None: each stage's objective builds its trainer.
        every: steps between recorded states.
        announce: told of every code file before it is executed, and of every checkpoint once it was compared.

    Raises:
        UsageError: if a path is given for no stage, a stage has none, the record is there already, cannot be
            written, or would lie among the checkpoints, or `run` names no function of the recorder alone.
        EvidenceError: if code, data, weights, or a checkpoint cannot be read or do not belong together.
        RecordError: if the run cannot be recorded, or its code fails.
    """
    spec, where = loaded.spec, loaded.where
    _refuse_paths([stage.id for stage in spec.stages], checkpoints, folder)

    code = CodeBundle.read(where("code"), None)
    for file in code.files:
        announce(f"executing {file.path} ({file.digest})")
    initial = spec.model.initial
    weights = initial.weights if isinstance(initial, GivenStart) else None
    datasets = {
        name: Dataset.open(where(name), name) for stage in spec.stages for name in stage.data
    }
    with _appearing(folder) as aside, untouched(checkpoints.values()), code.importable():
        stages = [
            ImportedStage(
                id=stage.id,
                objective=code.load(stage.objective),
                checkpoints=checkpoints[stage.id],
                datasets=tuple(datasets[name] for name in stage.data),
                extend=None if stage.extend is None else code.load(stage.extend),
            )
            for stage in spec.stages
        ]
        imported = ImportedRun(
            factory=code.load(spec.model.factory),
            load_batch=code.load(spec.model.load_batch),
            stages=stages,
            train=_training(code, run) if run is not None else _by_trainers(stages),
            weights=None if weights is None else where(weights),
            seed=initial.seed if isinstance(initial, RandomStart) else None,
        )
        return import_run(imported, aside, every=every, announce=announce)


def _refuse_paths(stages: Sequence[str], checkpoints: Mapping[str, Path], folder: Path) -> None:
    """Refuse checkpoints of other stages, and a record where it cannot stand.

    Raises:
        UsageError: naming the stage or the folder.
    """
    if odd := sorted(checkpoints.keys() ^ set(stages)):
        raise UsageError(
            f"stage '{odd[0]}': {'no checkpoints' if odd[0] in stages else 'the spec has no such stage'}",
            "pass --checkpoints STAGE=PATH for every stage of the spec",
        )
    if folder.exists():
        raise UsageError(f"{folder} is there already", "delete it, or choose another with --out")
    for path in checkpoints.values():
        if folder.absolute().is_relative_to(path.absolute()):
            raise UsageError(
                f"{folder}: lies among the checkpoints in {path}, where nothing is written",
                "choose another with --out",
            )


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside another, which takes its name where all went well, and else is deleted.

    Raises:
        UsageError: if it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UsageError(
            f"{folder}: cannot be written ({error.strerror})", "choose another folder with --out"
        ) from None
    try:
        (aside / folder.name).mkdir()
        yield aside / folder.name
        (aside / folder.name).rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _training(code: CodeBundle, run: str) -> Callable[[Recorder], Any]:
    """The function that trains the run again.

    Raises:
        UsageError: if it cannot be called with a recorder alone.
        EvidenceError: if the code has no such function.
    """
    if not all(run.partition(":")):
        raise UsageError(f"--run {run}: names no function", "write --run MODULE:FUNCTION")
    train = code.load(run)
    try:
        inspect.signature(train).bind(None)
    except TypeError as error:
        raise UsageError(
            f"--run {run}: cannot be called with the recorder alone ({error})",
            "write `def train(recorder)`, which trains recorder.model and records every stage",
        ) from None
    return train


def _by_trainers(stages: Sequence[ImportedStage]) -> Callable[[Recorder], Any]:
    """What trains stages whose objectives build their trainers.

    Raises:
        UsageError: if an objective builds none.
    """
    for stage in stages:
        if not hasattr(stage.objective, "__wrapped__"):
            raise UsageError(
                f"stage '{stage.id}': its objective builds no trainer of transformers",
                "name the function that trains with --run MODULE:FUNCTION",
            )
    from auditspec.importing.trainers import Trainers

    return Trainers(stages)
