"""Deployed weights as real libraries convert them pass as declared; any other conversion is told."""

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from deployment import deployed_as
from said import said
from torch import Tensor, nn

from auditspec.artifacts.weights import Weights, read_weights
from auditspec.checks.deployed import UNCONVERTED, Deployed, Recorded, compare
from auditspec.record.state import named_buffers, named_parameters, ties
from auditspec.results import CheckDetail
from auditspec.spec.models import Conversion, Quantization

BF16 = Conversion(dtype="bfloat16")
MERGED = Conversion(adapters="merged")


def recorded(model: nn.Module) -> Recorded:
    tied, every = ties(model), {**named_parameters(model), **named_buffers(model)}
    names = {tied.get(name, name) for name in model.state_dict()}
    tensors = {name: every[name].detach().clone() for name in names}
    return Recorded(tensors, tied, model)


def held(model: nn.Module, tensors: Mapping[str, Tensor], conversion=UNCONVERTED, **options):
    return compare(deployed_as(tensors, conversion=conversion, **options), recorded(model))


def passes(detail: CheckDetail) -> str:
    assert detail.outcome == "pass", said(detail.notes)
    return said(detail.notes)


def fails(detail: CheckDetail) -> str:
    assert detail.outcome == "fail"
    return said(detail.notes)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 5))


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}


def test_the_last_state_itself(model: nn.Module) -> None:
    detail = held(model, model.state_dict())
    assert detail.statistic == 0
    assert passes(detail) == "the record's last state; accepted 0"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast(model: nn.Module, dtype: str) -> None:
    weights = cast(model.state_dict(), getattr(torch, dtype))
    detail = held(model, weights, Conversion(dtype=dtype))
    assert f"cast to {dtype}, as declared" in passes(detail)
    assert 0 < detail.statistic < 0.01
    assert f"declare model.conversion.dtype: {dtype}" in fails(held(model, weights))
    assert "is float32" in fails(held(model, model.state_dict(), Conversion(dtype=dtype)))
    weights["0.weight"][0, 0] *= 1.01
    assert "1 of 192 values of 0.weight are outside" in fails(
        held(model, weights, Conversion(dtype=dtype))
    )


def quantized(model: nn.Module, by_row: bool) -> dict[str, Tensor]:
    """Symmetric absmax int8, by torch alone."""
    tensors = dict(model.state_dict())
    for name in ("0.weight", "2.weight"):
        weight = tensors[name]
        most = weight.abs().amax(1, keepdim=True) if by_row else weight.abs().amax()
        scale = most / 127
        tensors[name] = torch.round(weight / scale).clamp(-127, 127).to(torch.int8)
        tensors[f"{name}_scale"] = scale
    return tensors


@pytest.mark.parametrize("by_row", [True, False])
def test_int8(model: nn.Module, by_row: bool) -> None:
    weights = quantized(model, by_row)
    declared = Conversion(quantized=Quantization())
    assert "2 tensors of int8, each value within 0.5 steps" in passes(
        held(model, weights, declared)
    )
    assert "0.weight_scale" in fails(held(model, weights))
    assert "no int8 tensor with a scale named {module}.SCB" in fails(
        held(model, weights, Conversion(quantized=Quantization(scale="{module}.SCB")))
    )
    weights["0.weight"][3, 3] -= 3 * weights["0.weight"][3, 3].sign()
    assert "1 of 192 values of 0.weight" in fails(held(model, weights, declared))
    passes(held(model, weights, Conversion(quantized=Quantization(steps=4))))
    weights["0.weight_scale"] *= 30
    assert "wider than its weights ask for" in fails(held(model, weights, declared))


def test_int8_as_absolute_maxima(model: nn.Module) -> None:
    """The layout of a row's largest absolute value beside the row."""
    weights = quantized(model, by_row=True)
    for module in ("0", "2"):
        weights[f"{module}.SCB"] = 127 * weights.pop(f"{module}.weight_scale").squeeze(1)
    how = Quantization(scale="{module}.SCB", absmax=True)
    passes(held(model, weights, Conversion(quantized=how)))


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_int8_with_a_zero_point(model: nn.Module) -> None:
    """As `torch.quantize_per_channel` computes it; its own tensors are no plain ones."""
    weights = dict(model.state_dict())
    for name in ("0.weight", "2.weight"):
        own = weights[name]
        low, high = own.amin(1).clamp(max=0), own.amax(1).clamp(min=0)
        scale = (high - low) / 255
        zero = torch.round(-128 - low / scale)
        codes = torch.quantize_per_channel(own, scale, zero.long(), 0, torch.qint8)
        weights[name] = codes.int_repr()
        weights[f"{name}_scale"] = codes.q_per_channel_scales().float()
        weights[f"{name}_zero_point"] = codes.q_per_channel_zero_points().to(torch.int8)
    how = Quantization(zero_point="{name}_zero_point")
    passes(held(model, weights, Conversion(quantized=how)))
    del weights["2.weight_zero_point"]
    assert "2.weight_zero_point" in fails(held(model, weights, Conversion(quantized=how)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.zz_first = nn.Embedding(7, 3)
        self.norm = nn.LayerNorm(3)
        self.aa_second = nn.Linear(3, 7, bias=False)
        self.aa_second.weight = self.zz_first.weight


def test_tied_weights_under_either_name(tmp_path: Path) -> None:
    """transformers#38870: safetensors keeps one name of a shared tensor, and not always the first."""
    from safetensors.torch import save_model

    model = Tied()
    save_model(model, str(tmp_path / "model.safetensors"))
    read = read_weights(tmp_path / "model.safetensors").tensors
    assert sorted(read) == ["aa_second.weight", "norm.bias", "norm.weight"]
    passes(held(model, read))
    passes(held(model, model.state_dict()))
    untied = {n: t.clone() for n, t in model.state_dict().items()}
    untied["aa_second.weight"][0, 0] += 1
    assert "are one tensor of the model, and differ" in fails(held(model, untied))
    del read["aa_second.weight"]
    assert "zz_first.weight" in fails(held(model, read))


def test_names_of_wrappers(model: nn.Module) -> None:
    weights = {f"module._orig_mod.{n}": t for n, t in model.state_dict().items()}
    assert "_orig_mod.module." in passes(held(model, weights))
    weights["module._orig_mod.extra"] = torch.ones(1)
    assert "extra" in fails(held(model, weights))


# --- adapters, by peft -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A classifier of peft with trained adapters, its head trained in full, and the base model's weights."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16, num_labels=3, pad_token_id=0
    )
    base = transformers.GPT2ForSequenceClassification(config)
    start = {n: t.clone() for n, t in base.state_dict().items()}
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "wte"]
    )
    model = peft.get_peft_model(base, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model, start, recorded(model)


def merge(trained, tmp_path: Path) -> dict[str, Tensor]:
    merged = copy.deepcopy(trained[0]).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    return read_weights(tmp_path / "merged").tensors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_merged_adapters(trained, tmp_path: Path) -> None:
    """peft#2502: a merged model is what was trained: adapters merged once, with their scaling, the trained head."""
    _, start, record = trained
    weights = merge(trained, tmp_path)

    def tried(tensors: Mapping[str, Tensor], conversion: Conversion = MERGED) -> CheckDetail:
        return compare(deployed_as(tensors, conversion=conversion), record)

    told = passes(tried(weights))
    assert (
        "adapters of 4 layers merged, as declared; they stand in the weights with factor 1" in told
    )
    assert "other tensors" in fails(tried(weights, Conversion()))
    head = weights["score.weight"]
    assert "score.weight" in fails(tried(weights | {"score.weight": head + 0.01}))
    base = {n: start[n] if "score" not in n else t for n, t in weights.items()}
    assert "with factor 0, not 1" in fails(tried(base))
    twice = {n: 2 * t - start[n] if "score" not in n else t for n, t in weights.items()}
    assert "with factor 2, not 1" in fails(tried(twice))
    assert "is scaled by 4, by 2 in training" in fails(
        tried(weights, Conversion(adapters="merged", scaling=4.0))
    )
    half = cast(weights, torch.bfloat16)
    passes(tried(half, Conversion(adapters="merged", dtype="bfloat16")))
    lost = cast(base, torch.bfloat16)
    assert "with factor" in fails(tried(lost, Conversion(adapters="merged", dtype="bfloat16")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_adapters_beside_their_base(trained, tmp_path: Path) -> None:
    import json

    model, start, record = trained
    model.save_pretrained(tmp_path / "adapter")
    shipped = read_weights(tmp_path / "adapter")
    assert shipped.form == "adapter"
    beside = Conversion(adapters="beside", base="base")
    base = {n: t for n, t in start.items() if n != "score.weight"}
    assert "adapters beside" in passes(compare(Deployed(shipped, 0.0, beside, base), record))
    assert "declare model.conversion" in fails(compare(Deployed(shipped), record))
    changed = base | {"transformer.wpe.weight": base["transformer.wpe.weight"] + 1e-3}
    assert fails(compare(Deployed(shipped, 0.0, beside, changed), record))
    config = dict(shipped.adapter) | {"lora_alpha": 64}
    louder = Weights(shipped.tensors, "adapter", "", config)
    assert "is scaled by 16, by 2 in training" in fails(
        compare(Deployed(louder, 0.0, beside, base), record)
    )
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    other = read_weights(tmp_path / "adapter")
    assert "none of a plain LoRA" in fails(compare(Deployed(other, 0.0, beside, base), record))


KINDS = {
    "all-biases": {"bias": "all"},
    "own-biases": {"bias": "lora_only"},
    "rank-stabilised": {"use_rslora": True, "r": 4},
    "patterns": {"rank_pattern": {"c_proj": 3}, "alpha_pattern": {"mlp.c_proj": 5}},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(KINDS))
def test_kinds_of_adapters(tmp_path: Path, kind: str) -> None:
    """What peft's options make of an adapter is read from its layers, and from its folder."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16)
    base = transformers.GPT2LMHeadModel(config)
    start = {n: t.clone() for n, t in base.state_dict().items()}
    options = {"r": 2, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"]} | KINDS[kind]
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    record = recorded(model)
    model.save_pretrained(tmp_path / "adapter")
    beside = Conversion(adapters="beside", base="base")
    shipped = read_weights(tmp_path / "adapter")
    passes(compare(Deployed(shipped, 0.0, beside, start), record))
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    passes(compare(deployed_as(merged, conversion=MERGED), record))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_other_adapters_are_refused(options: dict[str, bool]) -> None:
    peft = pytest.importorskip("peft")
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0"], **options))
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    told = fails(compare(deployed_as(merged, conversion=MERGED), recorded(model)))
    assert told.startswith(
        "not the tensors of a model with one low-rank adapter a layer: base_model"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_merge_into_a_tied_weight(tmp_path: Path) -> None:
    """An adapter of the embedding had no part in the head that shares its weight; merged, and tied, it would."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=["wte"])
    model = peft.get_peft_model(transformers.GPT2LMHeadModel(config), lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    record = recorded(model)
    assert list(record.ties) == ["base_model.model.lm_head.weight"]
    base = record.tensors["base_model.model.transformer.wte.base_layer.weight"].clone()
    merged = {n: t.clone() for n, t in copy.deepcopy(model).merge_and_unload().state_dict().items()}
    assert torch.equal(merged["lm_head.weight"], merged["transformer.wte.weight"])
    assert "lm_head.weight" in fails(compare(deployed_as(merged, conversion=MERGED), record))
    untied = merged | {"lm_head.weight": base}
    passes(compare(deployed_as(untied, conversion=MERGED), record))


class OwnLora(nn.Module):
    """A layer that holds weight, lora_A and lora_B itself, and says no scaling."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.lora_A = nn.Parameter(torch.randn(2, 6))
        self.lora_B = nn.Parameter(torch.randn(6, 2))


def test_adapters_of_own_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OwnLora())
    layer = model[0]
    merged = {"0.weight": (layer.weight + 1.5 * layer.lora_B @ layer.lora_A).detach()}
    passes(held(model, merged, Conversion(adapters="merged", scaling=1.5)))
    assert "declare model.conversion.scaling" in fails(held(model, merged, MERGED))
    other = {"0.weight": (layer.weight + 1.5 * (layer.lora_B @ layer.lora_A).T).detach()}
    assert fails(held(model, other, Conversion(adapters="merged", scaling=1.5)))
    assert "low-rank adapter" in fails(held(nn.Sequential(nn.Linear(2, 2)), {}, MERGED))
