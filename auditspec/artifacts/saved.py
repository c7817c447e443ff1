"""Checkpoints that a training run left behind, each as its step, weights, optimizer state, and random state.

    for step, stored in checkpoints_by_step(Path("outputs")).items():
        saved = stored.read()
        saved.weights, saved.optimizer, saved.rng

| form | what it is |
|---|---|
| `huggingface` | a folder `checkpoint-N` by transformers' Trainer |
| `lightning` | a file `.ckpt` by Lightning |
| `distributed` | a folder by torch.distributed.checkpoint, with `meta.pt` where Lightning made it |
| `file` | a state dict in a file, `.safetensors` or by `torch.save`, alone or beside an optimizer's; several by step, or a list of them |
| `folder` | a folder by `save_pretrained` of transformers or peft, or by accelerate's `save_state` |

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
from auditspec.artifacts.weight_files import MAIN, PICKLES, SUFFIXES, aligned, is_index
from auditspec.artifacts.weights import read_weights, state_dict_in
from auditspec.errors import EvidenceError

STEPS = ("global_step", "step", "iteration", "it")
"""Keys under which training loops save the number of steps made."""
RANDOM = ("rng_state", "rng", "torch_rng_state", "cpu_rng_state")
MODELS = ("state_dict", "model_state_dict", "model", "module")
"""Keys of the model itself, where an average of its weights stands beside it."""
_NUMBER = re.compile(r"\d+")
_STATED = re.compile(
    r"(?:.*step|.*?(?:checkpoint|ckpt|iter|iteration))s?[-_=]?(\d+)", re.IGNORECASE
)
_KEY = re.compile(r"(?:(?:global_)?step[-_=]?)?\d+")


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
        """Optimizer steps made before it, by its name; by its content only where the name does not say."""
        named = _number_of(path)
        return cls.read(path, ()).step if named is None else named


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

    @classmethod
    def step(cls, path: Path) -> int | None:
        """Names hold other numbers too, such as losses; only one that says so is a step."""
        stated = _STATED.match(path.stem)
        return cls.read(path, ()).step if stated is None else int(stated[1])


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


class Folder(Reader):
    """A folder of weights, with what accelerate saves beside them."""

    form = "folder"
    optimizers = ("optimizer.bin", "optimizer.pt")
    schedulers = ("scheduler.bin", "scheduler.pt")
    random = "random_states_0.pkl"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By a file of weights of the usual name."""
        return path.is_dir() and any((path / name).is_file() for name in MAIN)

    @classmethod
    def read(cls, path: Path, names: Collection[str]) -> SavedCheckpoint:
        """The step is that of its name."""

        def saved(*files: str) -> Any:
            file = next((path / name for name in files if (path / name).is_file()), None)
            return None if file is None else read_saved(file)

        random = _mapping(saved(cls.random)) or {}
        kinds = (
            ("cpu", "torch_manual_seed"),
            ("python", "random_state"),
            ("numpy", "numpy_random_seed"),
        )
        return SavedCheckpoint(
            path,
            cls.form,
            _number_of(path),
            read_weights(path, names=names).tensors,
            optimizer=_optimizer(saved(*cls.optimizers)),
            scheduler=_mapping(saved(*cls.schedulers)),
            rng={kind: random[key] for kind, key in kinds if key in random} or None,
        )


READERS: tuple[type[Reader], ...] = (HuggingFace, Distributed, Lightning, File, Folder)


@dataclass(frozen=True)
class Stored:
    """A checkpoint where it lies."""

    path: Path
    step: int
    """Optimizer steps made before it."""
    value: Any = field(default=None, repr=False)
    """Of a file that was read to learn its steps: what stands in it at this one."""

    def read(self, names: Collection[str] = ()) -> SavedCheckpoint:
        """What was saved.

        Args:
            names: tensors of the model, as `read_saved_checkpoint` takes them.

        Raises:
            EvidenceError: as `read_saved_checkpoint`, or if it says another step than its name.
        """
        if self.value is None:
            saved = read_saved_checkpoint(self.path, names)
        else:
            saved = _from_value(File.form, self.path, self.value, names, self.step)
        if saved.step != self.step:
            raise EvidenceError(
                f"{self.path}: is of step {saved.step} by what it holds, of step {self.step} by its name",
                "name it by the optimizer steps made before it",
            )
        return saved


def checkpoints_by_step(path: Path) -> dict[int, Stored]:
    """The checkpoints of one stage, in the order of their steps.

    Args:
        path: a folder of checkpoints; or one checkpoint; or a file with several, as a dictionary by step, or
            a list of dictionaries that say their step. Those in a folder whose names have no number
            (`last.ckpt`) are left out.

    Raises:
        EvidenceError: if there are none, one says no step, or there are two of one step.
    """
    stored: list[tuple[Path, int | None, Any]]
    if path.is_file() and path.suffix in PICKLES and not Lightning.recognises(path):
        stored = _in_file(path)
    elif any(reader.recognises(path) for reader in READERS):
        stored = [(path, step_of(path), None)]
    else:
        stored = [(each, step_of(each), None) for each in saved_checkpoints(path)]
    by_step: dict[int, Stored] = {}
    for place, step, value in stored:
        if step is None:
            raise EvidenceError(
                f"{place}: says no step, neither in its name nor in what it holds",
                "name it by the optimizer steps made before it, as step-100.pt",
            )
        if step in by_step:
            raise EvidenceError(
                f"{place}: a second checkpoint of step {step}, beside {by_step[step].path.name}",
                "name a folder with the checkpoints of one stage, one of each step",
            )
        by_step[step] = Stored(place, step, value)
    return dict(sorted(by_step.items()))


def _in_file(path: Path) -> list[tuple[Path, int | None, Any]]:
    """What stands in a file by `torch.save`, by step: one checkpoint, or several."""
    saved = read_saved(path, objects=True)
    if isinstance(saved, dict) and saved and all(_is_step(key) for key in saved):
        return [(path, int(_NUMBER.findall(str(key))[-1]), item) for key, item in saved.items()]
    if isinstance(saved, list) and saved and all(isinstance(item, dict) for item in saved):
        return [(path, _count_in(item), item) for item in saved]
    step = _count_in(saved)
    return [(path, _number_of(path) if step is None else step, saved)]


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
            "name the folder in which the run saved them, or name them by the optimizer steps made before "
            "each, as step-100.pt",
        )
    return tuple(sorted(numbered, key=lambda path: (_number_of(path) or 0, path.name)))


def _from_value(
    form: str, path: Path, saved: Any, names: Collection[str], step: int | None = None
) -> SavedCheckpoint:
    """Of one value that holds the weights and, under other keys, the rest; `step` where it says none itself."""
    weights, entry = state_dict_in(saved, path, names, _entry(saved, names))
    rest = {} if not entry else saved
    count = _count_in(rest)
    states = [_optimizer(rest.get(key)) for key in ("optimizer", "optim", "optimizer_state_dict")]
    states += [_optimizer(item) for item in _items(rest.get("optimizer_states"))]
    rng = next((rest[key] for key in RANDOM if rest.get(key) is not None), None)
    return SavedCheckpoint(
        path,
        form,
        count if count is not None else _number_of(path) if step is None else step,
        weights,
        optimizer=next((state for state in states if state is not None), None),
        scheduler=next(iter(_items(rest.get("lr_schedulers"))), _mapping(rest.get("scheduler"))),
        rng={"cpu": rng} if isinstance(rng, Tensor) else _mapping(rng),
        facts={k: v for k, v in rest.items() if isinstance(v, bool | int | float | str)},
    )


def _entry(saved: Any, names: Collection[str]) -> str | None:
    """The key of the model's own state dict, where it is one of the usual; None: the only one there is."""
    for key in MODELS if isinstance(saved, dict) else ():
        tensors = saved.get(key)
        if not isinstance(tensors, dict) or not tensors:
            continue
        plain = all(isinstance(n, str) and isinstance(t, Tensor) for n, t in tensors.items())
        if plain and (not names or aligned(tensors, names) is not None):
            return key
    return None


def _count_in(saved: Any) -> int | None:
    """The number of steps that a saved value says were made."""
    if not isinstance(saved, dict):
        return None
    return next((int(saved[key]) for key in STEPS if _is_count(saved.get(key))), None)


def _is_step(key: Any) -> bool:
    return _is_count(key) or (isinstance(key, str) and _KEY.fullmatch(key) is not None)


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
    state = {int(k) if str(k).isdecimal() else k: v for k, v in value["state"].items()}
    return {**value, "state": state, "param_groups": _items(value["param_groups"])}


def _number_of(path: Path) -> int | None:
    """The step in a name such as `checkpoint-300`, `step=300.ckpt`, `run-300.pt`; an epoch is none."""
    stated, numbers = _STATED.match(path.stem), _NUMBER.findall(path.stem)
    if stated is not None:
        return int(stated[1])
    return int(numbers[-1]) if numbers and "epoch" not in path.stem.lower() else None


def _finite(data: bytes) -> bytes:
    """Trainer writes NaN and Infinity into its log, which are no JSON: null in their place."""
    return re.sub(rb"(?<=[:\[,\s])-?(?:NaN|Infinity)(?=[,\]}\s])", b"null", data)
