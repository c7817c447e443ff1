"""Whether the deployed weights are the record's last state, or what the declared conversion makes of it.

The conversion is made again from the recorded tensors, and every deployed number must lie within what its
rounding allows: a cast gives one number, a merge of adapters a few, a quantised tensor those within the stated
steps of its scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from auditspec.artifacts.weight_files import aligned
from auditspec.artifacts.weights import Weights
from auditspec.checks.adapter_scaling import configured, scaling_of, transposed_in
from auditspec.engine.interface import Engine
from auditspec.messages import Message, message
from auditspec.record.adapters import Adapted, Adapter, Merge, adapted, bare
from auditspec.record.deviation import distance
from auditspec.record.state import State
from auditspec.results import CheckDetail
from auditspec.spec.models import Conversion, Quantization

SUBJECT = "deployed checkpoint"
UNCONVERTED = Conversion()
LEVELS = 127
"""The largest value of int8, symmetric about 0."""
SCALE_ROOM = 1.02
"""A scale may be this much wider than its row's largest weight asks for."""
SIGMAS = 6.0
"""By how many standard deviations of rounding the factor of merged adapters may miss 1."""


class Differs(Exception):  # noqa: N818 - the outcome of a comparison
    """What the deployed weights are not."""

    def __init__(self, note: Message) -> None:
        self.note = note
        super().__init__(note.code)


@dataclass(frozen=True)
class Deployed:
    """The deployed weights, and what is declared of them."""

    weights: Weights
    tolerance: float = 0.0
    """Largest accepted relative deviation; 0: bitwise, or within the rounding of the conversion."""
    conversion: Conversion = UNCONVERTED
    base: Mapping[str, Tensor] = field(default_factory=dict)
    """The base weights of adapters that lie beside them."""


@dataclass(frozen=True)
class Recorded:
    """The model that the record ends with."""

    tensors: Mapping[str, Tensor]
    """Parameters and buffers that a state dict has, by name; a tied tensor once."""
    ties: Mapping[str, str]
    """Second names, each with the first."""
    model: nn.Module


def recorded_end(rerun: Engine) -> Recorded:
    """The record's last state, with the model that it belongs to.

    Raises:
        EvidenceError: if it is damaged.
    """
    stage = rerun.trajectory.stages[-1]
    last, ties = stage.last, stage.ties
    rerun.enter(stage)
    saved = rerun.model.state_dict().keys()  # second names too; no temporary buffers
    names = {ties.get(name, name) for name in saved}
    tensors = last.parameters | last.buffers
    return Recorded({n: t for n, t in tensors.items() if n in names}, ties, rerun.model)


def compare(deployed: Deployed, recorded: Recorded) -> CheckDetail:
    """Hold the deployed weights against the record's last state, as converted."""
    notes: list[Message] = []
    try:
        off = _compare(deployed, recorded, notes)
    except Differs as differs:
        return CheckDetail(subject=SUBJECT, outcome="fail", notes=(differs.note, *notes))
    same = off.within or off.deviation <= deployed.tolerance
    if same and off.within and off.deviation:
        notes.append(message("read-before-conversion", deviation=off.deviation))
    first = message("not-the-last-state", tolerance=deployed.tolerance)
    if same:
        first = message("the-last-state", tolerance=deployed.tolerance)
    return CheckDetail(
        subject=SUBJECT,
        outcome="pass" if same else "fail",
        statistic=off.deviation if math.isfinite(off.deviation) else None,
        notes=(first, *(() if same else off.why), *notes),
    )


@dataclass(frozen=True)
class _Offset:
    """How far the deployed weights lie from the recorded ones."""

    deviation: float
    """Relative, over all tensors."""
    within: bool
    """Every number is one that the conversion can give."""
    why: tuple[Message, ...] = ()
    """What is not."""


def _compare(deployed: Deployed, recorded: Recorded, notes: list[Message]) -> _Offset:
    conversion = deployed.conversion
    model = model_of(deployed, recorded)
    found = _found(deployed, recorded, model, notes)
    codes = _Codes.of(found, model, conversion.quantized)
    shapes = {name: part.shape for name, part in model.items()}
    values = {name: t for name, t in found.items() if name not in codes.beside}
    if {name: t.shape for name, t in values.items()} != shapes:
        odd = sorted(values.keys() ^ shapes.keys()) or ["shapes"]
        raise Differs(message("other-tensors", tensors=odd))
    read = {name: codes.values(name, t) for name, t in values.items()}
    exact = {name: part.exact for name, part in model.items()}
    off = distance(State(read, {}), State(exact, {}))
    if conversion.dtype is not None:
        _require_type(values, model, codes, conversion.dtype)
    elif off > deployed.tolerance:
        notes += _cast_undeclared(values, model, codes)
    if conversion == Conversion(entry=conversion.entry):
        return _Offset(off, within=False)
    outside = [
        message("outside-rounding", tensor=name, values=count, total=part.exact.numel())
        for name, part in model.items()
        if (count := _outside(part, read[name], codes.slack(name), conversion))
    ]
    notes += _done(conversion, model, codes, read)
    return _Offset(off, within=not outside, why=tuple(outside[:1]))


# --- what must be there ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One tensor of the deployed model, as the record makes it."""

    exact: Tensor
    """Before it is cast or quantised."""
    merge: Merge | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self.exact.shape


def model_of(deployed: Deployed, recorded: Recorded) -> dict[str, Part]:
    """Every tensor that the deployed weights must have, by its name there."""
    how = deployed.conversion.adapters
    if how is None:
        if deployed.weights.form == "adapter":
            raise Differs(message("adapter-undeclared"))
        return {name: Part(tensor) for name, tensor in recorded.tensors.items()}
    names = adapted(recorded.tensors)
    if names.unknown or not names.adapters:
        raise Differs(message("adapters-unknown", tensors=list(names.unknown) or ["none"]))
    parts = {name: Part(recorded.tensors[own]) for name, own in names.plain.items()}
    for name, adapter in names.adapters.items():
        if how == "merged":
            parts[name] = _merged(recorded, adapter, deployed.conversion.scaling)
            continue
        parts[name] = Part(recorded.tensors[adapter.base])
        parts |= {n: Part(recorded.tensors[own]) for n, own in adapter.beside.items()}
    if how == "merged":  # what shares an adapted weight had no part in its adapter
        bases = {adapter.base for adapter in names.adapters.values()}
        shared = {second: first for second, first in recorded.ties.items() if first in bases}
        parts |= {bare(second): Part(recorded.tensors[f]) for second, f in shared.items()}
    if how == "beside":
        _check_scaling(deployed, recorded, names)
    return parts


def _merged(recorded: Recorded, adapter: Adapter, declared: float | None) -> Part:
    scaling = _scaling(recorded, adapter, declared)
    base, a, b = (recorded.tensors[name] for name in (adapter.base, adapter.a, adapter.b))
    transposed = adapter.embedding or transposed_in(recorded.model, adapter)
    try:
        merge = Merge.of(base, a, b, scaling, transposed=transposed)
    except ValueError:
        raise Differs(message("adapters-unknown", tensors=[adapter.a])) from None
    return Part(merge.weight.to(base.dtype), merge)


def _scaling(recorded: Recorded, adapter: Adapter, declared: float | None) -> float:
    own = scaling_of(recorded.model, adapter)
    if own is None and declared is None:
        raise Differs(message("scaling-unknown", module=adapter.module))
    if own is not None and declared is not None and not math.isclose(own, declared, rel_tol=1e-6):
        raise Differs(message("other-scaling", module=adapter.module, found=declared, recorded=own))
    return float(declared if own is None else own)  # type: ignore[arg-type]


def _check_scaling(deployed: Deployed, recorded: Recorded, names: Adapted) -> None:
    """`adapter_config.json` loads the adapter with the scaling that it was trained with."""
    if deployed.weights.form != "adapter":
        raise Differs(message("no-adapter-folder"))
    for adapter in names.adapters.values():
        rank = len(recorded.tensors[adapter.a])
        found = configured(deployed.weights.adapter, adapter, rank)
        if found is None:
            raise Differs(message("adapter-config-unread"))
        own = _scaling(recorded, adapter, deployed.conversion.scaling)
        if not math.isclose(found, own, rel_tol=1e-6):
            raise Differs(
                message("other-scaling", module=adapter.module, found=found, recorded=own)
            )


# --- what is there -----------------------------------------------------------------------------------


def _found(
    deployed: Deployed, recorded: Recorded, model: Mapping[str, Part], notes: list[Message]
) -> dict[str, Tensor]:
    """The deployed tensors under the model's names, a tied one once."""
    shipped, how = deployed.weights, deployed.conversion.adapters
    if shipped.form != "safetensors":
        notes.append(message("weights-form", form=shipped.form))
    if shipped.entry:
        notes.append(message("weights-entry", entry=shipped.entry))
    ties: dict[str, str] = dict(recorded.ties)
    if how is not None:
        ties = {bare(second): bare(first) for second, first in ties.items()}
    if how == "merged":
        merged = {name for name, part in model.items() if part.merge is not None}
        ties = {second: first for second, first in ties.items() if first not in merged}
    if how == "beside":
        tensors = {bare(name): tensor for name, tensor in shipped.tensors.items()}
        base = _aligned(deployed.base, model, ties, notes, tensors)
        used = {name: tensor for name, tensor in base.items() if name in {*model, *ties}}
        return _untied(used | tensors, ties)
    return _untied(_aligned(shipped.tensors, model, ties, notes, {}), ties)


def _aligned(
    tensors: Mapping[str, Tensor],
    model: Mapping[str, Part],
    ties: Mapping[str, str],
    notes: list[Message],
    beside: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Tensors under the model's names, where a wrapper gave them others; those that are tied may be missing."""
    tied = {*ties, *ties.values()}
    names = [name for name in model if name not in tied and name not in beside]
    fitted = aligned(tensors, names or list(model))
    if fitted is None:
        return dict(tensors)
    renamed, prefix = fitted
    if prefix:
        notes.append(message("weights-prefix", prefix=prefix))
    return renamed


def _untied(tensors: dict[str, Tensor], ties: Mapping[str, str]) -> dict[str, Tensor]:
    """A tied tensor once, under its first name; libraries save it under any of its names, or all."""
    for second, first in ties.items():
        other = tensors.pop(second, None)
        if other is None:
            continue
        own = tensors.setdefault(first, other)
        if own.shape != other.shape or own.dtype != other.dtype or not torch.equal(own, other):
            raise Differs(message("tied-tensors-differ", first=first, second=second))
    return tensors


@dataclass(frozen=True)
class _Codes:
    """Quantised tensors, with the scales and zero points that lie beside them."""

    scales: Mapping[str, Tensor]
    zeros: Mapping[str, Tensor]
    beside: frozenset[str]
    """Names of the scales and zero points."""
    eps: Mapping[str, float]
    """Of the scale's precision."""
    steps: float = 0.0

    @classmethod
    def of(
        cls, found: Mapping[str, Tensor], model: Mapping[str, Part], how: Quantization | None
    ) -> _Codes:
        """Find them, and hold the scales against the weights: a wide one would let anything pass."""
        scales, zeros, eps, beside = {}, {}, {}, set()
        for name, part in model.items() if how is not None else ():
            assert how is not None  # noqa: S101
            key = _named(how.scale, name)
            if (
                key not in found
                or name not in found
                or found[name].dtype != torch.int8
                or not found[key].is_floating_point()
                or part.exact.dim() == 0
            ):
                continue
            scale = _by_row(found[key], part, key) / (LEVELS if how.absmax else 1)
            rows = part.exact.double().abs().reshape(len(part.exact), -1).amax(1)
            most = rows.max() if scale.numel() == 1 else rows.reshape(scale.shape)
            if bool((scale > SCALE_ROOM * most / LEVELS).any() or (scale < 0).any()):
                raise Differs(message("scale-too-wide", tensor=key))
            scales[name], eps[name] = scale, torch.finfo(found[key].dtype).eps
            beside.add(key)
            if how.zero_point is not None:
                zero = _named(how.zero_point, name)
                if zero not in found:
                    raise Differs(message("other-tensors", tensors=[zero]))
                zeros[name] = _by_row(found[zero], part, zero)
                beside.add(zero)
        if how is not None and not scales:
            raise Differs(message("nothing-quantized", scale=how.scale))
        steps = 0.0 if how is None else how.steps
        return cls(scales, zeros, frozenset(beside), eps, steps)

    def values(self, name: str, tensor: Tensor) -> Tensor:
        """The weights that a tensor stands for."""
        if name not in self.scales:
            return tensor
        return (tensor.double() - self.zeros.get(name, 0.0)) * self.scales[name]

    def slack(self, name: str) -> Tensor | None:
        """How far those may lie from the recorded ones; the scale may have been rounded after its use."""
        if name not in self.scales:
            return None
        scale = self.scales[name]
        return scale * (self.steps + LEVELS * self.eps[name] / 2)


def _named(template: str, name: str) -> str:
    return template.replace("{name}", name).replace("{module}", name.removesuffix(".weight"))


def _by_row(scale: Tensor, part: Part, name: str) -> Tensor:
    """One number for the whole tensor, or one for each of its rows."""
    rows, dims = part.shape[0] if part.exact.dim() else 0, part.exact.dim()
    if scale.numel() == 1:
        return scale.double().reshape(())
    if scale.numel() == rows:
        return scale.double().reshape(rows, *(1,) * (dims - 1))
    raise Differs(message("other-tensors", tensors=[name]))


# --- the two beside one another ----------------------------------------------------------------------


def _outside(part: Part, found: Tensor, steps: Tensor | None, conversion: Conversion) -> int:
    """How many numbers the conversion cannot have given."""
    if not part.exact.is_floating_point():
        return int((found != part.exact).sum())
    own = part.exact.dtype
    dtype = own if conversion.dtype is None else getattr(torch, conversion.dtype)
    low = high = part.exact
    if part.merge is not None:
        slack = part.merge.slack(dtype)
        low, high = part.merge.weight - slack, part.merge.weight + slack
    low, high = low.to(dtype).double(), high.to(dtype).double()
    if steps is not None:
        low, high = low - steps, high + steps
    found = found.double()
    return int(((found < low) | (found > high)).sum())


def _require_type(
    values: Mapping[str, Tensor], model: Mapping[str, Part], codes: _Codes, declared: str
) -> None:
    for name, tensor in values.items():
        if model[name].exact.is_floating_point() and name not in codes.scales:
            kind = str(tensor.dtype).removeprefix("torch.")
            if kind != declared:
                raise Differs(message("other-type", tensor=name, found=kind, declared=declared))


def _cast_undeclared(
    values: Mapping[str, Tensor], model: Mapping[str, Part], codes: _Codes
) -> list[Message]:
    """Where the weights may have been cast, which nobody declares."""
    for name, tensor in values.items():
        own, kind = model[name].exact.dtype, tensor.dtype
        if own != kind and name not in codes.scales:
            found, recorded = (str(t).removeprefix("torch.") for t in (kind, own))
            return [message("cast-undeclared", tensor=name, found=found, recorded=recorded)]
    return []


def _done(
    conversion: Conversion,
    model: Mapping[str, Part],
    codes: _Codes,
    read: Mapping[str, Tensor],
) -> list[Message]:
    """What was made again, in words."""
    notes = []
    merged = {name: part for name, part in model.items() if part.merge is not None}
    if merged:
        notes.append(_factor(merged, codes, read, conversion))
    if conversion.adapters == "beside":
        notes.append(message("adapters-beside"))
    if conversion.dtype is not None:
        notes.append(message("weights-cast", dtype=conversion.dtype))
    if codes.scales:
        notes.append(message("weights-quantized", tensors=len(codes.scales), steps=codes.steps))
    return notes


def _factor(
    merged: Mapping[str, Part], codes: _Codes, read: Mapping[str, Tensor], conversion: Conversion
) -> Message:
    """By which factor the adapters stand in the merged weights; rounding leaves 1.

    A coarse cast allows every single number more than a small adapter moves it; over all of them it does not.
    """
    product = square = noise = 0.0
    for name, part in merged.items():
        assert part.merge is not None  # noqa: S101
        delta, base = part.merge.delta, part.merge.base
        own = part.exact.dtype if conversion.dtype is None else getattr(torch, conversion.dtype)
        unit = torch.finfo(own).eps * (part.merge.weight.abs() + base.abs())
        steps = codes.slack(name)
        unit = unit if steps is None else unit + 2 * steps
        product += float(((read[name].double() - base) * delta).sum())
        square += float(delta.square().sum())
        noise += float((unit * delta).square().sum())
    factor = product / square if square else 1.0
    if abs(factor - 1) > SIGMAS * math.sqrt(noise / 3) / max(square, 1e-300) + 1e-6:
        raise Differs(message("not-merged", factor=factor))
    return message("adapters-merged", layers=len(merged), factor=factor)
