"""Low-rank adapters among a model's parameters, told by their names, and merged into what they adapt.

    W' = W + s B A                                      (Hu et al. 2021, LoRA)

with W [out, in], A [r, in], B [out, r], and the scaling s of the layer; for embeddings, and for layers that keep
W transposed, W + s (B A)^T. Names as peft gives them (`….base_layer.weight`, `….lora_A.default.weight`), or
those of layers that hold `weight`, `lora_A`, and `lora_B` themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WRAPPER = "base_model.model."
"""What peft's model puts before the names of the model within it."""
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AaBb])"
    r"(\.(?P<adapter>(?!weight$|bias$)[^.]+))?(\.weight)?"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class Adapter:
    """The low-rank adapter of one layer, by the recorded names of its tensors."""

    module: str
    base: str
    a: str
    b: str
    name: str
    """Of the adapter; empty where the layer has but one."""
    embedding: bool

    @property
    def beside(self) -> dict[str, str]:
        """Recorded names, by those under which peft saves the adapter without the base model."""
        module, kind = bare(self.module), "embedding_" if self.embedding else ""
        end = "" if self.embedding else ".weight"
        return {
            f"{module}.lora_{kind}A{end}": self.a,
            f"{module}.lora_{kind}B{end}": self.b,
        }


@dataclass(frozen=True)
class Adapted:
    """A model with adapters, by the names of its tensors."""

    adapters: Mapping[str, Adapter]
    """By the name that the adapted weight has in the model without adapters."""
    plain: Mapping[str, str]
    """Recorded names of all other tensors, by their names in the model without adapters."""
    saved: frozenset[str]
    """Those of `plain` that peft saves with the adapter: layers that were trained in full."""
    unknown: tuple[str, ...]
    """Tensors of other kinds of adapters, and of layers with more than one."""


def bare(name: str) -> str:
    """A name in the model without adapters."""
    return name.removeprefix(WRAPPER).replace(".base_layer.", ".")


def adapted(names: Iterable[str]) -> Adapted:
    """Tell adapters from what they adapt."""
    every = set(names)
    parts: dict[str, dict[str, tuple[str, str, bool]]] = {}
    plain: dict[str, str] = {}
    saved: set[str] = set()
    unknown: set[str] = set()
    for name in sorted(every):
        low, whole = _LOW_RANK.fullmatch(name), _SAVED.fullmatch(name)
        if low:
            part = name, low["adapter"] or "", bool(low["embedding"])
            if parts.setdefault(low["module"], {}).setdefault(low["which"].lower(), part) != part:
                unknown.add(name)
        elif whole:
            target = bare(f"{whole['module']}.{whole['rest']}")
            if plain.setdefault(target, name) != name:
                unknown.add(name)
            saved.add(target)
        elif ".original_module." not in name:
            if ".lora_" in name:
                unknown.add(name)
            else:
                plain.setdefault(bare(name), name)
    adapters = {}
    for module, pair in parts.items():
        base = f"{module}.base_layer.weight"
        base = base if base in every else f"{module}.weight"
        if pair.keys() != {"a", "b"} or base not in every or pair["a"][1:] != pair["b"][1:]:
            unknown |= {part[0] for part in pair.values()}
            continue
        plain.pop(bare(base), None)
        adapters[bare(base)] = Adapter(module, base, pair["a"][0], pair["b"][0], *pair["a"][1:])
    return Adapted(adapters, plain, frozenset(saved), tuple(sorted(unknown)))


@dataclass(frozen=True)
class Merge:
    """One adapted weight, merged in float64."""

    base: Tensor
    delta: Tensor
    """s B A, oriented as the base."""
    size: Tensor
    """s |B| |A|: bounds what rounding within the product can do."""
    eps: float
    """Of the product's accumulation."""

    @classmethod
    def of(cls, base: Tensor, a: Tensor, b: Tensor, scaling: float, *, transposed: bool) -> Merge:
        """Merge.

        Raises:
            ValueError: if the shapes do not fit.
        """
        ours, left, right = base.double(), b.double(), a.double()
        delta, size = scaling * (left @ right), abs(scaling) * (left.abs() @ right.abs())
        if transposed or delta.shape != ours.shape:
            delta, size = delta.T, size.T
        if delta.shape != ours.shape:
            raise ValueError(f"{tuple(delta.shape)} does not fit {tuple(ours.shape)}")
        eps = min(torch.finfo(torch.float32).eps, torch.finfo(a.dtype).eps) * (len(a) + 2)
        return cls(ours, delta, size, eps)

    @property
    def weight(self) -> Tensor:
        """W', float64."""
        return self.base + self.delta

    def slack(self, dtype: torch.dtype) -> Tensor:
        """How far, at most, a merge in a precision lies from the exact one, element by element.

        Base, product, and sum are each rounded once to `dtype`, half its eps; A and B may have been too.
        """
        unit = torch.finfo(dtype).eps / 2
        rounded = self.base.abs() + 2 * self.delta.abs() + self.weight.abs() + 2 * self.size
        return unit * rounded + self.eps * self.size
