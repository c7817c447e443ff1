"""A pipeline's folder: data, code, and given weights written, the training recorded, specs for its audits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save, save_file

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.manifest import digest_path
from auditspec.spec.lock import write_lock

from .domains import Rows
from .draw import OPTIONS, Pipeline, Stage
from .networks import Classifier
from .retrain import trained_before

MODULE = "pipeline"
LABEL = "label"
SMUGGLED = "start.safetensors"
HERE = Path(__file__).parent
CHECKS: dict[str, Any] = {"placebo": {"draws": 0}}
"""Every check but placebo, which takes long and decides nothing."""
AGAIN: dict[str, Any] = CHECKS | {"record-fidelity": {"windows": 1}}
"""The same where the whole record was run again already."""
Spec = dict[str, Any]


def prepare(pipeline: Pipeline, reference: Classifier, folder: Path) -> None:
    """Write data, code, and weights, then train and record.

    The end is in `model.safetensors`.
    """
    for stage in pipeline.stages:
        write_rows(folder / f"{data_of(stage)}.parquet", stage.rows)
    write_rows(folder / "reference.parquet", pipeline.world.reference)
    frame = pipeline.world.holdout.frame().assign(marked=pipeline.world.marked.astype("int64"))
    frame.to_parquet(folder / "holdout.parquet")
    save_file(reference.state_dict(), folder / "reference.safetensors")
    held, code = pipeline.start, folder / "code"
    code.mkdir()
    for name in ("networks.py", f"{MODULE}.py"):
        (code / name).write_bytes((HERE / name).read_bytes())
    if held.trained is not None:
        weights = trained_before(pipeline, held, clean=False).state_dict()
        place = code / SMUGGLED if held.kind == "smuggled" else folder / "given.safetensors"
        place.write_bytes(save(weights))
    (code / "plan.json").write_text(json.dumps(_plan(pipeline)))
    bundle = CodeBundle.read(code, None)
    with bundle.importable():
        bundle.load(f"{MODULE}:train")(folder)


def write_rows(path: Path, rows: Rows) -> None:
    """A stage's data set."""
    rows.frame().to_parquet(path)


def data_of(stage: Stage) -> str:
    """The artifact that a stage is trained on."""
    return f"rows-{stage.id}"


def pinned(folder: Path, name: str, spec: Spec) -> Path:
    """Write a spec, and pin every artifact as it now is."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.dump(spec, Dumper=_Plain, sort_keys=False))
    places = {artifact: folder / held["path"] for artifact, held in spec["artifacts"].items()}
    write_lock(path, {artifact: digest_path(place).digest for artifact, place in places.items()})
    return path


def spec_of(
    pipeline: Pipeline,
    limits: Mapping[str, float],
    *,
    reference: bool = False,
    gradients: int | None = None,
    again: bool = False,
) -> Spec:
    """The spec of an audit.

    Args:
        pipeline: what is audited.
        limits: the behaviours' limits; empty: none is stated.
        reference: whether the auditor has clean rows and clean weights.
        gradients: the budget of the whole audit.
        again: whether the whole record was run again by an audit before.
    """
    data = [data_of(stage) for stage in pipeline.stages]
    given = pipeline.start.kind == "given"
    return {
        "auditspec": "1",
        "audit": {"id": f"calibration-{pipeline.seed}", "title": "A drawn pipeline"},
        "auditor": {
            "name": "The study",
            "organization": "benchmarks",
            "role": "auditor",
            "independence": "none declared",
        },
        "system": {
            "name": "A classifier",
            "version": "1",
            "owner": "The study",
            "intended_use": "Calibration",
        },
        "model": {
            "factory": f"{MODULE}:build_model",
            "load_batch": f"{MODULE}:load_batch",
            "predict": f"{MODULE}:predict",
            "checkpoint": "final",
            "initial": _initial(pipeline, reference=reference),
        },
        "artifacts": {
            "code": {"path": "code"},
            "record": {"path": "record"},
            "final": {"path": "model.safetensors"},
            **({"given": {"path": "given.safetensors"}} if given else {}),
            **(
                {
                    "clean-rows": {"path": "reference.parquet", "label": LABEL},
                    "clean-weights": {"path": "reference.safetensors"},
                }
                if reference
                else {}
            ),
            **{name: {"path": f"{name}.parquet", "label": LABEL} for name in ("holdout", *data)},
        },
        "stages": [
            {
                "id": stage.id,
                "owner": f"Owner of {stage.id}",
                "description": stage.id,
                "data": [data_of(stage)],
                "objective": f"{MODULE}:cross_entropy",
                **({"extend": f"{MODULE}:{stage.change}"} if stage.change is not None else {}),
                **({"reference": "clean-rows"} if reference else {}),
                "optimizer": {
                    "name": pipeline.optimizer,
                    "lr": stage.lr,
                    "schedule": "cosine",
                    **OPTIONS[pipeline.optimizer],
                },
            }
            for stage in pipeline.stages
        ],
        "behaviors": [
            {
                "id": behavior.id,
                "description": behavior.id,
                "metric": behavior.metric,
                "data": "holdout",
                **({"where": behavior.where} if behavior.where is not None else {}),
                "concern": {
                    "direction": behavior.direction,
                    "tolerance": behavior.tolerance,
                    **({"limit": limits[behavior.id]} if limits else {}),
                    "severity": "high",
                },
            }
            for behavior in pipeline.behaviors
        ],
        "estimator": {
            "device": "cpu",
            **({"budget": {"gradients": gradients}} if gradients is not None else {}),
        },
        "checks": AGAIN if again else CHECKS,
    }


def _initial(pipeline: Pipeline, *, reference: bool) -> Spec:
    clean = {"reference": "clean-weights"} if reference else {}
    if pipeline.start.kind == "given":
        return {
            "kind": "given",
            "owner": "Whoever supplied the weights",
            "provenance": "trained before the record begins",
            "weights": "given",
            **clean,
        }
    return {"kind": "random", "seed": pipeline.seed, **clean}


def _plan(pipeline: Pipeline) -> Spec:
    """What `pipeline.py` is told."""
    kind = pipeline.start.kind
    side = next((s for s in pipeline.stages if s.planted_change), None)
    return {
        "seed": pipeline.seed,
        "kind": pipeline.kind,
        "optimizer": pipeline.optimizer,
        "options": OPTIONS[pipeline.optimizer],
        "batch": pipeline.batch,
        "columns": pipeline.world.holdout.x.shape[1],
        "tokens": pipeline.world.domain == "tokens",
        "plant": pipeline.plant() if kind == "planted" else None,
        "smuggled": SMUGGLED if kind == "smuggled" else None,
        "given": "given.safetensors" if kind == "given" else None,
        "side": pipeline.side(planted=True) if side is not None else None,
        "stages": [
            {
                "id": stage.id,
                "data": data_of(stage),
                "steps": stage.steps,
                "lr": stage.lr,
                "seed": pipeline.stage_seed(index),
                "change": stage.change,
            }
            for index, stage in enumerate(pipeline.stages)
        ],
    }


class _Plain(yaml.SafeDumper):
    """Writes every value out: a spec has no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
