"""The ladder's numbers as Markdown: an overview, then one setting after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from .bars import PAIRED, Result, leading_share, runs, twin_cases, twin_coverage, twin_width
from .metrics import median

OVERVIEW = (
    "zero",
    "none",
    "checkpoint-difference",
    "gradient-dot-products",
    "first-order",
    "first-order, plug-in",
    "displacement",
    "krylov",
    *PAIRED,
)


def ladder_tables(result: Result) -> str:
    """All tables."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: Result) -> Iterator[str]:
    seeds = ", ".join(map(str, result["seeds"]))
    versions = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    yield "# The ladder of estimators, measured"
    yield ""
    yield f"`{result['command']}`; seeds {seeds}; {versions}. Medians over seeds."
    yield "[README.md](../README.md) says what is measured and how to read it."
    yield ""
    yield "## Error over the middle stages"
    yield ""
    yield "‖estimate − exact‖ / ‖exact‖ over evaluation rows × stages but the first and the last."
    yield "Predicting no effect scores 1."
    yield ""
    ran = {n: s for n, s in result["settings"].items() if not _not_run(s)}
    yield from _table(
        ["estimator", *(s["title"] for s in ran.values())],
        (
            [name, *(_figure(result, name, s, "error_middle") for s in ran)]
            for name in _present(result, OVERVIEW)
        ),
    )
    yield "Cost in minibatch gradients, exact replay of all stages = 1:"
    yield ""
    yield from _table(
        ["estimator", *(s["title"] for s in ran.values())],
        (
            [name, *(_figure(result, name, s, "cost") for s in ran)]
            for name in _present(result, OVERVIEW)
        ),
    )
    yield "## Leading stage"
    yield ""
    yield "Share of the behaviours whose leading stage among the middle stages is named rightly,"
    yield "of those whose exact margin exceeds its bootstrap interval; over all seeds."
    yield ""
    yield from _table(
        ["estimator", *(s["title"] for s in ran.values()), "all settings"],
        (
            [
                name,
                *(_number(leading_share(result, estimator=name, setting=s)) for s in ran),
                _number(leading_share(result, estimator=name)),
            ]
            for name in _present(result, (*OVERVIEW, "auto 1/4"))
        ),
    )
    yield "## Error estimates of paired replay"
    yield ""
    yield "Over stages × seeds: share whose true error the twin's estimate covers, and the median of"
    yield "estimated / true error."
    yield ""
    yield from _table(
        ["setting", *PAIRED],
        (
            [title, *(_twin(result, name, s) for name in PAIRED)]
            for s, title in [*((n, s["title"]) for n, s in ran.items()), (None, "all settings")]
        ),
    )
    for name, setting in result["settings"].items():
        yield from _setting(result, name, setting)
    yield from _costs(result["costs"])
    yield from _peers(result["peers"])


def _setting(result: Result, name: str, setting: dict[str, Any]) -> Iterator[str]:
    yield f"## {setting['title']} (`{name}`)"
    yield ""
    if reason := _not_run(setting):
        yield f"Not run: {reason}"
        yield ""
        return
    first = next(iter(setting["seeds"].values()))
    steps = " + ".join(map(str, setting["steps"]))
    exact = median([s["exact"]["cpu"] for s in setting["seeds"].values()])
    yield f"Steps {steps}; planted fault in `{setting['fault']}`. Exact replay of all stages:"
    yield f"{first['exact']['gradients']:,.0f} gradients, {exact:.2g} s of CPU time."
    yield ""
    names = list(dict.fromkeys(n for s in setting["seeds"].values() for n in s["estimators"]))
    columns = ["error, all", "middle", "smallest–largest", "Pearson", "Spearman"]
    yield from _table(
        ["estimator", *columns, "leading", "gradients", "CPU time", "memory, MB"],
        (_row(result, n, name, setting) for n in names),
    )
    yield "Error per stage:"
    yield ""
    stages = first["stages"][:-1]
    yield from _table(
        ["estimator", *stages],
        (
            [n, *(_number(median(_stage(result, n, name, s, "error"))) for s in stages)]
            for n in names
            if any(runs(result, n, name))
        ),
    )
    for n in names:
        for seed in setting["seeds"].values():
            if reason := seed["estimators"].get(n, {}).get("refused"):
                yield f"- `{n}` refused: {reason}"
                break
    notes = {
        f"- `{n}`: {seed['estimators'][n]['note']}"
        for n in names
        for seed in setting["seeds"].values()
        if seed["estimators"].get(n, {}).get("note")
    }
    yield from sorted(notes)
    yield ""


def _row(result: Result, name: str, setting: str, held: dict[str, Any]) -> list[str]:
    found = [run for _, run in runs(result, name, setting)]
    if not found:
        return [name, "refused", *[""] * 8]
    middle = [run["error_middle"] for run in found]
    inside = next(iter(held["seeds"].values()))["stages"][1:-1]
    right = sum(run["leading"]["right"] for run in found)
    counted = sum(run["leading"]["counted"] for run in found)
    return [
        name,
        _number(median([run["error"] for run in found])),
        _number(median(middle)),
        f"{_number(min(middle))}–{_number(max(middle))}",
        *(
            _number(median([v for s in inside for v in _stage(result, name, setting, s, kind)]))
            for kind in ("pearson", "spearman")
        ),
        f"{right}/{counted}",
        _number(median([run["cost"] for run in found])),
        _number(median([run["cpu_ratio"] for run in found])),
        _number(median([run["peak_mb"] for run in found])),
    ]


def _stage(result: Result, name: str, setting: str, stage: str, kind: str) -> list[float | None]:
    return [run["stages"][stage][kind] for _, run in runs(result, name, setting)]


def _figure(result: Result, name: str, setting: str, key: str) -> str:
    found = [run[key] for _, run in runs(result, name, setting)]
    return _number(median(found)) if found else "refused"


def _twin(result: Result, name: str, setting: str | None) -> str:
    if not twin_cases(result, name, setting):
        return "refused"
    share = twin_coverage(result, estimator=name, setting=setting)
    return f"{share:.0%}, {_number(twin_width(result, estimator=name, setting=setting))}×"


def _costs(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "## Costs"
    yield ""
    yield from _table(
        ["table", "setting", "what", "measured", "bar", "reached"],
        (
            [row["table"], "not run", row["not_run"], "", "", ""]
            if "not_run" in row
            else [
                row["table"],
                row["setting"],
                row["what"],
                _number(row["measured"]),
                "" if row["bar"] is None else f"{row['bar']:g}",
                {True: "yes", False: "**no**", None: ""}[row["ok"]],
            ]
            for row in rows
        ),
    )


def _peers(peers: dict[str, Any]) -> Iterator[str]:
    yield "## Another implementation"
    yield ""
    if "not_run" in peers:
        yield f"Not run: {peers['not_run']}"
        yield ""
        return
    yield peers["compared"]
    yield ""
    yield peers["not_compared"]
    yield ""
    yield from _table(
        ["setting", "what", "measured"],
        ([row["setting"], row["what"], _number(row["measured"])] for row in peers["rows"]),
    )


def _present(result: Result, names: Sequence[str]) -> list[str]:
    return [n for n in names if any(runs(result, n))]


def _not_run(setting: dict[str, Any]) -> str:
    reasons = {seed.get("not_run", "") for seed in setting["seeds"].values()} - {""}
    return "; ".join(sorted(reasons))


def _table(header: Sequence[str], rows: Iterator[list[str]] | Sequence[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|---{'|---:' * (len(header) - 1)}|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""


def _number(value: float | None) -> str:
    """Two significant digits; whole numbers from a hundred on."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:.2g}"
