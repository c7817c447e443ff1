"""The study's figures as Markdown, and its odd cases as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from .figures import SETTINGS, Row, Share, cases, common, honest, shares, widths
from .truth import INNOCENTS, Word

TITLES = {
    "limit": "A stated limit, exact replay",
    "reference": "A stated limit and clean reference data, exact replay",
    "quarter": "A stated limit, about a quarter of the gradients",
    "self": "Nothing stated, exact replay",
}
WORDS = get_args(Word)


def calibration_tables(result: dict[str, Any]) -> str:
    """All tables."""
    return "\n".join(_lines(result)) + "\n"


def number(value: float) -> str:
    """A figure in three digits."""
    return "none" if math.isnan(value) else f"{value:.3g}"


def odd_cases(rows: Sequence[Row]) -> Iterator[str]:
    """Every verdict that wronged or cleared somebody, and every audit without a result."""
    for row in honest(rows):
        head = f"seed {row['seed']}, {row['family']}, {row['kind']}, {row['optimizer']}"
        for setting in SETTINGS:
            audited = row["audits"][setting]
            if "error" in audited:
                yield f"{head}: {setting}: exit {audited['exit']}: {audited['error']}"
            for name, held in audited.get("verdicts", {}).items():
                if "read" in held:
                    yield from _odd(f"{head}: {setting}: {name}", held, row["behaviors"][name])


def _odd(head: str, held: Row, truth: Row) -> Iterator[str]:
    named = ", ".join(held["parties"]) or "nobody"
    yield f"{head}: {held['word']}: {held['verdict']} ({held['ending']}), names {named}"
    levels = ", ".join(f"{key} {truth[key]:g}" for key in ("deployed", "base", "limit", "fault"))
    parts = ", ".join(f"{party} {part:g}" for party, part in truth["parts"].items())
    yield f"    {levels}, tolerance {truth['tolerance']:g}; guilty: {parts or 'nobody'}"
    yield f"    tallies {held['tallies']}; {held['read']['reasons']}"
    yield f"    role, rise, effect: {held['read']['roles']}"
    for arm, states in held["read"]["paths"].items():
        yield f"    {arm}: {', '.join(f'{s} {x} ({k})' for s, x, k in states)}"


def _lines(result: dict[str, Any]) -> Iterator[str]:
    rows, seeds = result["pipelines"], result["seeds"]
    versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    domains = Counter(row["domain"] for row in rows)
    yield "# How often verdicts are right"
    yield ""
    yield f"`{result['command']}`; seeds {seeds[0]} to {seeds[-1]}; {versions}."
    yield "[README.md](../README.md#calibration) says what is measured and how to read it."
    yield ""
    faults = len([row for row in honest(rows) if row["planted"]])
    yield f"{len(rows)} pipelines: {', '.join(f'{n} on {d}' for d, n in sorted(domains.items()))};"
    yield f"{faults} with a planted fault, {len(honest(rows)) - faults} without, and"
    yield f"{len(rows) - len(honest(rows))} whose record lies."
    if result["left_out"]:
        yield f"{len(result['left_out'])} left out: transformers is not installed."
    yield ""
    yield from _table(common(rows))
    for setting in SETTINGS:
        yield f"## {TITLES[setting]}"
        yield ""
        yield from _table(shares(rows, setting))
        yield from _words(rows, setting)
    yield from _twins(rows)
    yield from _families(rows)


def _table(found: Sequence[Share]) -> Iterator[str]:
    yield "| figure | measured | counted | bar |"
    yield "|---|---|---|---|"
    for share in found:
        mark = "" if share.reached else " **missed**"
        yield f"| {share.what} | {number(share.value)} | {share.counted} | {share.bar}{mark} |"
    yield ""


def _words(rows: Sequence[Row], setting: str) -> Iterator[str]:
    """What verdicts are worth, by the size of the fault in tolerances."""
    yield f"| fault, tolerances | {' | '.join(WORDS)} |"
    yield f"|---|{'---|' * len(WORDS)}"
    held = cases(rows, setting)
    for name, low, high in (
        ("at most 1", -math.inf, 1.0),
        ("1 to 2", 1.0, 2.0),
        ("2 to 5", 2.0, 5.0),
        ("above 5", 5.0, math.inf),
    ):
        among = Counter(c.word for c in held if low < c.fault <= high)
        yield f"| {name} | {' | '.join(str(among[w]) for w in WORDS)} |"
    yield ""


def _twins(rows: Sequence[Row]) -> Iterator[str]:
    ratios = sorted(stated / true for stated, true in widths(rows) if true)
    yield "## Cost and error of estimates"
    yield ""
    if ratios:
        yield f"Median of stated / true error over {len(ratios)} estimated effects:"
        yield f"{number(ratios[len(ratios) // 2])}."
    for setting in SETTINGS:
        spent = [
            row["audits"][setting]["gradients"] / row["full"]
            for row in honest(rows)
            if "gradients" in row["audits"][setting]
        ]
        if spent and setting in ("limit", "quarter"):
            share = number(sum(spent) / len(spent))
            yield f"`{setting}` took {share} of the gradients of one run and of leaving out"
            yield "each stage once, on average."
    yield ""


def _families(rows: Sequence[Row]) -> Iterator[str]:
    yield "## By family, with a limit and exact replay"
    yield ""
    yield f"| family | {' | '.join(WORDS)} |"
    yield f"|---|{'---|' * len(WORDS)}"
    held = cases(rows, "limit")
    for family in dict.fromkeys(c.family for c in held):
        among = Counter(c.word for c in held if c.family == family)
        odd = " !" if any(among[w] for w in INNOCENTS) else ""
        yield f"| {family}{odd} | {' | '.join(str(among[w] or '') for w in WORDS)} |"
