"""The training code's functions, and the batches that they load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.remote import RemoteFunction
from auditspec.errors import EstimationError, EvidenceError, RecordError
from auditspec.record.extension import Extend
from auditspec.record.trajectory import Microbatch, StageTrajectory


def no_logits(model: nn.Module, batch: Any) -> Tensor:
    """Stands for `predict` where the spec states none.

    Raises:
        EstimationError: always.
    """
    raise EstimationError("the spec states no model.predict", "add it")


@dataclass(frozen=True)
class Functions:
    """The training code, loaded: what a re-run calls."""

    factory: Callable[[], nn.Module]
    load_batch: Callable[[Dataset, Sequence[int]], Any]
    objectives: Mapping[str, Callable[[nn.Module, Any], Tensor]]
    """By stage id."""
    predict: Callable[[nn.Module, Any], Tensor]
    optimizers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Optimizer classes of the training code, by `module:Class`."""
    extensions: Mapping[str, Extend] = field(default_factory=dict)
    """Functions that change the model between stages, by `module:callable`."""


def load_microbatch(
    functions: Functions, datasets: Mapping[str, Dataset], microbatch: Microbatch
) -> Any:
    """A microbatch: from its data set, or as the record itself holds it.

    Raises:
        EstimationError: if its data set is not at hand.
        RecordError: if a table does not have such rows.
    """
    if microbatch.source is not None:
        loaded = load_rows(functions, microbatch.source, microbatch.ids)
        return _with_counts(loaded, microbatch.batch)
    if microbatch.batch is not None:
        return pytree.tree_map_only(Tensor, Tensor.clone, microbatch.batch)
    if microbatch.dataset is None or microbatch.dataset not in datasets:
        raise EstimationError(
            f"the record's data set '{microbatch.dataset}' is not among the artifacts",
            f"add artifacts.{microbatch.dataset} to the spec",
        )
    return load_rows(functions, datasets[microbatch.dataset], microbatch.ids)


def expect(functions: Functions, datasets: Mapping[str, Dataset], stage: StageTrajectory) -> None:
    """Tell a `load_batch` that is far away in what order a stage drew its batches."""
    if isinstance(functions.load_batch, RemoteFunction):
        drawn = (_drawn(datasets, batch) for step in stage.steps for batch in step.batches)
        functions.load_batch.expect(batch for batch in drawn if batch is not None)


def _drawn(
    datasets: Mapping[str, Dataset], microbatch: Microbatch
) -> tuple[Dataset, Sequence[int]] | None:
    """The rows that a microbatch is loaded from; None where the record holds it."""
    if microbatch.source is not None:
        return microbatch.source, microbatch.ids
    name = microbatch.dataset
    if microbatch.batch is not None or name is None or name not in datasets:
        return None
    return datasets[name], microbatch.ids


def _with_counts(loaded: Any, recorded: Any) -> Any:
    """Other rows in place of a recorded batch's, with what that holds besides: numbers of the whole step."""
    if not isinstance(loaded, Mapping) or not isinstance(recorded, dict):
        return loaded
    counts = {
        key: value
        for key, value in recorded.items()
        if key not in loaded and (not isinstance(value, Tensor) or value.dim() == 0)
    }
    return {**loaded, **counts} if counts else loaded


def load_rows(functions: Functions, dataset: Dataset, ids: Sequence[int]) -> Any:
    """Rows of a data set, by the training code's own `load_batch`.

    Raises:
        RecordError: if that fails because a table does not have such rows.
    """
    try:
        return functions.load_batch(dataset, list(ids))
    except Exception as error:
        if not _beyond(dataset, ids):
            raise
        raise RecordError(
            f"row {max(ids)} of data set '{dataset.name}' is to be read, which has {len(dataset)} rows",
            "audit with the data that was trained on",
        ) from error


def _beyond(dataset: Dataset, ids: Sequence[int]) -> bool:
    """Whether rows are asked for that a table does not have."""
    try:
        return max(ids, default=0) >= len(dataset)
    except EvidenceError:  # not a table: only its own reader knows
        return False
