"""Whole audits of models as they are shipped after the Trainer of transformers trained them, adapters of peft included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("peft")
pytest.importorskip("transformers")

import hf_audit
import torch
from safetensors.torch import load_file, save_file
from said import said
from small_audit import edit_spec, lock

STAGES = """
from peft import LoraConfig, get_peft_model


@trainer_objective
def base(model):
    return trainer(model, "clean", weight_decay=0.1, lr_scheduler_type="cosine", warmup_steps=2, num_train_epochs=2)


@trainer_objective
def adapters(model):
    return trainer(model, "vendor", learning_rate=2e-2)


def add_adapters(model):
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_alpha=6)
    return get_peft_model(model, config)


STAGES = {"base": (base, "clean"), "adapters": (adapters, "vendor")}
EXTENDS = {"adapters": add_adapters}
"""


def ship(folder: Path, how: str) -> dict[str, Any]:
    """Save the trained model as people do; gives the paths of artifacts, and the declared conversion."""
    with hf_audit.code(folder) as lab:
        model = lab.add_adapters(lab.build_model())
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        if how == "beside":
            model.save_pretrained(folder / "adapter")
            model.unload().save_pretrained(folder / "base")
            return {
                "paths": {"final": "adapter", "foundation": "base"},
                "conversion": {"adapters": "beside", "base": "foundation"},
            }
        merged = model.merge_and_unload()
        if how == "bfloat16":
            merged = merged.to(torch.bfloat16)
        merged.save_pretrained(folder / "shipped", max_shard_size="4KB")
    dtype = {"dtype": "bfloat16"} if how == "bfloat16" else {}
    return {"paths": {"final": "shipped"}, "conversion": {"adapters": "merged"} | dtype}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_adapters_merged_and_beside(tmp_path: Path) -> None:
    """Merged adapters are the trained model (peft#2502), in shards, cast, or beside their base; others are told."""
    spec = hf_audit.make(tmp_path, STAGES)

    def declare(shipped: dict[str, Any]) -> None:
        def change(data: dict[str, Any]) -> None:
            for name, path in shipped["paths"].items():
                data["artifacts"][name] = {"path": path}
            data["model"]["conversion"] = shipped["conversion"]
            data["stages"][0]["optimizer"] |= {
                "weight_decay": 0.1,
                "schedule": {"name": "cosine", "warmup": 2},
                "groups": [{"parameters": "biases-and-norms", "weight_decay": 0.0}],
            }

        edit_spec(spec, change)
        lock(spec)

    for how in ("bfloat16", "beside"):
        declare(ship(tmp_path, how))
        checks = {check.id: check for check in hf_audit.audited(spec).checks}
        assert checks["optimizer-match"].outcome == "pass", said(checks["optimizer-match"].reasons)
        fidelity = checks["record-fidelity"]
        assert fidelity.outcome == "pass", said(fidelity.reasons)
        (line,) = (d for d in fidelity.details if d.subject == "deployed checkpoint")
        words = "cast to bfloat16" if how == "bfloat16" else "adapters beside their base weights"
        assert words in said(line.notes)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(
        {n: 1.01 * t for n, t in weights.items()},
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    lock(spec)
    result = hf_audit.audited(spec)
    fidelity = {check.id: check for check in result.checks}["record-fidelity"]
    assert fidelity.outcome == "fail"
    assert "values of transformer.h.0.attn.c_attn.lora_A.weight" in said(fidelity.reasons)
