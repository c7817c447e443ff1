"""One audit of the study: train, tamper, audit, and compare with exact replay; gives one row.

Every audit is trained in a folder of its own and goes through `auditspec.audit.audit`, as
`auditspec run` does. An honest one is audited three times:

- `truth`: exact replay of every stage (`estimator.method: replay`), behaviours read on the evaluation
  examples and on the pool;
- `quarter`: as a user would, under a quarter of exact replay's gradients;
- `lifted`: the same spec without a budget.

The whole record is run again in `quarter` only.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray

from auditspec.artifacts.checkpoints import read_tensors
from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.manifest import digest_path
from auditspec.audit import audit
from auditspec.behaviors.metrics import metric_of
from auditspec.errors import EstimationError
from auditspec.estimator.cache import Cache
from auditspec.estimator.interface import Counterfactual
from auditspec.estimator.twin import twin_error
from auditspec.results import AuditResult
from auditspec.spec.lock import write_lock
from auditspec.spec.models import Behavior
from auditspec.spec.source import load

from ..metrics import rms
from . import small_pipeline
from .draw import CLASSES, HOLDOUT, TRAIN, Drawn, draw
from .lies import tell
from .small_pipeline import LABEL, PIXELS

MODULE = "small_pipeline"
SHARE = 0.25
"""Of exact replay's gradients: what the audit under a budget may spend on its estimates."""
DIGITS = 5
"""Significant digits of the numbers that are kept."""
CHECKS = {"placebo": {"draws": 0}}
"""Every check but placebo, which takes long and decides nothing."""
ONE_WINDOW = CHECKS | {"record-fidelity": {"windows": 1}}
Row = dict[str, Any]
Scores = NDArray[np.float64]


def row_of(seed: int) -> Row:
    """Everything that is kept of one audit."""
    torch.set_num_threads(1)
    drawn = draw(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        spec = prepare(drawn, folder)
        row = _head(drawn)
        if drawn.lie is not None:
            tell(drawn, folder, spec)
            lied = run(folder, _budgeted(drawn, spec))
            row["quarter"] = lied if isinstance(lied, str) else _outcome(lied)
            return row
        return row | _honest(drawn, folder, spec)


def prepare(drawn: Drawn, folder: Path) -> dict[str, Any]:
    """Write the data and the code, and train; gives the spec, without a method or a budget."""
    for name, table in tables(drawn).items():
        table.to_parquet(folder / f"{name}.parquet")
    code = folder / f"{MODULE}.py"
    code.write_bytes(Path(small_pipeline.__file__).read_bytes())
    plan = {
        "seed": drawn.seed,
        "model": drawn.model,
        "optimizer": drawn.optimizer,
        "options": drawn.options,
        "batch": 32,
        "stages": [
            {
                "data": _data_of(i),
                **{k: vars(s)[k] for k in ("id", "steps", "lr", "schedule", "state")},
            }
            for i, s in enumerate(drawn.stages)
        ],
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    bundle = CodeBundle.read(code, None)
    with bundle.importable():
        bundle.load(f"{MODULE}:train")(folder)
    return _spec(drawn)


def tables(drawn: Drawn) -> dict[str, pd.DataFrame]:
    """Every stage's rows, the holdout, and the pool: another split for every seed.

    A stage with a fault also has a table of its rows as they were, `…-clean`.
    """
    rng = np.random.default_rng([drawn.seed, 1])
    rows = _digits().iloc[rng.permutation(len(_digits()))].reset_index(drop=True)
    train, rest = rows[:TRAIN], rows[TRAIN:]
    found = {"holdout": rest[:HOLDOUT], "pool": rest[HOLDOUT:]}
    for index, stage in enumerate(drawn.stages):
        held = train[train[LABEL].isin(stage.classes)]
        table = held.iloc[: max(int(stage.part * len(held)), 1)]
        found[_data_of(index)] = table
        for fault in drawn.faults:
            if fault.stage == index:
                found[f"{_data_of(index)}-clean"] = table
                wrong = (table[LABEL] == fault.true) & (rng.random(len(table)) < fault.share)
                found[_data_of(index)] = table.assign(
                    **{LABEL: table[LABEL].where(~wrong, fault.called)}
                )
    return {name: table.reset_index(drop=True) for name, table in found.items()}


def run(folder: Path, spec: dict[str, Any], cache: Cache | None = None) -> AuditResult | str:
    """Write a spec, pin every artifact as it now is, and audit; the reason where no estimate can be made."""
    path = folder / "audit.yaml"
    path.write_text(yaml.dump(spec, Dumper=_Plain, sort_keys=False))
    paths = {name: folder / artifact["path"] for name, artifact in spec["artifacts"].items()}
    write_lock(path, {name: digest_path(place).digest for name, place in paths.items()})
    try:
        return audit(load(path), command="auditspec run audit.yaml", cache=cache)
    except EstimationError as error:
        return error.message


# --- honest audits --------------------------------------------------------------------------------


class _Kept(Cache):
    """A cache that also remembers every counterfactual that was made, in order."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.made: list[Counterfactual] = []

    def put(self, key: str, found: Counterfactual) -> None:
        self.made.append(found)
        super().put(key, found)

    def of(self, method: str) -> dict[str, list[Counterfactual]]:
        """By stage."""
        held: dict[str, list[Counterfactual]] = {}
        for found in self.made:
            if found.method == method:
                held.setdefault(found.stage, []).append(found)
        return held


def _honest(drawn: Drawn, folder: Path, spec: dict[str, Any]) -> Row:
    exact, used = _Kept(folder / "exact"), _Kept(folder / "used")
    truth = run(folder, _truth(spec), exact)
    if isinstance(truth, str):
        return {"no_truth": truth}
    row: Row = {"behaviors": _behaviors(drawn, truth)}
    for arm, asked, kept in (
        ("quarter", _budgeted(drawn, spec), used),
        ("lifted", spec | {"checks": ONE_WINDOW}, exact),
    ):
        result = run(folder, asked, kept)
        row[arm] = result if isinstance(result, str) else _outcome(result)
    if not isinstance(row["quarter"], str):
        _add_errors(row, drawn, folder, exact, used)
    return row


def _behaviors(drawn: Drawn, truth: AuditResult) -> list[Row]:
    """What was asked, and every stage's exact effect on the evaluation examples and on the pool."""
    effects = {(e.behavior, e.stage): e for e in truth.effects}
    examples = {b.id: b.examples for b in truth.behaviors}
    assert all(e.exact for e in truth.effects)
    return [
        {
            "id": b["id"],
            "metric": b["metric"]["name"],
            "direction": b["concern"]["direction"],
            "tolerance": b["concern"]["tolerance"],
            "examples": examples[b["id"]],
            "pool_examples": examples[f"{b['id']}-pool"],
            "exact": [_short(effects[b["id"], s.id].value) for s in drawn.stages],
            "pool": [_short(effects[f"{b['id']}-pool", s.id].value) for s in drawn.stages],
        }
        for b in drawn.behaviors
    ]


def _outcome(result: AuditResult) -> Row:
    """What an audit said: exit code, checks, gradients, verdicts, and effects as columns over stages."""
    order = [stage.id for stage in result.stages]
    verdicts: Row = {}
    for verdict in result.verdicts:
        held = {e.stage: e for e in result.effects if e.behavior == verdict.behavior}
        verdicts[verdict.behavior] = {
            "verdict": verdict.verdict,
            "stages": [order.index(stage) for stage in verdict.stages],
            "reasons": list(verdict.reasons),
            "settle": len(verdict.settle),
        }
        if held:
            verdicts[verdict.behavior] |= {
                part: [_short(getattr(held[stage], part)) for stage in order]
                for part in ("value", "low", "high", "error", "leads")
            }
    return {
        "exit": result.gate.exit_code,
        "gradients": result.run.gradients,
        "methods": [e.method for e in result.estimates],
        "checks": {check.id: check.outcome for check in result.checks},
        "verdicts": verdicts,
    }


def _add_errors(row: Row, drawn: Drawn, folder: Path, exact: _Kept, used: _Kept) -> None:
    """Beside each estimated effect: its mean and size, its error over examples, and its twin's word.

    The estimates of stages that the spot check replayed are among them. Read here, apart from the
    product's reader.
    """
    final = read_tensors(folder / "model.safetensors")
    estimates, truth = used.of("paired-replay"), exact.of("replay")
    for drawn_behavior, held in zip(drawn.behaviors, row["behaviors"], strict=True):
        behavior = Behavior.model_validate(drawn_behavior)
        data = _holdout(drawn, behavior)
        base = _read(drawn, behavior, data, final)
        verdict = row["quarter"]["verdicts"][behavior.id]
        columns: dict[str, list[float | None]] = {"raw": [], "size": [], "rms": [], "own": []}
        for index, stage in enumerate(drawn.stages):
            found = estimates.get(stage.id, [])
            if len(found) < 2:  # exact by itself: no estimate, no twin
                for column in columns.values():
                    column.append(None)
                continue
            scores = [_read(drawn, behavior, data, c.state.parameters) for c in found[:2]]
            right = _read(drawn, behavior, data, truth[stage.id][0].state.parameters)
            raw = float((base - scores[0]).mean())
            if row["quarter"]["methods"][index] != "replay":  # both readers have to agree
                assert np.isclose(raw, verdict["value"][index], rtol=1e-3, atol=1e-4)
            assert np.isclose((base - right).mean(), held["exact"][index], rtol=1e-3, atol=1e-4)
            columns["raw"].append(_short(raw))
            columns["size"].append(_short(rms(base - scores[0])))
            columns["rms"].append(_short(rms(scores[0] - right)))
            columns["own"].append(_short(twin_error(scores[0], scores[1])))
        verdict |= columns


def _holdout(drawn: Drawn, behavior: Behavior) -> tuple[torch.Tensor, torch.Tensor]:
    frame = tables(drawn)["holdout"]
    if behavior.where:
        frame = frame[frame[LABEL] == int(behavior.where.rpartition(" ")[2])]
    x = torch.tensor(frame[PIXELS].to_numpy()).float().view(-1, 1, 8, 8) / 16
    return x, torch.tensor(frame[LABEL].to_numpy()).long()


def _read(
    drawn: Drawn,
    behavior: Behavior,
    data: tuple[torch.Tensor, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
) -> Scores:
    """The behaviour's number for each example, [n]."""
    model = _model(drawn.model)
    model.load_state_dict(dict(weights))
    metric = metric_of(behavior.metric)
    assert metric is not None
    with torch.no_grad():
        return metric(model(data[0]), data[1]).double().numpy()


@cache
def _model(name: str) -> torch.nn.Module:
    made = small_pipeline.build_mlp() if name == "mlp" else small_pipeline.build_cnn()
    return made.eval()


class _Plain(yaml.SafeDumper):
    """Writes every value out: a spec has no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# --- the spec -------------------------------------------------------------------------------------


def _spec(drawn: Drawn) -> dict[str, Any]:
    data = [_data_of(i) for i in range(len(drawn.stages))]
    return {
        "auditspec": "1",
        "audit": {"id": f"calibration-{drawn.seed}", "title": "A drawn audit"},
        "auditor": {
            "name": "The study",
            "organization": "benchmarks",
            "role": "auditor",
            "independence": "none declared",
        },
        "system": {
            "name": "Digit reader",
            "version": "1",
            "owner": "The study",
            "intended_use": "Calibration",
        },
        "model": {
            "factory": f"{MODULE}:build_{drawn.model}",
            "load_batch": f"{MODULE}:load_batch",
            "predict": f"{MODULE}:predict",
            "checkpoint": "final",
        },
        "artifacts": {
            "code": {"path": f"{MODULE}.py"},
            "record": {"path": "record"},
            "final": {"path": "model.safetensors"},
            **{
                name: {"path": f"{name}.parquet", "label": LABEL}
                for name in ("holdout", "pool", *data)
            },
        },
        "stages": [
            {
                "id": stage.id,
                "owner": "The study",
                "description": stage.id,
                "data": [name],
                "objective": f"{MODULE}:cross_entropy",
                "optimizer": {
                    "name": drawn.optimizer,
                    "lr": stage.lr,
                    "schedule": stage.schedule,
                    **drawn.options,
                },
            }
            for stage, name in zip(drawn.stages, data, strict=True)
        ],
        "behaviors": list(drawn.behaviors),
        "estimator": {"method": "auto", "device": "cpu"},
        "checks": CHECKS,
    }


def _budgeted(drawn: Drawn, spec: dict[str, Any]) -> dict[str, Any]:
    budget = int(SHARE * drawn.exact_gradients)
    return spec | {"estimator": spec["estimator"] | {"budget": {"gradients": budget}}}


def _truth(spec: dict[str, Any]) -> dict[str, Any]:
    pool = [b | {"id": f"{b['id']}-pool", "data": "pool"} for b in spec["behaviors"]]
    return spec | {
        "behaviors": [*spec["behaviors"], *pool],
        "estimator": spec["estimator"] | {"method": "replay"},
        "checks": ONE_WINDOW | {"sampling": {"resamples": 100}},
    }


def _head(drawn: Drawn) -> Row:
    return {
        "seed": drawn.seed,
        "kind": drawn.kind,
        "lie": drawn.lie,
        "model": drawn.model,
        "optimizer": drawn.optimizer,
        "steps": [stage.steps for stage in drawn.stages],
        "rates": [stage.lr for stage in drawn.stages],
        "state": drawn.stages[-1].state,
        "faults": [[f.stage, f.share] for f in drawn.faults],
        "exact_gradients": drawn.exact_gradients,
    }


def _data_of(index: int) -> str:
    return f"rows-{index}"


@cache
def _digits() -> pd.DataFrame:
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    assert int(digit.max()) + 1 == CLASSES
    frame: pd.DataFrame = pd.DataFrame(pixels, columns=PIXELS).assign(**{LABEL: digit})
    return frame


def _short(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.{DIGITS}g}")
