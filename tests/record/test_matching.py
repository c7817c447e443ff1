"""Rows of batches that were recorded as tensors are told by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from auditspec import Dataset
from auditspec.artifacts.digest import digest_bytes
from auditspec.record.matching import StageRows, holds_rows, rows_of
from auditspec.record.trajectory import Microbatch

FEATURES = ["a", "b", "c", "d"]


def frame(seed: int, rows: int = 300) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    x = pd.DataFrame(draw.normal(size=(rows, 4)), columns=FEATURES)
    return x.assign(y=draw.integers(0, 3, rows))


def dataset(name: str, table: pd.DataFrame) -> Dataset:
    data = Dataset(name, Path(f"{name}.parquet"), digest_bytes(name.encode()))
    return data.disguised(frame=table)


def load_batch(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    rows = data.frame.iloc[list(ids)]
    return torch.tensor(rows[FEATURES].to_numpy()), torch.tensor(rows["y"].to_numpy())


@dataclass
class Step:
    batches: list[Microbatch]


@dataclass
class Stage:
    """What `rows_of` reads of a recorded stage."""

    steps: list[Step] = field(default_factory=list)
    id: str = "one"


CLEAN, OTHER = dataset("clean", frame(0)), dataset("other", frame(1))
DATASETS = {"clean": CLEAN, "other": OTHER}


def tensors(*batches: tuple[Tensor, ...]) -> Any:
    return Stage([Step([Microbatch(None, (), 1.0, {}, batch)]) for batch in batches])


def found(stage: Any, load: Any = load_batch, data: dict[str, Dataset] | None = None) -> StageRows:
    return rows_of(stage, ("clean",), data or DATASETS, load)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x, y),
        lambda x, y: (x.float(), y.int()),
        lambda x, y: (y, x),
        lambda x, y: (x.reshape(-1, 2, 2), y[:, None].double()),
        lambda x, y: (x,),
        lambda x, y: (x.flip(0), y.flip(0)),
    ],
    ids=["same", "narrow", "swapped", "reshaped", "without label", "shuffled"],
)
def test_rows_of_the_declared_data_are_found_whatever_their_form(change: Any) -> None:
    ids = [290, 3, 3, 177]
    rows = found(tensors(change(*load_batch(CLEAN, ids)), change(*load_batch(CLEAN, [5]))))
    assert rows.undeclared == 0
    assert sorted(n for _, n in rows.steps[0]) == sorted(ids)  # type: ignore[type-var]
    assert rows.used == {"clean": {3, 5, 177, 290}}
    assert (rows.seen, rows.held) == (5, 5)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x, (y + 1) % 3),
        lambda x, y: (x + 1e-3, y),
        lambda x, y: (x[:, [1, 0, 2, 3]], y),
        lambda x, y: (x, y, torch.ones(len(y))),
        lambda x, y: (x, y, torch.ones(3)),
        lambda x, y: (x, y, torch.tensor(1.0)),
        lambda x, y: (torch.cat([x, x[:, :1]], dim=1), y),
    ],
    ids=["labels", "noise", "columns", "one tensor more", "constants", "scalar", "wider"],
)
def test_rows_that_were_changed_match_nothing(change: Any) -> None:
    rows = found(tensors(change(*load_batch(CLEAN, range(20, 30)))))
    assert (rows.nowhere, rows.foreign) == (10, {})
    assert rows.used == {}


def test_tensors_must_come_from_one_row() -> None:
    """Features of one row with the label of another are no row, though both are declared."""
    x, y = load_batch(CLEAN, range(40))
    rolled = y.roll(1)
    rows = found(tensors((x, rolled)))
    assert rows.nowhere == int((rolled != y).sum()) > 0


def test_rows_of_data_that_the_stage_does_not_declare_are_named() -> None:
    x, y = load_batch(OTHER, range(6))
    mixed = tuple(torch.cat(pair) for pair in zip(load_batch(CLEAN, [0]), (x, y), strict=True))
    rows = found(tensors(mixed))
    assert (rows.foreign, rows.nowhere, rows.undeclared) == ({"other": 6}, 0, 6)
    by_number = Stage([Step([Microbatch("other", (1, 2), 1.0, {})])])
    assert found(by_number).foreign == {"other": 2}


def words(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Texts of 2 to 6 tokens, padded to the longest of the batch."""
    texts = [torch.arange(2 + n % 5) + n + 1 for n in map(int, ids)]
    labels = torch.tensor([n % 2 for n in map(int, ids)])
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return padded, (padded != 0).long(), labels


def test_batches_that_were_padded_otherwise_are_found_without_their_padding() -> None:
    tokens, mask, labels = words(CLEAN, [0, 7, 11, 14])
    wide = torch.nn.functional.pad(tokens, (0, 5)), torch.nn.functional.pad(mask, (0, 5)), labels
    alone = words(CLEAN, [10])
    rows = found(tensors(wide, alone), words)
    assert rows.undeclared == 0
    assert rows.used == {"clean": {0, 7, 10, 11, 14}}
    tokens[1, 1] = 99
    assert found(tensors((tokens, mask, labels)), words).nowhere == 1


def pairs(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Two answers to each question, as preferences are stacked: all first ones, then all second ones."""
    answers = [torch.arange(4) + n + 1 for n in ids] + [
        torch.arange(3 + n % 3) + 500 + n for n in ids
    ]
    padded = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)
    return padded, (padded != 0).long()


def in_turn(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    tokens, mask = pairs(data, ids)
    order = torch.arange(len(tokens)).reshape(2, -1).T.flatten()
    return tokens[order], mask[order]


@pytest.mark.parametrize("load", [pairs, in_turn])
def test_examples_in_several_rows_are_found(load: Any) -> None:
    ids = [4, 7, 8, 90]
    tokens, mask = load(CLEAN, ids)
    seen = found(tensors((tokens, mask), load(CLEAN, [5])), load, {"clean": CLEAN})
    assert (seen.undeclared, seen.seen, seen.used) == (0, 10, {"clean": {5, *ids}})
    tokens[0, 1] += 7
    assert found(tensors((tokens, mask)), load, {"clean": CLEAN}).nowhere == 1
    batch = load(CLEAN, ids)
    named = Stage([Step([Microbatch("clean", tuple(ids), 1.0, {}, batch)])])
    assert found(named, load).used == {"clean": set(ids)}
    wide = torch.nn.functional.pad(batch[0], (0, 5))
    assert [holds_rows(b, load, CLEAN, ids) for b in (batch, wide, wide + 1)] == [True, True, False]
    assert not holds_rows(batch, load, CLEAN, [4, 7, 8, 91])


def test_a_count_that_a_trainer_puts_beside_padded_rows_is_no_row() -> None:
    """What `Trainer` counts over a whole step stands in every batch of it (bergson#198)."""
    tokens, _, labels = words(CLEAN, [0, 7, 11, 14])
    wide = {"ids": torch.nn.functional.pad(tokens, (0, 5)), "labels": labels}
    counted = wide | {"num_items_in_batch": torch.tensor(9)}
    stage = Stage([Step([Microbatch(None, (), 1.0, {}, counted)])])
    assert found(stage, words).used == {"clean": {0, 7, 11, 14}}
    other = wide | {"label": torch.tensor(9)}
    assert found(Stage([Step([Microbatch(None, (), 1.0, {}, other)])]), words).nowhere == 4


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        (lambda b: b, True),
        (lambda b: {"x": torch.nn.functional.pad(b[0], (0, 5)), "n": torch.tensor(3)}, True),
        (lambda b: [t.flip(0) for t in b], True),
        (lambda b: {"tokens": b[0], "mask": b[1], "labels": b[2]}, True),
        (lambda b: (b[0], 1 - b[2]), False),
        (lambda b: words(CLEAN, [1, 7, 11]), False),
        (lambda b: torch.tensor(1.0), False),
    ],
    ids=["as loaded", "padded", "in another order", "named", "labels", "another row", "no rows"],
)
def test_whether_a_batch_holds_the_rows_that_it_is_said_to(change: Any, holds: bool) -> None:
    ids = [0, 7, 11]
    assert holds_rows(change(words(CLEAN, ids)), words, CLEAN, ids) is holds


def test_a_batch_that_names_no_rows_is_looked_for() -> None:
    """Even where load_batch gives a tensor for no rows."""
    nameless = Stage([Step([Microbatch("clean", (), 1.0, {}, load_batch(CLEAN, [3]))])])

    def load(data: Dataset, ids: Sequence[int]) -> tuple[Tensor, ...]:
        return (*load_batch(data, ids), torch.ones(7))

    assert found(nameless, load).used == {"clean": {3}}


def test_data_that_is_no_table_is_read_until_it_ends(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"rows")
    data = Dataset.open(tmp_path / "x.npy", "clean")
    rows = torch.arange(40.0).reshape(10, 4)

    def load(held: Dataset, ids: Sequence[int]) -> Tensor:
        return rows[list(ids)]

    seen = found(tensors((rows[[9, 2]],), (rows[[1]] + 1,)), load, {"clean": data})
    assert (seen.used, seen.nowhere) == ({"clean": {2, 9}}, 1)


def test_data_that_cannot_be_loaded_says_why() -> None:
    def fails(data: Dataset, ids: Sequence[int]) -> Tensor:
        raise KeyError("pixels")

    rows = found(tensors(load_batch(CLEAN, [1])), fails)
    assert rows.nowhere == 1
    assert "KeyError: 'pixels'" in rows.unreadable["clean"]
