"""`auditspec plan`: what each estimator would cost, and what it needs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from auditspec.cli.isolation import isolation_option
from auditspec.report.words import text

if TYPE_CHECKING:
    from auditspec.budget import Allotment
    from auditspec.estimator.plan import Prospect
    from auditspec.planning import Plan
    from auditspec.sealed.isolation import Wanted


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--measure",
    is_flag=True,
    help="Time a few steps of every stage and one reading here; this executes the code that the spec names.",
)
@isolation_option
@click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True
)
def plan(spec: Path, measure: bool, isolation: Wanted, format_: str) -> None:
    """Forecast what each estimator costs, what it needs, and which one each stage would get.

    Costs follow from the record; seconds are those of its own steps unless --measure is given. No
    code of the spec runs without --measure.

    Exits with 2 for a spec that is wrong or does not fit what it names, and with 3 for evidence that is missing or changed.
    """
    from auditspec.api import plan as forecast

    found = forecast(
        spec,
        measure=measure,
        announce=lambda line: click.echo(line, err=True),
        isolation=isolation,
    )
    if format_ == "json":
        click.echo(json.dumps(_facts(found), indent=1))
    else:
        _print(found)


def _facts(found: Plan) -> dict[str, object]:
    return {
        "evidence_grade": found.grade,
        "budget": _finite(asdict(found.allotment)) if found.allotment else None,
        "estimators": [_prospect_facts(prospect) for prospect in found.prospects],
        "choices": [
            {
                "stage": choice.stage,
                "method": choice.method,
                "gradients": choice.gradients,
                "reason": choice.reason.model_dump() | {"text": text(choice.reason)},
            }
            for choice in found.choices
        ],
        "refused": found.refused,
        "seconds_per_gradient": dict(found.pace.seconds),
        "measured": found.pace.measured,
        "whole_audit": None if found.whole is None else asdict(found.whole),
    }


def _prospect_facts(prospect: Prospect) -> dict[str, object]:
    forecast = prospect.forecast
    cost = ("gradients", "memory", "disk")
    return {
        "method": prospect.method,
        "possible": prospect.possible,
        "needs": [asdict(need) for need in prospect.needs],
        "seconds": prospect.seconds if forecast is not None else None,
        **{name: getattr(forecast, name, None) for name in cost},
    }


def _finite(facts: dict[str, object]) -> dict[str, object]:
    """Facts as JSON can hold them: no limit is null."""
    return {name: None if value == math.inf else value for name, value in facts.items()}


def _print(found: Plan) -> None:
    budget = _shares(found.allotment)
    source = "measured here" if found.pace.measured else "from the record's step times"
    click.echo(f"evidence: {found.grade}; budget: {budget}; seconds {source}")
    click.echo(
        f"{'estimator':<14} {'gradients':>10} {'seconds':>9} {'memory':>9} {'disk':>9}  needs"
    )
    for prospect in found.prospects:
        needs = "; ".join(
            f"{'✓' if n.there else '✗'} {n.what}{f' ({n.note})' if n.note else ''}"
            for n in prospect.needs
        )
        f = prospect.forecast
        cost = (
            f"{'–':>10} {'–':>9} {'–':>9} {'–':>9}"
            if f is None
            else f"{f.gradients:>10,.0f} {prospect.seconds:>9.3g} {_size(f.memory):>9} {_size(f.disk):>9}"
        )
        click.echo(f"{prospect.method:<14} {cost}  {needs}")
    if (whole := found.whole) is not None:
        click.echo(
            f"the whole audit: {whole.gradients:,.0f} gradients, {whole.readings:,.0f} readings, {whole.seconds:,.0f} s, "
            f"{_size(whole.memory)} of memory, {_size(whole.disk)} of cache and journal"
        )
    if found.refused:
        click.echo(f"no choice: {found.refused}")
    for choice in found.choices:
        click.echo(
            f"{choice.stage}: {choice.method}, {choice.gradients:,.0f} gradients; {text(choice.reason)}"
        )


def _shares(allotment: Allotment | None) -> str:
    """A budget and what becomes of it."""
    if allotment is None:
        return "too small"
    if allotment.estimates is None:
        return f"no limit (re-running the record: {allotment.fidelity:,.0f} gradients)"
    return (
        f"{allotment.total:,.0f} gradients for the whole audit ({allotment.fidelity:,.0f} re-running the "
        f"record, up to {allotment.estimates:,} estimates, the rest their twins and replays)"
    )


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.3g} {unit}"
        number /= 1000
    return str(number)
