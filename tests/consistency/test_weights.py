"""Deployed weights as they are shipped: what validation says of them, and what an audit does with them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from said import said
from small_audit import edit_spec, lock

from auditspec import audit
from auditspec.consistency.check import check
from auditspec.spec.source import load


def deploy(spec: Path, path: str, **conversion: object) -> None:
    """Deploy other weights than the ones that were saved."""

    def change(data) -> None:
        data["artifacts"]["final"]["path"] = path
        if conversion:
            data["model"]["conversion"] = conversion

    edit_spec(spec, change)
    lock(spec)


def weights(spec: Path) -> dict[str, torch.Tensor]:
    return load_file(spec.parent / "model.safetensors")


def shards(spec: Path, tensors: dict[str, torch.Tensor]) -> str:
    folder = spec.parent / "deployed"
    folder.mkdir()
    files = {name: f"model-{i}.safetensors" for i, name in enumerate(tensors)}
    for name, file in files.items():
        save_file({name: tensors[name]}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "deployed"


def problems(spec: Path) -> list[str]:
    checked = check(load(spec), signing=False)
    return [
        f"{p.code} {p.message}; {p.hint}" for p in checked.spec_problems + checked.evidence_problems
    ]


def test_shards_are_valid(audit_spec: Path) -> None:
    deploy(audit_spec, shards(audit_spec, weights(audit_spec)))
    assert problems(audit_spec) == []


def test_shards_under_a_prefix_are_valid(audit_spec: Path) -> None:
    renamed = {f"model.{name}": tensor for name, tensor in weights(audit_spec).items()}
    deploy(audit_spec, shards(audit_spec, renamed))
    assert problems(audit_spec) == []


def test_a_missing_shard(audit_spec: Path) -> None:
    deploy(audit_spec, shards(audit_spec, weights(audit_spec)))
    (audit_spec.parent / "deployed" / "model-1.safetensors").unlink()
    lock(audit_spec)
    (problem,) = problems(audit_spec)
    assert problem.startswith("AS042") and "its shard model-1.safetensors is missing" in problem


def test_a_cast_that_nobody_declares(audit_spec: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in weights(audit_spec).items()}
    save_file(half, audit_spec.parent / "half.safetensors")
    deploy(audit_spec, "half.safetensors")
    (problem,) = problems(audit_spec)
    assert problem.startswith("AS071 the deployed 0.weight is bfloat16, float32 in the record")
    assert problem.endswith("declare it: conversion: {dtype: bfloat16}")
    deploy(audit_spec, "half.safetensors", dtype="bfloat16")
    assert problems(audit_spec) == []
    deploy(audit_spec, "half.safetensors", dtype="float16")
    (problem,) = problems(audit_spec)
    assert problem.startswith("AS071 the deployed 0.weight is bfloat16, float16 declared")


def test_a_base_that_is_no_artifact(audit_spec: Path) -> None:
    from auditspec.errors import SpecError

    deploy(audit_spec, "model.safetensors", adapters="beside")
    with pytest.raises(SpecError, match=r"AS047.*go together"):
        load(audit_spec)
    deploy(audit_spec, "model.safetensors", adapters="beside", base="bse")
    with pytest.raises(SpecError, match="AS021"):
        load(audit_spec)
    deploy(audit_spec, "model.safetensors", adapters="beside", base="holdout")
    with pytest.raises(SpecError, match="AS036"):
        load(audit_spec)


@pytest.mark.slow
def test_an_audit_of_weights_that_were_cast(audit_spec: Path) -> None:
    """The whole way, from shards in bfloat16: verdicts as before, and a limitation that says what was read."""
    plain = audit(audit_spec)
    half = {name: tensor.bfloat16() for name, tensor in weights(audit_spec).items()}
    deploy(audit_spec, shards(audit_spec, half), dtype="bfloat16")
    result = audit(audit_spec)
    (fidelity,) = (c for c in result.checks if c.id == "record-fidelity")
    (line,) = (d for d in fidelity.details if d.subject == "deployed checkpoint")
    assert line.outcome == "pass", said(line.notes)
    assert "read from shards; cast to bfloat16, as declared" in said(line.notes)
    assert [v.verdict for v in result.verdicts] == [v.verdict for v in plain.verdicts]
    limits = [said([limit.message]) for limit in result.limitations]
    assert any(text.startswith("behaviours are read on the record's last state") for text in limits)
    (audit_spec.parent / "deployed" / "model-1.safetensors").write_bytes(b"other")
    assert audit(audit_spec).gate.exit_code == 3
