"""What `run` prints on stdout: the verdicts and where the packet lies."""

from __future__ import annotations

import json

import click

from auditspec.report.lookup import Lookup
from auditspec.report.sections.opinion import status_of
from auditspec.results import AuditResult
from auditspec.sign.packet_in_store import files_at


def print_result(result: AuditResult, packet: str, format_: str) -> None:
    """Print the outcome; the printed verdict always matches the exit code."""
    known = Lookup(result)
    words, files = known.words, files_at(packet)
    if format_ == "json":
        summary = {
            "audit": result.audit.id,
            "passed": result.gate.passed,
            "exit_code": result.gate.exit_code,
            "reasons": [r.model_dump() | {"text": words.text(r)} for r in result.gate.reasons],
            "verdicts": [
                v.model_dump() | {"text": words.text(v.statement)} for v in result.verdicts
            ],
            "signed": result.signer is not None,
            "files": files,
        }
        click.echo(json.dumps(summary, indent=1))
        return
    told = set[str]()
    width = max(len(verdict.behavior) for verdict in result.verdicts)
    for verdict in result.verdicts:
        click.echo(
            f"{status_of(known, verdict.behavior).symbol} {verdict.behavior:<{width}}  {verdict.verdict:<12}  "
            f"{words.text(verdict.statement)}"
        )
        reasons = [f"because {words.text(reason)}" for reason in verdict.reasons]
        for line in reasons + [words.text(reservation) for reservation in verdict.reservations]:
            if line in told:
                continue
            told.add(line)
            click.echo(f"  {'':<{width}}  {'':<12}  {line}")
    failed = [check for check in result.checks if check.outcome == "fail"]
    for check in failed:
        kind = "check" if check.bars != "nothing" else "descriptive check"
        click.echo(f"{kind} failed: {check.id}: {words.text(*check.reasons)}")
    word = "passed" if result.gate.passed else "failed"
    why = "; ".join(words.text(reason) for reason in result.gate.reasons)
    click.echo(f"policy gate {word} (exit {result.gate.exit_code}){f': {why}' if why else ''}")
    click.echo("signed" if result.signer else "UNSIGNED")
    for file in files:
        click.echo(file)
