"""Checkpoints that a training run left behind, each as its step, weights, optimizer state, and random state.

    for path in saved_checkpoints(Path("outputs")):
        saved = read_saved_checkpoint(path)
        saved.step, saved.weights, saved.optimizer, saved.rng

| form | what it is |
|---|---|
| `huggingface` | a folder `checkpoint-N` by transformers' Trainer |
| `lightning` | a file `.ckpt` by Lightning |
| `distributed` | a folder by torch.distributed.checkpoint, with `meta.pt` where Lightning made it |
| `file` | a state dict in a file, `.safetensors` or by `torch.save`, alone or beside an optimizer's |

Files of the party that trained are read by the restricted reader only (`pickled`): nothing that they name is
imported or called. A further form is one class here and a line in `READERS`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from auditspec.artifacts import strict_json
from auditspec.artifacts.files import read_regular
from auditspec.artifacts.pickled import Unloaded, is_distributed, read_saved
from auditspec.artifacts.weight_files import SUFFIXES, is_index
from auditspec.artifacts.weights import read_weights, state_dict_in
from auditspec.errors import EvidenceError

STEPS = ("global_step", "step", "iteration", "it")
"""Keys under which training loops save the number of steps made."""
RANDOM = ("rng_state", "rng", "torch_rng_state", "cpu_rng_state")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class SavedCheckpoint:
    """What a run saved at one step. What it did not save, or what has another form, is None."""

    path: Path
    form: str
    step: int | None
    """Optimizer steps made before it."""
    weights: dict[str, Tensor]
    """Under the names that the file gives them (`weight_files.aligned` puts them under a model's); of a model with
    adapters of peft, Trainer saves the adapters only."""
    optimizer: Mapping[str, Any] | None = None
    """`state` and `param_groups`, as `torch.optim.Optimizer.state_dict` has them: state by number, in the order
    of the groups' parameters, or by name in a folder of torch.distributed.checkpoint."""
    scheduler: Mapping[str, Any] | None = None
    """The state dict of the learning-rate schedule."""
    rng: Mapping[str, Any] | None = None
    """Random states: `cpu` and `cuda` as tensors of bytes, `python` as `random.getstate` gives it, `numpy` as
    `numpy.random.get_state` does, its array a tensor."""
    arguments: Unloaded | None = None
    """What stands for transformers' TrainingArguments: `state` has them by name."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else was saved of the run: plain values (of Trainer, `trainer_state.json`)."""


class Reader(ABC):
    """Reads the checkpoints of one form."""

    form: ClassVar[str]

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a file or folder is of this form, by names alone."""

    @classmethod
    @abstractmethod
    def read(cls, path: Path, names: Collection[str]) -> SavedCheckpoint:
        """The checkpoint at a path."""

    @classmethod
    def step(cls, path: Path) -> int | None:
        """Optimizer steps made before it, as far as that is known without reading all of it."""
        return _number_of(path)


class HuggingFace(Reader):
    """A folder `checkpoint-N` of transformers' Trainer."""

    form = "huggingface"
    state = "trainer_state.json"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By the file with the trainer's state."""
        return path.is_dir() and (path / cls.state).is_file()

    @classmethod
    def read(cls, path: Path, names: Collection[str]) -> SavedCheckpoint:
        """Weights, optimizer, schedule, random state, arguments, as far as they were saved."""
        facts = cls._facts(path)

        def saved(name: str, *, objects: bool = False) -> Any:
            file = path / name
            return read_saved(file, objects=objects) if file.exists() else None

        arguments = saved("training_args.bin", objects=True)
        return SavedCheckpoint(
            path,
            cls.form,
            facts["global_step"],
            read_weights(path, names=names).tensors,
            optimizer=_optimizer(saved("optimizer.pt")),
            scheduler=_mapping(saved("scheduler.pt")),
            rng=_mapping(saved("rng_state.pth")),
            arguments=arguments if isinstance(arguments, Unloaded) else None,
            facts=facts,
        )

    @classmethod
    def step(cls, path: Path) -> int | None:
        """As the trainer's state says."""
        return int(cls._facts(path)["global_step"])

    @classmethod
    def _facts(cls, path: Path) -> dict[str, Any]:
        file = path / cls.state
        facts = strict_json.parse(_finite(read_regular(file)), str(file))
        if not isinstance(facts, dict) or not isinstance(facts.get("global_step"), int):
            raise EvidenceError(f"{file}: says no global_step", "restore the file")
        return facts


class Lightning(Reader):
    """A file `.ckpt` of Lightning's Trainer."""

    form = "lightning"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By its ending."""
        return path.is_file() and path.suffix == ".ckpt"

    @classmethod
    def read(cls, path: Path, names: Collection[str]) -> SavedCheckpoint:
        """The first optimizer's state, where there are several."""
        saved = read_saved(path, objects=True)
        return _from_value(cls.form, path, saved, names)


class Distributed(Reader):
    """A folder of torch.distributed.checkpoint."""

    form = "distributed"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By its description."""
        return is_distributed(path)

    @classmethod
    def read(cls, path: Path, names: Collection[str]) -> SavedCheckpoint:
        """What `meta.pt` says, where Lightning wrote one, stands beside it."""
        saved, meta = read_saved(path), path / "meta.pt"
        if meta.exists():
            beside = read_saved(meta, objects=True)
            saved = {**beside, **saved} if isinstance(beside, dict) else saved
        return _from_value(cls.form, path, saved, names)


class File(Reader):
    """A file with a state dict."""

    form = "file"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By its ending."""
        return path.is_file() and path.suffix in SUFFIXES and not is_index(path)

    @classmethod
    def read(cls, path: Path, names: Collection[str]) -> SavedCheckpoint:
        """The step is the one in the file, else the last number of its name."""
        if path.suffix == ".safetensors":
            tensors = read_weights(path).tensors
            return SavedCheckpoint(path, cls.form, _number_of(path), tensors)
        return _from_value(cls.form, path, read_saved(path, objects=True), names)


READERS: tuple[type[Reader], ...] = (HuggingFace, Distributed, Lightning, File)


def read_saved_checkpoint(path: Path, names: Collection[str] = ()) -> SavedCheckpoint:
    """The checkpoint at a path, in whichever form a run left it.

    Args:
        path: a file, or a folder.
        names: tensors of the model, which tell its state dict from others in the same file (an average of
            the weights, a second model); empty where there is one.

    Raises:
        EvidenceError: if it is of none of the forms, unsafe to read, damaged, or holds no state dict of the
            model, or several.
    """
    for reader in READERS:
        if reader.recognises(path):
            return reader.read(path, names)
    raise EvidenceError(
        f"{path}: is no saved checkpoint",
        f"one of: {', '.join(reader.form for reader in READERS)}",
    )


def step_of(path: Path) -> int | None:
    """Optimizer steps made before a saved checkpoint, from its name or its trainer's notes; None if unknown."""
    return next((reader.step(path) for reader in READERS if reader.recognises(path)), None)


def saved_checkpoints(folder: Path) -> tuple[Path, ...]:
    """The checkpoints in a run's output folder, in the order of their numbers; the folder's own files only.

    Raises:
        EvidenceError: if there are none, or the folder is missing or a link.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise EvidenceError(f"{folder}: no such folder", "check the path")
    paths = [
        path
        for path in folder.iterdir()
        if not path.is_symlink()
        and any(reader.recognises(path) for reader in READERS)
        and (path.is_dir() or path.suffix in (".ckpt", ".pt", ".pth", ".safetensors"))
    ]
    numbered = [path for path in paths if _NUMBER.search(path.stem)]
    if not numbered:
        raise EvidenceError(
            f"{folder}: holds no checkpoints with a step in their names",
            "name the run's output folder",
        )
    return tuple(sorted(numbered, key=lambda path: (_number_of(path) or 0, path.name)))


def _from_value(form: str, path: Path, saved: Any, names: Collection[str]) -> SavedCheckpoint:
    """Of one value that holds the weights and, under other keys, the rest."""
    weights, entry = state_dict_in(saved, path, names, None)
    rest = {} if not entry else saved
    step = next((rest[key] for key in STEPS if _is_count(rest.get(key))), None)
    states = [_optimizer(rest.get(key)) for key in ("optimizer", "optim", "optimizer_state_dict")]
    states += [_optimizer(item) for item in _items(rest.get("optimizer_states"))]
    rng = next((rest[key] for key in RANDOM if rest.get(key) is not None), None)
    return SavedCheckpoint(
        path,
        form,
        _number_of(path) if step is None else int(step),
        weights,
        optimizer=next((state for state in states if state is not None), None),
        scheduler=next(iter(_items(rest.get("lr_schedulers"))), _mapping(rest.get("scheduler"))),
        rng={"cpu": rng} if isinstance(rng, Tensor) else _mapping(rng),
        facts={k: v for k, v in rest.items() if isinstance(v, bool | int | float | str)},
    )


def _is_count(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_floating_point()
    return isinstance(value, int) and not isinstance(value, bool)


def _items(value: Any) -> list[Any]:
    """A list, or what became of one in a folder of torch.distributed.checkpoint."""
    return list(value.values()) if isinstance(value, dict) else list(value or ())


def _mapping(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


def _optimizer(value: Any) -> Mapping[str, Any] | None:
    if not isinstance(value, Mapping) or not {"state", "param_groups"} <= value.keys():
        return None
    return {**value, "param_groups": _items(value["param_groups"])}


def _number_of(path: Path) -> int | None:
    """The step in a name such as `checkpoint-300`, `step=300.ckpt`, `epoch=1-step=300.ckpt`."""
    named = re.search(r"(?:step|checkpoint|iter)[-_=]?(\d+)", path.stem)
    numbers = _NUMBER.findall(path.stem)
    return int(named[1]) if named else int(numbers[-1]) if numbers else None


def _finite(data: bytes) -> bytes:
    """Trainer writes NaN and Infinity into its log, which are no JSON: null in their place."""
    return re.sub(rb"(?<=[:\[,\s])-?(?:NaN|Infinity)(?=[,\]}\s])", b"null", data)
