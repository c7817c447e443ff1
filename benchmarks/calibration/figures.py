"""From rows to the figures that the bars are held against: plain arithmetic, no torch.

A *case* is one behaviour of one honest audit in one arm, with its effects signed towards the concern.
A case has a guilty stage where some exact effect is above the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import median

Row = dict[str, Any]
ARMS = ("quarter", "lifted")
NAMED, FALSE, CAUTION, COVERED, WIDTH, POWER = 0.97, 0.05, 0.95, 0.90, 3.0, 0.60
WRONG = 0.5
"""An estimate is bad where it is off by more than this part of the leading effect."""
POWERFUL = 2.0
"""Power is asked for where the leading effect exceeds this many tolerances."""


@dataclass(frozen=True)
class Figure:
    """One figure, beside its bar where it has one."""

    what: str
    value: float
    """NaN where there was nothing to count."""
    counted: str
    """`58 of 59`, or how many were looked at."""
    limit: float | None = None
    at_least: bool = False
    may_be_empty: bool = False
    """Whether it is fine that there was nothing to count."""

    @property
    def reached(self) -> bool:
        """Whether it reaches its bar; one without a bar always does."""
        if self.limit is None or (self.may_be_empty and math.isnan(self.value)):
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Share:
    """A share, by what it counts."""

    what: str
    hits: int
    of: int
    limit: float | None = None
    at_least: bool = False
    may_be_empty: bool = False

    @property
    def figure(self) -> Figure:
        """The share as a figure."""
        value = self.hits / self.of if self.of else math.nan
        counted = f"{self.hits} of {self.of}"
        return Figure(self.what, value, counted, self.limit, self.at_least, self.may_be_empty)


@dataclass(frozen=True)
class Case:
    """One behaviour of one audit in one arm; lists are over stages, effects towards the concern."""

    seed: int
    tolerance: float
    exact: tuple[float, ...]
    pool: tuple[float, ...]
    """The same on the pool."""
    noise: float
    """The pool is a sample itself: √(1 + n / m), n examples beside m of the pool."""
    verdict: str
    named: tuple[int, ...]
    settle: int
    """How many things are said to settle it."""
    estimated: tuple[bool, ...]
    """Whether the effect in use is an estimate, not an exact replay."""
    value: tuple[float, ...]
    """In use."""
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    error: tuple[float | None, ...]
    """The estimator's own error that the interval includes."""
    raw: tuple[float | None, ...]
    """As estimated, before a spot check; None for a stage that was never estimated."""
    rms: tuple[float | None, ...]
    """RMS over examples of what was estimated less the exact effect."""
    own: tuple[float | None, ...]
    """The twin's estimate of that."""

    @property
    def leading(self) -> float:
        """The largest exact effect towards the concern."""
        return max(self.exact)

    @property
    def guilty(self) -> bool:
        """Whether an exact effect is above the tolerance."""
        return self.leading > self.tolerance

    def right(self, effects: Sequence[float]) -> bool:
        """Whether the named stage leads these effects, above the tolerance."""
        (stage,) = self.named
        return effects[stage] == max(effects) and effects[stage] > self.tolerance

    @property
    def scale(self) -> float:
        """The leading effect, or the tolerance where that is larger: errors below it change nothing."""
        return max(self.leading, self.tolerance)

    @property
    def misjudged(self) -> bool:
        """Whether an effect in use is wrong about its reach towards the concern by half the scale."""
        return any(
            abs(max(v, 0.0) - max(e, 0.0)) > WRONG * self.scale
            for v, e in zip(self.value, self.exact, strict=True)
        )

    @property
    def off(self) -> bool:
        """Whether an effect in use, harmless ones included, is wrong by half the scale."""
        return any(
            abs(v - e) > WRONG * self.scale for v, e in zip(self.value, self.exact, strict=True)
        )

    @property
    def badly_estimated(self) -> bool:
        """Whether any estimate, one that a spot check replaced included, was so."""
        return any(
            r is not None and abs(r - e) > WRONG * self.scale
            for r, e in zip(self.raw, self.exact, strict=True)
        )


def cases(rows: Iterable[Row], arm: str) -> list[Case]:
    """Every behaviour of every honest audit that gave an estimate in this arm."""
    return list(_cases(rows, arm))


def _cases(rows: Iterable[Row], arm: str) -> Iterator[Case]:
    for row in rows:
        held = row.get(arm)
        if row["lie"] is not None or not isinstance(held, dict):
            continue
        for behavior in row["behaviors"]:
            found = held["verdicts"][behavior["id"]]
            if "value" not in found:
                continue
            up = behavior["direction"] == "increase"
            none = (None,) * len(behavior["exact"])
            low, high = (found["low"], found["high"])
            yield Case(
                seed=row["seed"],
                tolerance=behavior["tolerance"],
                exact=_signed(behavior["exact"], up),
                pool=_signed(behavior["pool"], up),
                noise=math.sqrt(1 + behavior["examples"] / behavior["pool_examples"]),
                verdict=found["verdict"],
                named=tuple(found["stages"]),
                settle=found["settle"],
                estimated=tuple(method != "replay" for method in held["methods"]),
                value=_signed(found["value"], up),
                low=_signed(low if up else high, up),
                high=_signed(high if up else low, up),
                error=tuple(found["error"]),
                raw=_signed(found["raw"], up) if "raw" in found else none,
                rms=tuple(found.get("rms", none)),
                own=tuple(found.get("own", none)),
            )


def shares(rows: Sequence[Row], arm: str) -> list[Share]:
    """Every figure that is a share."""
    held = cases(rows, arm)
    attributed = [c for c in held if c.verdict == "attributed"]
    innocent = [c for c in held if not c.guilty]
    clean = _by_audit(held, lambda c: not c.guilty)
    spotless = _by_audit(held, lambda c: max(c.pool) <= c.tolerance)
    strong = [c for c in held if c.leading > POWERFUL * c.tolerance]
    rest = [c for c in strong if c.verdict != "attributed"]
    own, interval = own_errors(held), pool_errors(held)
    whole = _by_audit(held, lambda c: None not in c.low)
    found = [
        _share(
            "attributed: names the stage that exact replay names",
            attributed,
            lambda c: c.right(c.exact),
            NAMED,
            at_least=True,
        ),
        _share(
            "attributed: that stage leads on the pool too", attributed, lambda c: c.right(c.pool)
        ),
        _share(
            "attributed: that stage is above the tolerance on the pool",
            attributed,
            lambda c: c.pool[c.named[0]] > c.tolerance,
        ),
        _share(
            "no guilty stage: audits with an attributed verdict",
            clean,
            lambda group: any(c.verdict == "attributed" for c in group),
            FALSE,
        ),
        _share(
            "no guilty stage: behaviours attributed", innocent, lambda c: c.verdict == "attributed"
        ),
        _share(
            "no guilty stage on the pool: audits with an attributed verdict",
            spotless,
            lambda group: any(c.verdict == "attributed" for c in group),
        ),
        _share(
            "leading effect above 2 tolerances: attributed",
            strong,
            lambda c: c.verdict == "attributed",
            POWER,
            at_least=True,
        ),
        _share(
            "… of the rest: says what would settle it",
            rest,
            lambda c: c.settle > 0,
            1.0,
            at_least=True,
            may_be_empty=bool(strong),
        ),
        _share(
            "interval: exact effect on the pool covered", interval, lambda pair: pair[0] >= pair[1]
        ),
        _share("… of all stages and behaviours of an audit at once", whole, _covers_all),
    ]
    if arm == "quarter":
        found += [
            _share(
                "effect in use wrong by half: not attributed, not acquitted",
                [c for c in held if c.misjudged],
                _cautious,
                CAUTION,
                at_least=True,
                may_be_empty=bool(held),
            ),
            _share("… harmless stages counted too", [c for c in held if c.off], _cautious),
            _share(
                "… estimates that the spot check replaced counted too",
                [c for c in held if c.badly_estimated],
                _cautious,
            ),
            _share(
                "own error: true error over examples covered",
                own,
                lambda pair: pair[0] >= pair[1],
                COVERED,
                at_least=True,
            ),
        ]
    return found


def figures(rows: Sequence[Row], arm: str) -> list[Figure]:
    """Every figure of an arm, shares first."""
    held = cases(rows, arm)
    found = [share.figure for share in shares(rows, arm)]
    interval = [width / error for width, error in pool_errors(held) if error]
    found.append(
        Figure(
            "interval: median of half-width / true error on the pool",
            median(interval),
            f"{len(interval)} effects",
        )
    )
    if arm == "quarter":
        own = [estimated / true for estimated, true in own_errors(held) if true]
        found.append(
            Figure(
                "own error: median of estimated / true", median(own), f"{len(own)} effects", WIDTH
            )
        )
    return found


def caught(rows: Sequence[Row]) -> Figure:
    """Records that lie: every verdict inconclusive, and the exit code 3."""
    lies = [row for row in rows if row["lie"] is not None]
    return _share("records that lie: caught", lies, is_caught, 1.0, at_least=True).figure


def is_caught(row: Row) -> bool:
    """Whether an audit of a record that lies stopped at the evidence."""
    held = row["quarter"]
    return (
        isinstance(held, dict)
        and held["exit"] == 3
        and all(v["verdict"] == "inconclusive" for v in held["verdicts"].values())
    )


def gave_estimates(rows: Sequence[Row], arm: str) -> Figure:
    """Honest audits whose evidence was believed, and whose estimate was not refused."""
    honest = [row for row in rows if row["lie"] is None]
    return _share(
        "honest audits that gave an estimate",
        honest,
        lambda row: isinstance(row.get(arm), dict) and row[arm]["exit"] not in (3, 4),
        1.0,
        at_least=True,
    ).figure


def own_errors(held: Iterable[Case]) -> list[tuple[float, float]]:
    """(error in use, true error over examples) of every effect that is in use as estimated."""
    return [
        (error, rms)
        for case in held
        for estimated, error, rms in zip(case.estimated, case.error, case.rms, strict=True)
        if estimated and error is not None and rms is not None
    ]


def pool_errors(held: Iterable[Case]) -> list[tuple[float, float]]:
    """(half-width, distance of the interval's middle from the pool's exact effect) of every effect.

    The half-width is widened by the pool's own noise.
    """
    return [
        (case.noise * (high - low) / 2, abs((high + low) / 2 - pool))
        for case in held
        for low, high, pool in zip(case.low, case.high, case.pool, strict=True)
        if low is not None and high is not None
    ]


def _covers_all(audit: Sequence[Case]) -> bool:
    return all(width >= error for width, error in pool_errors(audit))


def _cautious(case: Case) -> bool:
    return case.verdict in ("inconclusive", "shared")


def _by_audit(held: Iterable[Case], keep: Callable[[Case], bool]) -> list[list[Case]]:
    """The audits of which every behaviour is to be kept."""
    groups: dict[int, list[Case]] = {}
    for case in held:
        groups.setdefault(case.seed, []).append(case)
    return [group for group in groups.values() if all(map(keep, group))]


def _share(
    what: str,
    among: Sequence[Any],
    hit: Callable[[Any], bool],
    limit: float | None = None,
    *,
    at_least: bool = False,
    may_be_empty: bool = False,
) -> Share:
    return Share(what, sum(map(bool, map(hit, among))), len(among), limit, at_least, may_be_empty)


def _signed(values: Sequence[float | None], up: bool) -> Any:
    return tuple(v if v is None or up else -v for v in values)
