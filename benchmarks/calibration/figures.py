"""From rows to the figures that the bars are held against: plain arithmetic, no torch.

A *case* is one behaviour of one honest pipeline in one setting. It is *faulty* where exact retraining
finds a fault larger than the tolerance, and *beyond* where the deployed model is also beyond the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .truth import BORDER, INNOCENTS

Row = dict[str, Any]
SETTINGS = ("limit", "reference", "quarter", "self")
"""What the auditor states, and what may be spent (`audits.py`)."""
BARS: dict[str, dict[str, float]] = {
    "limit": {"innocents": 0.01, "missed": 0.0, "right": 0.60, "guilty": 0.80, "acquitted": 0.85},
    "reference": {
        "innocents": 0.01,
        "missed": 0.0,
        "right": 0.70,
        "guilty": 0.80,
        "acquitted": 0.85,
    },
    "quarter": {"innocents": 0.01, "missed": 0.01, "guilty": 0.60, "acquitted": 0.65},
    "self": {},
}
COVERED = 0.90
"""Share of the estimated effects whose true error their stated one has to cover."""


@dataclass(frozen=True)
class Share:
    """One figure: how many of how many, beside its bar where it has one."""

    key: str
    what: str
    hits: int
    of: int
    pipelines: int
    """How many pipelines these are of: what is counted in one pipeline hangs together."""
    limit: float | None = None
    at_least: bool = True

    @property
    def value(self) -> float:
        """NaN where there was nothing to count."""
        return self.hits / self.of if self.of else math.nan

    @property
    def counted(self) -> str:
        return f"{self.hits} of {self.of}"

    @property
    def bar(self) -> str:
        """What it is held against."""
        if self.limit is None:
            return "no bar"
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"

    @property
    def reached(self) -> bool:
        """Whether it reaches its bar; one without a bar always does."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Case:
    """What one setting's audit said of one behaviour, beside the truth."""

    seed: int
    family: str
    behavior: str
    fault: float
    """In tolerances."""
    faulty: bool
    beyond: bool
    word: str
    verdict: str
    named: tuple[str, ...]


def honest(rows: Iterable[Row]) -> list[Row]:
    """Pipelines whose records do not lie."""
    return [row for row in rows if row["lie"] is None]


def cases(rows: Iterable[Row], setting: str) -> list[Case]:
    """Every behaviour of every honest pipeline that was audited in a setting."""
    return list(_cases(rows, setting))


def _cases(rows: Iterable[Row], setting: str) -> Iterator[Case]:
    for row in honest(rows):
        for name, held in row["audits"][setting].get("verdicts", {}).items():
            truth = row["behaviors"][name]
            yield Case(
                seed=row["seed"],
                family=row["family"],
                behavior=name,
                fault=truth["fault"] / truth["tolerance"],
                faulty=truth["faulty"],
                beyond=truth["beyond"],
                word=held["word"],
                verdict=held["verdict"],
                named=tuple(held["parties"]),
            )


def shares(rows: Sequence[Row], setting: str) -> list[Share]:
    """Every figure of a setting."""
    held, bars = cases(rows, setting), BARS[setting]
    limited = setting != "self"
    faulty = [c for c in held if c.faulty and (c.beyond or not limited)]
    within = [c for c in held if c.faulty and not c.beyond]
    innocent = [c for c in held if c.fault <= BORDER]
    where = "fault beyond the limit" if limited else "fault"
    found = [
        _share(
            "innocents",
            "behaviours for which an innocent was named or accused",
            held,
            lambda c: c.word in INNOCENTS,
            bars,
            at_least=False,
        ),
        _share(
            "missed",
            f"{where}: cleared",
            faulty,
            lambda c: c.word == "missed",
            bars,
            at_least=False,
        ),
        _share("right", f"{where}: named exactly", faulty, lambda c: c.word == "right", bars),
        _share(
            "guilty",
            f"{where}: named, and nobody but the guilty",
            faulty,
            lambda c: c.word in ("right", "part"),
            bars,
        ),
        _share("acquitted", "no fault: acquitted", innocent, lambda c: c.word == "acquitted", bars),
    ]
    if limited:
        found.append(
            _share(
                "within",
                "fault within the limit: nobody wronged",
                within,
                lambda c: c.word not in INNOCENTS,
                {},
            )
        )
    found += [_starts(rows, setting), _copies(rows, setting)]
    if setting == "quarter":
        found += coverage(rows)
    return found


def common(rows: Sequence[Row]) -> list[Share]:
    """What is not of one setting: lies, and audits that ended without a result."""
    sound = [(row, name) for row in honest(rows) for name in SETTINGS]
    lies = [row for row in rows if row["lie"] is not None]
    return [
        _count(
            "ended",
            "audits of a sound record that gave a result",
            sound,
            lambda pair: pair[0]["audits"][pair[1]]["exit"] in (0, 1, 5),
            1.0,
            len(honest(rows)),
        ),
        _count("lies", "records that lie: caught", lies, is_caught, 1.0, len(lies)),
    ]


def coverage(rows: Sequence[Row]) -> list[Share]:
    """How often an estimated effect is as close to the exact one as it says, by how the run began."""
    found = []
    for key, what, kinds in (
        ("twin", "from given weights", ("given",)),
        ("twin-random", "from random starts", ("random", "planted", "smuggled")),
    ):
        held = [row for row in honest(rows) if row["start"] in kinds and row["errors"]]
        errors = [error for row in held for error in row["errors"]]
        found.append(
            _count(
                key,
                f"stated error covers the true one, {what}",
                errors,
                lambda e: e["stated"] >= e["true"],
                COVERED,
                len(held),
            )
        )
    return found


def widths(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(stated, true) error of every estimated effect."""
    return [(e["stated"], e["true"]) for row in honest(rows) for e in row["errors"]]


def all_shares(rows: Sequence[Row]) -> list[tuple[str, Share]]:
    """(setting, figure) of everything that is held against a bar or shown beside."""
    found = [("all", share) for share in common(rows)]
    return found + [(setting, s) for setting in SETTINGS for s in shares(rows, setting)]


def is_caught(row: Row) -> bool:
    """Whether the audit of a record that lies stopped at the evidence."""
    held = row["audits"]["limit"]
    return held["exit"] == 3 and all(
        v["verdict"] == "inconclusive" for v in held["verdicts"].values()
    )


def _starts(rows: Sequence[Row], setting: str) -> Share:
    """Poisoned starts whose fault shows in the deployed model."""
    faulty = [
        row
        for row in _audited(rows, setting)
        if "weights:initial" in row["planted"]
        and any("weights:initial" in b["must"] and b["beyond"] for b in row["behaviors"].values())
    ]
    return _greens("starts", "poisoned start: audits that pass green", faulty, setting)


def _copies(rows: Sequence[Row], setting: str) -> Share:
    """Faults that were there before a change that copies trained layers, and still are."""
    faulty = [
        row
        for row in _audited(rows, setting)
        if row["family"] == "copy-after-vendor"
        and any(b["faulty"] and b["beyond"] for b in row["behaviors"].values())
    ]
    return _greens(
        "copies", "fault behind a copying change: audits that pass green", faulty, setting
    )


def _greens(key: str, what: str, rows: Sequence[Row], setting: str) -> Share:
    hits = sum(row["audits"][setting]["green"] for row in rows)
    return Share(key, what, hits, len(rows), len(rows), 0.0, at_least=False)


def _audited(rows: Sequence[Row], setting: str) -> list[Row]:
    return [row for row in honest(rows) if "verdicts" in row["audits"][setting]]


def _share(
    key: str,
    what: str,
    among: Sequence[Case],
    hit: Callable[[Case], bool],
    bars: dict[str, float],
    *,
    at_least: bool = True,
) -> Share:
    pipelines = len({case.seed for case in among})
    return Share(
        key, what, sum(map(hit, among)), len(among), pipelines, bars.get(key), at_least=at_least
    )


def _count(
    key: str,
    what: str,
    among: Sequence[Any],
    hit: Callable[[Any], bool],
    limit: float,
    pipelines: int,
) -> Share:
    return Share(key, what, sum(map(bool, map(hit, among))), len(among), pipelines, limit)
