"""A table of scores that another tool made: one row for each model, example, and repetition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from auditspec.artifacts.datasets import Dataset
from auditspec.behaviors.bound import Scores, Slice
from auditspec.errors import EstimationError, EvidenceError
from auditspec.record.state import State
from auditspec.score_logs.table import DIGEST, EXAMPLE, MODEL, REPETITION, SCORE

SCORED_AGAIN = "score it again, or remove the row"


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one behaviour's examples."""

    artifact: str
    scores: Mapping[str, Scores]
    """By the model's digest, [repetitions, n]."""

    @classmethod
    def read(cls, dataset: Dataset, part: Slice) -> ScoreTable:
        """Read a behaviour's table.

        Args:
            dataset: the artifact.
            part: the behaviour's examples; rows of others are checked and left out.

        Raises:
            EvidenceError: naming the first row that is no score of an example by a model, or stands twice, and
                whatever lacks a score.
        """
        what, frame = f"scores '{dataset.name}'", dataset.frame
        _require_columns(what, frame)
        models = _models(what, frame)
        examples = _whole(what, frame, EXAMPLE)
        scores = _numbers(what, frame, SCORE)
        repetitions = (
            _whole(what, frame, REPETITION) if REPETITION in frame else np.zeros(len(frame), int)
        )
        rows = len(part.dataset.frame)
        _refuse(
            what,
            (examples < 0) | (examples >= rows),
            lambda i: (
                f"example {examples[i]} is no row of '{part.behavior.data}', which has {rows}"
            ),
            "number examples by the rows of the behaviour's data, from 0",
        )
        if part.metric.binary:
            _refuse(
                what,
                ~np.isin(scores, (0.0, 1.0)),
                lambda i: f"score {scores[i]:g} is neither 0 nor 1, as `binary` has it",
                "leave out `binary`, or score 0 or 1",
            )
        keys = pd.DataFrame({MODEL: models, REPETITION: repetitions, EXAMPLE: examples})
        _refuse(
            what,
            keys.duplicated().to_numpy(),
            lambda i: f"example {examples[i]} of model {models[i]} stands twice",
            "score a model again under another number in the column `repetition`",
        )
        return cls(dataset.name, _by_model(what, keys.assign(**{SCORE: scores}), part))

    def noise(self, part: Slice) -> float | None:
        """Standard deviation of a level by what is random in scoring, of the mean over repetitions; None without any.

        Over all models that were scored more than once: the larger of that of whole repetitions' levels, which
        sees what all examples of one share, and that of each example's own repetition drawn at random.
        """
        repeated = [scores for scores in self.scores.values() if len(scores) > 1]
        return noise_of(part, repeated) if repeated else None


@dataclass(frozen=True)
class Elsewhere:
    """Scores of models, by their digests."""

    tables: Mapping[str, ScoreTable]
    """By behaviour."""
    digest_of: Callable[[State], str | None]
    """Of the weights as they are deployed; None for a state of another model, such as before a new head."""

    def at(self, part: Slice, state: State) -> Scores:
        """A model's scores, [n]: the mean over repetitions.

        Raises:
            EstimationError: if it was not scored.
        """
        table, digest = self.tables.get(part.behavior.id), self.digest_of(state)
        if table is None or digest is None or digest not in table.scores:
            raise EstimationError(f"'{part.behavior.id}' has no scores of model {digest}")
        mean: Scores = table.scores[digest].mean(0)
        return mean


def noise_of(part: Slice, repeated: list[Scores], *, one: bool = False) -> float:
    """`ScoreTable.noise` of models' scores [k, n], k > 1 each.

    Args:
        part: the examples.
        repeated: of each model.
        one: the noise of one scoring, and not of the mean over k.

    Raises:
        EstimationError: if the statistic is not defined for the scores.
    """
    whole, drawn, freedom = 0.0, 0.0, 0
    generator = np.random.default_rng(0)
    for scores in repeated:
        k, n = scores.shape
        levels = np.array([part.statistic.level(row) for row in scores])
        picks = generator.integers(0, k, size=(200, n))
        mixed = [part.statistic.level(scores[pick, np.arange(n)]) for pick in picks]
        averaged = 1 if one else k
        whole += (k - 1) * float(levels.var(ddof=1)) / averaged
        drawn += k * float(np.var(mixed)) / averaged  # k / (k - 1) of it has no bias
        freedom += k - 1
    return float(np.sqrt(max(whole, drawn) / freedom))


def _require_columns(what: str, frame: pd.DataFrame) -> None:
    for column in (MODEL, EXAMPLE, SCORE):
        if column not in frame:
            raise EvidenceError(
                f"{what}: there is no column '{column}'",
                f"columns are {MODEL}, {EXAMPLE}, {SCORE}, and {REPETITION} where a model was scored again",
            )
    if not len(frame):
        raise EvidenceError(f"{what}: there are no rows", "score the models")


def _models(what: str, frame: pd.DataFrame) -> NDArray[np.object_]:
    values: NDArray[np.object_] = frame[MODEL].to_numpy(dtype=object)
    known = {v for v in set(values) if isinstance(v, str) and DIGEST.fullmatch(v)}
    _refuse(
        what,
        np.array([v not in known for v in values]),
        lambda i: f"{values[i]!r:.100} is no digest of a model",
        "take it from the manifest that auditspec counterfactuals wrote",
    )
    return values


def _numbers(what: str, frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    values = frame[column].to_numpy()
    if values.dtype.kind not in "biuf":
        raise EvidenceError(f"{what}: column '{column}' does not hold numbers", SCORED_AGAIN)
    numbers: NDArray[np.float64] = values.astype(np.float64)
    _refuse(
        what,
        ~np.isfinite(numbers),
        lambda i: f"{column} {numbers[i]} is not finite",
        SCORED_AGAIN,
    )
    return numbers


def _whole(what: str, frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    values = frame[column].to_numpy()
    if values.dtype.kind not in "iu":
        raise EvidenceError(
            f"{what}: column '{column}' does not hold whole numbers",
            "number examples and repetitions from 0, and leave no cell empty",
        )
    return np.asarray(values.astype(np.int64))


def _refuse(what: str, wrong: NDArray[np.bool_], why: Callable[[Any], str], remedy: str) -> None:
    if wrong.any():
        first = int(np.argmax(wrong))
        more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise EvidenceError(f"{what}: row {first}: {why(first)}{more}", remedy)


def _by_model(what: str, rows: pd.DataFrame, part: Slice) -> dict[str, Scores]:
    """Scores [k, n] of the behaviour's examples, all of which every repetition has."""
    found: dict[str, list[Scores]] = {}
    for (model, repetition), group in rows.groupby([MODEL, REPETITION], sort=True):
        scores = group.set_index(EXAMPLE)[SCORE].reindex(part.ids)
        missing = part.ids[scores.isna().to_numpy()]
        if len(missing):
            again = f", repetition {repetition}" if REPETITION in rows and repetition else ""
            raise EvidenceError(
                f"{what}: model {model}{again}: no score of example {missing[0]}"
                + (f", and of {len(missing) - 1} more" if len(missing) > 1 else ""),
                f"score every example of '{part.behavior.id}' ({len(part.ids)}), or remove the model",
            )
        found.setdefault(str(model), []).append(scores.to_numpy(dtype=np.float64))
    return {model: np.stack(scores) for model, scores in found.items()}
