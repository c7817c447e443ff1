"""By how much an adapter's product is multiplied: in the recorded model, and by `adapter_config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from auditspec.record.adapters import Adapter, bare


def scaling_of(model: nn.Module, adapter: Adapter) -> float | None:
    """The layer's own scaling, its attribute `scaling`; None where it says none."""
    scaling = getattr(_module(model, adapter), "scaling", None)
    if isinstance(scaling, Mapping):
        scaling = scaling.get(adapter.name)
    return float(scaling) if isinstance(scaling, int | float) else None


def transposed_in(model: nn.Module, adapter: Adapter) -> bool:
    """Whether the layer keeps its weight as [in, out], its attribute `fan_in_fan_out`."""
    return bool(getattr(_module(model, adapter), "fan_in_fan_out", False))


def configured(config: Mapping[str, Any], adapter: Adapter, rank: int) -> float | None:
    """The scaling with which peft loads an adapter: alpha / r, or alpha / sqrt(r) with `use_rslora`.

    None for another kind than plain LoRA, another rank, or a pattern that is no plain name.
    """
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        return None
    alpha, r = config.get("lora_alpha"), config.get("r")
    for key, patterns in (
        ("alpha", config.get("alpha_pattern")),
        ("r", config.get("rank_pattern")),
    ):
        for pattern, value in (patterns or {}).items():
            if not all(c.isalnum() or c in "._" for c in pattern):
                return None
            if f".{bare(adapter.module)}".endswith(f".{pattern}"):
                alpha, r = (value, r) if key == "alpha" else (alpha, value)
    if not isinstance(alpha, int | float) or r != rank:
        return None
    return alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r


def _module(model: nn.Module, adapter: Adapter) -> nn.Module | None:
    try:
        return model.get_submodule(adapter.module)
    except AttributeError:
        return None
