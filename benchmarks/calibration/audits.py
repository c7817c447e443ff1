"""One pipeline of the study: train, record, audit in every setting, and hold against exact retraining.

Every pipeline goes through `auditspec.flow.run_audit`, as `auditspec run` does. An honest record is audited
by four specs that an auditor could write:

- `limit`: limits from a few clean models; exact replay;
- `reference`: the same, with clean rows and clean weights to replace data and first weights by;
- `quarter`: as `limit`, under a budget that leaves half of exact replay's gradients: a quarter for estimates, as
  much for their twins;
- `self`: nothing stated, exact replay.

Those by exact replay share their estimates. A record that lies is audited once, as `limit`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auditspec.artifacts.checkpoints import read_tensors
from auditspec.errors import AuditspecError
from auditspec.estimator.cache import Cache
from auditspec.flow import run_audit
from auditspec.results import AuditResult
from auditspec.spec.checks import STEPS
from auditspec.spec.source import load
from auditspec.workplace import Workplace

from .draw import Pipeline
from .families import draw
from .folders import Spec, pinned, prepare, spec_of
from .lies import lie_of, tell
from .retrain import Retraining, clean_models, logits_of
from .truth import CLEARING, INNOCENTS, Truth, truths, word_of

DIGITS = 5
"""Significant digits of the numbers that are kept."""
TOLD = 3
"""Most tallies that are kept of a verdict."""
Row = dict[str, Any]


def row_of(seed: int) -> Row:
    """Everything that is kept of one pipeline."""
    torch.set_num_threads(1)
    began = time.process_time()
    pipeline = draw(seed)
    clean = clean_models(pipeline)
    run = Retraining(pipeline)
    found = truths(pipeline, run, [logits_of(m, pipeline.world.holdout) for m in clean])
    limits = {name: truth.limit for name, truth in found.items()}
    row = _head(pipeline)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(pipeline, clean[0], folder)
        if (lie := lie_of(pipeline)) is not None:
            spec = spec_of(pipeline, limits)
            tell(lie, pipeline, folder, spec)
            outcome = audited(folder, "lie", spec)
            return row | {"lie": lie, "audits": {"limit": _outcome(outcome)}}
        assert_same(run.model().state_dict(), read_tensors(folder / "model.safetensors"))
        row["behaviors"] = {name: _truth(truth) for name, truth in found.items()}
        row["audits"], results = {}, {}
        for setting, spec in settings_of(pipeline, limits).items():
            cache = Cache(folder / ("quarter" if setting == "quarter" else "exact"))
            outcome = audited(folder, setting, spec, cache)
            row["audits"][setting] = _outcome(outcome)
            if isinstance(outcome, AuditResult):
                results[setting] = outcome
                _judge(row["audits"][setting], found, outcome, limited=setting != "self")
    row["errors"] = errors_of(results)
    row["seconds"] = round(time.process_time() - began, 1)
    return row


def settings_of(pipeline: Pipeline, limits: Mapping[str, float]) -> dict[str, Spec]:
    """The specs, in the order in which they are audited."""
    return {
        "limit": spec_of(pipeline, limits),
        "reference": spec_of(pipeline, limits, reference=True, again=True),
        "self": spec_of(pipeline, {}, again=True),
        "quarter": spec_of(pipeline, limits, gradients=quarter_of(pipeline)),
    }


def quarter_of(pipeline: Pipeline) -> int:
    """The budget of a whole audit, in minibatch gradients.

    What every audit takes: running the record again, and some steps in both precisions. And half of what
    exact replay of every stage takes, so that estimates at a quarter would leave as much to their twins;
    the runs that verdicts ask for come out of it first.
    """
    fixed = pipeline.total_steps + 2 * STEPS
    return fixed + pipeline.arm_gradients // 2


def audited(
    folder: Path, name: str, spec: Spec, cache: Cache | None = None
) -> AuditResult | AuditspecError:
    """Pin and audit; the error where no result came."""
    path = pinned(folder, name, spec)
    try:
        return run_audit(
            load(path), command=f"auditspec run {path.name}", workplace=Workplace(cache)
        )
    except AuditspecError as error:
        return error


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    """The retraining beside the product has to end where the recorded run ended, bit for bit."""
    assert left.keys() == right.keys()
    odd = [name for name, tensor in left.items() if not torch.equal(tensor, right[name])]
    assert not odd, f"the retraining ends elsewhere: {odd[:3]}"


def errors_of(results: Mapping[str, AuditResult]) -> list[Row]:
    """Of every effect that was estimated under the budget: the error it states beside its true error."""
    if not {"quarter", "limit"} <= results.keys():
        return []
    exact = {(e.behavior, e.stage): e.value for e in results["limit"].effects if e.exact}
    return [
        {
            "behavior": e.behavior,
            "stage": e.stage,
            "stated": _short(e.error),
            "true": _short(abs(e.value - exact[e.behavior, e.stage])),
        }
        for e in results["quarter"].effects
        if not e.exact and e.error is not None and (e.behavior, e.stage) in exact
    ]


def green(result: AuditResult) -> bool:
    """Whether an audit lets the model pass without a word about a party that it did not clear."""
    return result.gate.passed and all(
        v.verdict in CLEARING and not v.reservations for v in result.verdicts
    )


def _outcome(result: AuditResult | AuditspecError) -> Row:
    if isinstance(result, AuditspecError):
        return {"exit": result.exit_code, "error": result.message}
    return {
        "exit": result.gate.exit_code,
        "green": green(result),
        "gradients": round(result.run.gradients, 1),
        "seconds": round(result.run.seconds, 2),
        "checks": {c.id: c.outcome for c in result.checks if c.outcome not in ("pass", "not-run")},
        "verdicts": {
            verdict.behavior: {
                "verdict": verdict.verdict,
                "ending": verdict.ending,
                "parties": list(verdict.parties),
                "confidence": _short(verdict.confidence),
                "reservations": len(verdict.reservations),
                "tallies": [[list(t.parties), t.ending, t.count] for t in verdict.tallies[:TOLD]],
            }
            for verdict in result.verdicts
        },
    }


def _judge(audited: Row, found: Mapping[str, Truth], result: AuditResult, *, limited: bool) -> None:
    """Add the word for each verdict; of a wrong one, also all that the rule read."""
    for name, held in audited["verdicts"].items():
        truth = found[name]
        held["word"] = word_of(truth, held["verdict"], held["parties"], limited=limited)
        if held["word"] in (*INNOCENTS, "missed"):
            held["read"] = _read(result, name)


def _read(result: AuditResult, behavior: str) -> Row:
    """A behaviour along the recorded run and every arm, with skills and roles: for whoever asks why."""
    verdict = next(v for v in result.verdicts if v.behavior == behavior)
    return {
        "roles": {r.party: [r.role, _short(r.rise), _short(r.effect)] for r in verdict.roles},
        "reasons": [reason.model_dump(mode="json") for reason in verdict.reasons],
        "paths": {
            ", ".join(path.arm) or "recorded": [
                [state, _short(level), _short(skill)]
                for state, level, skill in zip(path.states, path.levels, path.skills, strict=True)
            ]
            for path in result.paths
            if path.behavior == behavior
        },
    }


def _truth(truth: Truth) -> Row:
    held = {k: _short(v) if isinstance(v, float) else v for k, v in asdict(truth).items()}
    held["parts"] = {party: _short(part) for party, part in truth.parts.items()}
    return held | {"faulty": truth.faulty, "must": sorted(truth.must), "may": sorted(truth.may)}


def _head(pipeline: Pipeline) -> Row:
    return {
        "seed": pipeline.seed,
        "family": pipeline.family,
        "domain": pipeline.world.domain,
        "kind": pipeline.kind,
        "optimizer": pipeline.optimizer,
        "start": pipeline.start.kind,
        "steps": [stage.steps for stage in pipeline.stages],
        "stages": [stage.id for stage in pipeline.stages],
        "planted": list(pipeline.parties),
        "lie": None,
        "full": pipeline.total_steps + pipeline.arm_gradients,
        "quarter": quarter_of(pipeline),
    }


def _short(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.{DIGITS}g}")
