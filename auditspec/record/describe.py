"""What a run is made of, in the words of a record; and what cannot be recorded, by name."""

from __future__ import annotations

import inspect
import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.digest import digest_file
from auditspec.errors import RecordError
from auditspec.record.format import FunctionRef, Group, RecordHeader, TensorInfo
from auditspec.record.state import OptimizerState, is_part, named_buffers, named_parameters
from auditspec.results import NAME

RESERVED = ("code", "record")
"""Artifacts of every spec, whose names no data set can have."""


def function_ref(function: Callable[..., Any]) -> FunctionRef:
    """Name a function or class as the spec would, with the digest of the file that defines it.

    A decorated function is defined where the function that was decorated is.

    Raises:
        RecordError: if it is not a module-level function or class of a file.
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    named = inspect.isfunction(function) or inspect.isclass(function)
    defined = named and hasattr(module, "__file__")
    source = inspect.getsourcefile(inspect.unwrap(function)) if defined else None
    name = getattr(function, "__qualname__", "")
    lies = source is not None and Path(source).is_file()
    if module is None or source is None or not (lies and name.isidentifier()):
        raise _cannot_be_named(function)
    module_name = function.__module__
    if module_name in ("__main__", "__mp_main__"):  # the latter in a process that main spawned
        started = getattr(module, "__spec__", None)  # by `python -m`; None for a script
        own = started is not None and started.origin == source
        module_name = started.name if started and own else Path(source).stem
    return FunctionRef(name=f"{module_name}:{name}", digest=digest_file(Path(source))[0])


def _cannot_be_named(function: Callable[..., Any]) -> RecordError:
    """The error for a function that no audit could import, by where it is defined."""
    name = getattr(function, "__qualname__", "")
    main = sys.modules.get("__main__")
    script = Path(getattr(main, "__file__", None) or "").is_file()
    typed = getattr(function, "__module__", "") == "__main__" and not script
    if not (typed and name.isidentifier()):
        return RecordError(
            f"{function!r} cannot be named in a record",
            "use one that is defined at the top of a module",
        )
    file = getattr(
        getattr(function, "__code__", main), "co_filename", getattr(main, "__file__", "")
    )
    where = {"<stdin>": "on standard input", "<string>": "in a string (python -c)"}.get(
        file, "in an interactive session"
    )
    if hasattr(main, "get_ipython"):
        where = "in a notebook" if "ipykernel" in sys.modules else "in IPython"
    return RecordError(
        f"{name} is defined {where}, where no audit can import it",
        "write it to a file and import it from there: in a notebook, put %%writefile training_code.py at the "
        f"head of its cell, run that, and then from training_code import {name}",
    )


def refuse_stage_id(stage_id: str, before: Sequence[str]) -> None:
    """Refuse the id of a stage that no spec could name.

    Args:
        stage_id: the id.
        before: those of the stages before.

    Raises:
        RecordError: if it is not a name, or taken.
    """
    if not isinstance(stage_id, str) or re.fullmatch(NAME, stage_id) is None:
        raise RecordError(
            f"{stage_id!r} is no id of a stage",
            "use letters, digits, '.', '_' and '-', 64 at most, starting with a letter or digit",
        )
    if stage_id in before:
        raise RecordError(f"the record has a stage '{stage_id}' already", "give each its own id")


def named_datasets(given: Any) -> dict[str, Dataset]:
    """The data sets of a stage by name: one, or several.

    Raises:
        RecordError: if something is no `Dataset`, or has a name that no spec could use for it.
    """
    several = isinstance(given, list | tuple)
    datasets: dict[str, Dataset] = {}
    for data in given if several else [given]:
        if not isinstance(data, Dataset):
            raise _no_dataset(data)
        if re.fullmatch(NAME, data.name) is None or data.name in RESERVED:
            raise RecordError(
                f"{data.name!r} is no name of a data set in a spec",
                "pass name= to Dataset.open: letters, digits, '.', '_' and '-', and neither "
                f"{' nor '.join(RESERVED)}",
            )
        if data.name in datasets:
            raise RecordError(
                "two data sets of the stage have one name", "pass name= to Dataset.open"
            )
        datasets[data.name] = data
    return datasets


def _no_dataset(data: Any) -> RecordError:
    kind = type(data).__name__
    if isinstance(data, str | Path):
        remedy = f"open it: auditspec.Dataset.open({str(data)!r})"
    elif hasattr(data, "to_parquet"):
        remedy = "write it with to_parquet, then pass auditspec.Dataset.open(file)"
    else:
        remedy = (
            "keep the rows in a file and pass auditspec.Dataset.open(file), with a load_batch that "
            "reads them; or record the batches themselves with run.batch(tensors=...)"
        )
    return RecordError(f"a {kind} is no data set", remedy)


def no_batches(dataset: Any, ids: Any) -> Any:
    """Stands for load_batch where a record holds its batches as tensors."""
    raise RecordError("this record holds its batches as tensors", "no ids need to be loaded")


def tensor_infos(tensors: dict[str, Any]) -> Iterator[TensorInfo]:
    """Name, shape, and precision of parameters or buffers."""
    for name, tensor in tensors.items():
        yield TensorInfo(
            name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch.")
        )


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` compiles the model or a part of it."""
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def refuse_compiled_since(model: nn.Module, before: bool) -> None:
    """Refuse a model that was compiled after its factory built it.

    Raises:
        RecordError: if it is compiled now and was not before.
    """
    if is_compiled(model) and not before:
        raise _compiled_elsewhere("the function that built it")


def _compiled_elsewhere(factory: str) -> RecordError:
    return RecordError(
        f"the model is compiled, but not by {factory}",
        "call model.compile() in the factory, so that a re-run compiles it too: compiled code rounds "
        "otherwise and draws other random numbers",
    )


def check_factory(factory: Callable[[], nn.Module], model: nn.Module, header: RecordHeader) -> None:
    """Refuse a factory that builds another model than the one recorded.

    Raises:
        RecordError: naming the parameters and buffers that differ.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        built = factory()
    if is_compiled(model) and not is_compiled(built):
        raise _compiled_elsewhere(f"{header.factory.name}()")
    tensors = {**named_parameters(built), **named_buffers(built)}
    wanted = {info.name: info for info in (*header.parameters, *header.buffers)}
    built_infos = {info.name: info for info in tensor_infos(tensors)}
    if built_infos != wanted:
        odd = ", ".join(
            sorted(
                n for n in wanted.keys() | built_infos.keys() if wanted.get(n) != built_infos.get(n)
            )
        )
        raise RecordError(
            f"{header.factory.name}() builds another model than the one recorded: {odd}",
            "pass the function that built the model",
        )


def check_same_run(recorded: RecordHeader, fresh: RecordHeader) -> None:
    """Refuse to go on with a record that other code began.

    Raises:
        RecordError: naming the first part that differs.
    """
    parts = (
        "factory",
        "load_batch",
        "parameters",
        "buffers",
        "ties",
        "every",
        "numerics",
        "layout",
    )
    for part in parts:
        if getattr(recorded, part) != getattr(fresh, part):
            raise RecordError(
                f"the record was begun with another {part.replace('_', ' ')}",
                "resume with the code and options that began it, or start a new record",
            )


def check_same_groups(recorded: Sequence[Group], fresh: Sequence[Group]) -> None:
    """Refuse to resume a stage with other parameter groups or hyperparameters.

    Learning rates are left out, and options that a scheduler adds on the way: the loop sets them
    from the step.

    Raises:
        RecordError: naming the first difference.
    """
    if [group.parameters for group in recorded] != [group.parameters for group in fresh]:
        raise RecordError(
            "the stage was begun with other parameter groups", "resume with those that began it"
        )
    for before, now in zip(recorded, fresh, strict=True):
        for key in (before.options.keys() & now.options.keys()) - {"lr", "initial_lr"}:
            if before.options[key] != now.options[key]:
                raise RecordError(
                    f"the stage was begun with {key} {before.options[key]}, not {now.options[key]}",
                    "resume with the options that began it, or start a new record",
                )


def refuse_unrecordable(model: nn.Module, *, sharded: bool = False) -> None:
    """Refuse sharded, wrapped, and spread-out models by name.

    Args:
        model: of this process.
        sharded: whether it holds a part of the model only, and others train with it.

    Raises:
        RecordError: if the model is one of them.
    """
    kind = type(model).__name__
    if kind in {
        "DistributedDataParallel",
        "FullyShardedDataParallel",
        "FSDPModule",
        "DataParallel",
    }:
        raise RecordError(
            f"a {kind} model cannot be recorded yet", "record the plain module on one device"
        )
    for name, parameter in model.named_parameters():
        if is_part(parameter) and not sharded:
            raise RecordError(
                f"parameter '{name}' is sharded, and one process trains",
                "leave out fully_shard, or train on several processes",
            )
    if len({p.device for p in model.parameters()}) > 1:
        raise RecordError(
            "the model lies on several devices; that cannot be recorded yet", "use one device"
        )


def same_moments(left: OptimizerState, right: OptimizerState) -> bool:
    """Whether two optimizer states are equal, bit for bit."""

    def equal(a: Any, b: Any) -> bool:
        return (
            torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)
        )

    return left.keys() == right.keys() and all(
        left[n].keys() == right[n].keys() and all(equal(v, right[n][k]) for k, v in left[n].items())
        for n in left
    )


def row_numbers(ids: Any) -> list[int]:
    """Ids of any array-like as plain integers.

    Raises:
        RecordError: if they are a batch rather than row numbers, or one is negative.
    """
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence | range):
        raise _no_row_numbers(ids)
    rows = []
    for value in values:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise _no_row_numbers(ids)
        try:
            rows.append(operator.index(value))
        except TypeError:  # a tensor of several numbers
            raise _no_row_numbers(ids) from None
    if rows and min(rows) < 0:
        raise RecordError(f"example id {min(rows)} is negative", "use row numbers from 0")
    return rows


def _no_row_numbers(ids: Any) -> RecordError:
    shape = f" of shape {tuple(ids.shape)}" if hasattr(ids, "shape") else ""
    return RecordError(
        f"a {type(ids).__name__}{shape} is no list of row numbers",
        "pass the rows' numbers, which load_batch then loads: run.loss([0, 7, 3]); a batch that has "
        "none is declared with run.batch(tensors=batch)",
    )
