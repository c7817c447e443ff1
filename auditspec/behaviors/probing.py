"""Whether the training code treats evaluation rows as it treats training rows: a few experiments.

`load_batch` must give the same batch for the same rows whatever the data set is called, in whatever
order and company they are asked for; `predict` must not read the label; and what `load_batch` does to
the columns of training rows, where that is a scale and shift of each, must be what it does to those of
evaluation rows. Code that tells rows apart by their content alone passes all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.rows import leaves_of
from auditspec.behaviors.bound import Slice
from auditspec.errors import EvidenceError
from auditspec.messages import Message, message
from auditspec.record.matching import LoadBatch
from auditspec.results import Outcome

PROBED = 64
"""Evaluation rows of each data set that the experiments load."""
FITTED = 512
"""Training rows on which what `load_batch` does to the columns is fitted."""
EXACT = 1e-4
"""Largest deviation, in shares of a column's largest value, that rounding may explain."""


@dataclass(frozen=True)
class Probe:
    """What one experiment showed."""

    subject: str
    outcome: Outcome
    note: Message


@contextmanager
def undisturbed(seed: int = 0) -> Iterator[None]:
    """Random numbers from a seed inside; afterwards every generator is where it was."""
    numpy, plain = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed)  # the audited code may draw from it
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(plain)


def probes(
    slices: Mapping[str, Slice],
    training: Sequence[Dataset],
    labels: Mapping[str, str | None],
    load_batch: LoadBatch,
    read: Callable[[Any], Tensor] | None,
) -> Iterator[Probe]:
    """Every experiment, on each data set that behaviours are read on.

    Args:
        slices: by behaviour.
        training: data sets that the stages were trained on.
        labels: the column of true classes, by data set, where one is named.
        load_batch: the training code's.
        read: (batch) -> what the deployed model predicts; None where no behaviour is read so.
    """
    by_dataset: dict[str, list[Slice]] = {}
    for part in slices.values():
        by_dataset.setdefault(part.dataset.name, []).append(part)
    for name, parts in by_dataset.items():
        dataset = parts[0].dataset
        every = np.unique(np.concatenate([part.ids for part in parts]))
        spread = np.linspace(0, len(every) - 1, min(PROBED, len(every))).round().astype(int)
        ids = every[spread].tolist()
        others = [d for d in training if d.digest != dataset.digest]
        lab = _Laboratory(dataset, ids, load_batch)
        yield from lab.steady()
        if lab.base is None:
            continue
        yield from lab.named(others)
        if not lab.random:
            yield from lab.ordered()
        if read is not None and labels.get(name) is not None:
            yield from lab.unlabelled(str(labels[name]), read)
        if others and not lab.random:
            yield _by_columns(dataset, every.tolist(), others[0], labels, load_batch)


class _Laboratory:
    """Experiments on a few rows of one data set."""

    def __init__(self, dataset: Dataset, ids: list[int], load_batch: LoadBatch) -> None:
        self.dataset, self.ids, self.load_batch = dataset, ids, load_batch
        self.base: list[Tensor] | None = None
        self.random = False

    def steady(self) -> Iterator[Probe]:
        """Two loads from one random state agree; from two, they show whether numbers are drawn."""
        self.base = self._load(self.dataset)
        what = f"loading {self.dataset.name}"
        if not _same(self.base, self._load(self.dataset)):
            yield Probe(
                what,
                "fail",
                message("loads-differ-each-time"),
            )
            self.base = None
        elif not _same(self.base, self._load(self.dataset, seed=1)):
            self.random = True
            yield Probe(
                what,
                "inconclusive",
                message("loads-draw-numbers"),
            )

    def named(self, others: Sequence[Dataset]) -> Iterator[Probe]:
        """The same rows under the name, and at the path, of training data."""
        if not others:
            return
        what = f"{self.dataset.name} under the name of training data"
        for other in others:
            alias = self.dataset.disguised(name=other.name, digest=other.digest)
            differs = self._differs(alias)
            if differs is not None:
                note = message("loads-go-by-name", dataset=other.name, how=differs)
                yield Probe(what, "fail", note)
                return
        moved = self.dataset.disguised(path=others[0].path)
        if self._differs(moved) is not None:
            yield Probe(what, "inconclusive", message("loads-go-by-path"))
            return
        yield Probe(what, "pass", message("loads-alike", rows=len(self.ids)))

    def ordered(self) -> Iterator[Probe]:
        """The same rows in reverse, and every other one of them."""
        assert self.base is not None  # noqa: S101 - `steady` loaded it
        what = f"{self.dataset.name} in another order"
        for pick, order in ((slice(None, None, -1), "reverse"), (slice(None, None, 2), "fewer")):
            chosen = self.ids[pick]
            wanted = [
                t[torch.arange(len(self.ids))[:: pick.step]] if pick.step > 0 else t.flip(0)
                for t in self.base
            ]
            found = self._load(self.dataset, ids=chosen)
            if [t.shape for t in found] != [t.shape for t in wanted]:
                continue  # padded to another width
            if not _same(found, wanted):
                yield Probe(what, "fail", message("loads-go-by-company", order=order))
                return
        yield Probe(what, "pass", message("rows-loaded-alike"))

    def unlabelled(self, label: str, read: Callable[[Any], Tensor]) -> Iterator[Probe]:
        """The label column moved on by one among the rows: no prediction may change."""
        frame = self.dataset.frame.copy()
        column = list(frame.columns).index(label)
        values = frame.iloc[self.ids, column].to_numpy()
        order = np.argsort(values, kind="stable")
        shifted = values.copy()
        shifted[order] = np.roll(values[order], max(1, len(values) // 2))
        frame.iloc[self.ids, column] = shifted
        with undisturbed():
            plain = read(self.load_batch(self.dataset, list(self.ids)))
        with undisturbed():
            other = read(self.load_batch(self.dataset.disguised(frame=frame), list(self.ids)))
        what = f"predictions on {self.dataset.name} without its label"
        if torch.equal(plain, other):
            yield Probe(what, "pass", message("label-not-read"))
            return
        odd = int((plain != other).reshape(len(plain), -1).any(1).sum())
        yield Probe(what, "fail", message("label-read", changed=odd, predictions=len(plain)))

    def _differs(self, alias: Dataset) -> Message | None:
        try:
            found = self._load(alias)
        except Exception as error:
            return message("it-raises", error=f"{type(error).__name__}: {error}")
        assert self.base is not None  # noqa: S101 - `steady` loaded it
        return None if _same(found, self.base) else message("it-gives-other-tensors")

    def _load(self, dataset: Dataset, seed: int = 0, ids: list[int] | None = None) -> list[Tensor]:
        with undisturbed(seed):
            return [t.clone() for t in leaves_of(self.load_batch(dataset, ids or list(self.ids)))]


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(left, right, strict=True)
    )


def _by_columns(
    dataset: Dataset,
    ids: list[int],
    training: Dataset,
    labels: Mapping[str, str | None],
    load_batch: LoadBatch,
) -> Probe:
    """Apply to evaluation rows what `load_batch` does to the columns of training rows."""
    what = f"columns of {dataset.name}, read by the audit itself"
    open_ = Probe(what, "inconclusive", message("inputs-rest-on-code"))
    try:
        left, right = dataset.frame, training.frame
        but = {labels.get(dataset.name), labels.get(training.name)} - {None}
        names = [c for c in right.columns if c in left.columns and c not in but]
        taught = right[names].select_dtypes(["number", "bool"])
        asked = left[list(taught.columns)].to_numpy(np.float64)
        rows = np.linspace(0, len(right) - 1, min(FITTED, len(right))).round().astype(int)
        with undisturbed():
            seen = leaves_of(load_batch(training, rows.tolist()))
        with undisturbed():
            shown = leaves_of(load_batch(dataset, list(ids)))
    except (EvidenceError, ValueError, TypeError, KeyError):
        return open_
    x = taught.to_numpy(np.float64)[rows]
    for one, two in zip(seen, shown, strict=False):
        y, z = _matrix(one, len(rows)), _matrix(two, len(ids))
        if y is not None and z is not None and y.shape[1] == z.shape[1] > 1:
            odd = _odd_rows(x, y, asked[ids], z)
            if odd is None:
                continue
            if odd:
                return Probe(what, "fail", message("rows-made-otherwise", odd=odd, rows=len(ids)))
            return Probe(what, "pass", message("inputs-are-columns", rows=len(ids)))
    return open_


def _matrix(tensor: Tensor, rows: int) -> NDArray[np.float64] | None:
    """The numbers of a tensor as [rows, numbers of a row]; None where they are not of so many rows."""
    if not tensor.numel() or tensor.numel() % rows:
        return None
    return tensor.detach().cpu().double().reshape(rows, -1).numpy()


def _odd_rows(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    asked: NDArray[np.float64],
    z: NDArray[np.float64],
) -> int | None:
    """Rows of z that no y = a x + b gives, fitted for every input on each column that it is a scale and shift of.

    Args:
        x: columns of training rows [n, c].
        y: what is made of them [n, k]; inputs that do not vary are left out.
        asked: the same columns of other rows [m, c].
        z: what is made of those [m, k].

    Returns:
        Rows of z; None where an input is no column.
    """
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        return None
    varying = y.std(axis=0) > 0
    y, z = y[:, varying], z[:, varying]
    columns, inputs = _standard(x), _standard(y)
    like = np.abs(columns.T @ inputs) > len(x) * (1 - EXACT)
    odd = np.zeros(len(z), dtype=bool)
    for place in range(y.shape[1]):
        fits = [
            _off(x[:, c], y[:, place], asked[:, c], z[:, place])
            for c in np.flatnonzero(like[:, place])
        ]
        off = [row for row in fits if row is not None]
        if not off:
            return None
        odd |= np.all(off, axis=0)
    return int(odd.sum()) if y.shape[1] else None


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns less their mean, over their standard deviation; 0 where it is 0."""
    spread = values.std(axis=0)
    standard: NDArray[np.float64] = (values - values.mean(axis=0)) / np.where(
        spread, spread, np.inf
    )
    return standard


def _off(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    asked: NDArray[np.float64],
    z: NDArray[np.float64],
) -> NDArray[np.bool_] | None:
    """Which of z [m] the line through x and y [n] does not give of `asked` [m]; None where they lie on no line."""
    a = ((x - x.mean()) * (y - y.mean())).mean() / x.var()
    b = y.mean() - a * x.mean()
    scale = np.abs(y).max() + np.abs(b)
    if (np.abs(a * x + b - y) > EXACT * scale).any():
        return None
    off: NDArray[np.bool_] = np.abs(a * asked + b - z) > EXACT * np.maximum(scale, np.abs(z))
    return off | ~np.isfinite(z)


def deployed(
    model: nn.Module, predict: Callable[[nn.Module, Any], Tensor]
) -> Callable[[Any], Tensor]:
    """(batch) -> predictions of a model in eval mode, as they come."""

    def read(batch: Any) -> Tensor:
        mode = model.training
        model.eval()
        try:
            with torch.no_grad():
                return predict(model, batch).detach().clone()
        finally:
            model.train(mode)

    return read
