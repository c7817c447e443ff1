"""Models of runs are written in the form of the deployed weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import nn

from auditspec.artifacts.weights import Weights
from auditspec.as_deployed import AsDeployed
from auditspec.errors import UsageError
from auditspec.record.state import State, capture
from auditspec.spec.models import Conversion, Quantization


def rerun(model: nn.Module) -> Any:
    """As much of an engine as is asked for."""
    stage = SimpleNamespace(last=capture(model, None), ties={})
    trajectory = SimpleNamespace(stages=[stage])
    return SimpleNamespace(trajectory=trajectory, model=model, enter=lambda stage: None)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def form(deployed: dict[str, torch.Tensor], conversion: Conversion | None = None) -> AsDeployed:
    return AsDeployed.of(Weights(deployed, "safetensors"), conversion, rerun(model()))


def test_the_deployed_names_are_kept() -> None:
    shipped = {f"model.{name}": t for name, t in model().state_dict().items()}
    other = model(1)
    written = load(form(shipped).encoded(capture(other, None)) or b"")
    assert written.keys() == shipped.keys()
    assert all(torch.equal(t, written[f"model.{n}"]) for n, t in other.state_dict().items())


def test_a_cast_is_made_again() -> None:
    halves = {
        n: t.bfloat16() if t.is_floating_point() else t for n, t in model().state_dict().items()
    }
    written = load(
        form(halves, Conversion(dtype="bfloat16")).encoded(capture(model(), None)) or b""
    )
    assert all(
        torch.equal(t, written[n]) and t.dtype == written[n].dtype for n, t in halves.items()
    )


def test_quantised_weights_are_written_as_they_were_before() -> None:
    plain = model().state_dict()
    scale = plain["0.weight"].abs().max() / 127
    codes = (plain["0.weight"] / scale).round().to(torch.int8)
    shipped = plain | {"0.weight": codes, "0.weight_scale": scale}
    made = form(shipped, Conversion(quantized=Quantization()))
    written = load(made.encoded(capture(model(), None)) or b"")
    assert written.keys() == plain.keys()
    assert torch.equal(written["0.weight"], plain["0.weight"])


class Adapted(nn.Module):
    """A layer with a low-rank adapter, as peft names it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(3, 4, bias=False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        self.scaling = {"default": 2.0}


def test_adapters_are_merged_again() -> None:
    torch.manual_seed(0)
    wrapped = nn.Module()
    wrapped.layer = Adapted()
    layer: Any = wrapped.layer
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    merged = (layer.base_layer.weight + 2 * b @ a).detach()
    weights = Weights({"layer.weight": merged}, "safetensors")
    made = AsDeployed.of(weights, Conversion(adapters="merged"), rerun(wrapped))
    written = load(made.encoded(capture(wrapped, None)) or b"")
    assert written.keys() == {"layer.weight"}
    torch.testing.assert_close(written["layer.weight"], merged, rtol=1e-6, atol=1e-7)
    with pytest.raises(UsageError, match="adapters beside"):
        AsDeployed.of(weights, Conversion(adapters="beside", base="b"), rerun(wrapped))


def test_equal_states_have_one_digest_and_others_another() -> None:
    made = form(dict(model().state_dict()))
    same, other = capture(model(), None), capture(model(1), None)
    assert made.digest(same) == made.digest(capture(model(), None)) != made.digest(other)
    wide = State({n: t.double() for n, t in same.parameters.items()}, same.buffers)
    assert made.digest(wide) == made.digest(same)
    assert made.digest(State({"0.weight": torch.zeros(5, 3)}, {})) is None


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="other tensors"):
        form({"elsewhere": torch.zeros(3)})
