"""Where the values come from with which a changed model begins its stage.

Each parameter and buffer of the model after the change is one of four:

- carried: its object survived with its values, under another name perhaps;
- added: its values owe nothing to those that the model had (a new head, however it was drawn);
- copied: its values are those of one tensor that the model had (a frozen reference, a new head loaded
  with the old one's weights);
- derived: they depend on them otherwise (merged weights, a resized embedding, a copy with noise).

Which one shows when the change is made on models of one architecture and several values, with the same
random numbers each time: those that training had reached, the same with noise, and those of a new
model. A counterfactual makes copies and derived tensors from its own values (`Engine.carry_over`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from auditspec.errors import RecordError
from auditspec.record.extension import Extension, Made, Tensors

NOISE = 0.05
"""Largest relative change of a number by noise; its sign is kept. Zeros become as large relative to
the tensor's root mean square."""
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Relative deviation that the rounding of another machine or kernel explains; 1e-2 for shorter floats."""


@dataclass(frozen=True)
class Provenance:
    """Of every tensor of a changed model; those that are named nowhere are carried as they were."""

    added: tuple[str, ...] = ()
    copied: Mapping[str, str] = field(default_factory=dict)
    """Name, with that of its source before the change."""
    derived: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    """New name of a tensor whose object survived, with its old one."""
    rewritten: tuple[str, ...] = ()
    """Those added, copied, or derived whose object survived: the function wrote into it."""

    def differences(self, other: Provenance) -> list[str]:
        """Names of which the two say different things."""
        odd: set[str] = set()
        for part in fields(self):
            ours, theirs = (getattr(one, part.name) for one in (self, other))
            if isinstance(ours, Mapping):
                odd |= {name for name, _ in ours.items() ^ theirs.items()}
            else:
                odd |= set(ours) ^ set(theirs)
        return sorted(odd)


def provenance(name: str, first: Made, others: Sequence[Made]) -> Provenance:
    """Tell the tensors of a changed model apart by how they follow the values before the change.

    Args:
        name: of the function.
        first: the change as it was made.
        others: the same change made on other values, with the same random numbers.

    Raises:
        RecordError: if the change does something else to other values, or keeps values that depend
            on them where no re-run could change them.
    """
    for other in others:
        _refuse_another_form(name, first, other)
    _refuse_unregistered(name, others)
    runs = [first, *others]
    added, derived, rewritten, copied = [], [], [], {}
    for tensor in first.after:
        values, old = [run.after[tensor] for run in runs], first.change.before(tensor)
        if old is not None and _follows(runs, values, old):
            continue
        if old is not None:
            rewritten.append(tensor)
        if all(same(value, values[0]) for value in values):
            added.append(tensor)
        elif source := next((n for n in first.before if _follows(runs, values, n)), None):
            copied[tensor] = source
        else:
            derived.append(tensor)
    return Provenance(
        tuple(added), copied, tuple(derived), dict(first.change.renamed), tuple(rewritten)
    )


def on_other_values(extension: Extension, values: Tensors) -> list[Made]:
    """The change made on these values, on the same with noise, and on a newly built model.

    Raises:
        RecordError: if it fails on one of them.
    """
    try:
        return [extension.on(values), extension.on(with_noise(values)), extension.on(None)]
    except RecordError:
        raise
    except Exception as error:  # whatever the training code raises
        raise RecordError(
            f"{extension.name} fails on a model with other values than the trained ones: "
            f"{type(error).__name__}: {error}",
            "let it work on any model of the factory's architecture",
        ) from error


def with_noise(values: Tensors, seed: int = 0) -> Tensors:
    """The values with independent noise on every floating number."""
    generator = torch.Generator().manual_seed(seed)
    noisy = {}
    for name, value in values.items():
        if not value.is_floating_point():
            noisy[name] = value
            continue
        wide = value.double()
        unit = 2 * torch.rand(value.shape, generator=generator, dtype=torch.float64) - 1
        size = float(wide.square().mean().sqrt()) if value.numel() else 0.0
        small = NOISE * (size or 1.0) * unit.abs()
        noisy[name] = torch.where(wide == 0, small, wide * (1 + NOISE * unit)).to(value.dtype)
    return noisy


def same(left: Tensor, right: Tensor) -> bool:
    """Equality bit for bit, NaN included."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(left, right) or torch.equal(_bits(left), _bits(right))


def departure(tensor: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||; 0 only bit for bit, infinite where numbers cannot be compared."""
    if same(tensor, wanted):
        return 0.0
    if tensor.shape != wanted.shape or not wanted.is_floating_point():
        return float("inf")
    size = float(wanted.double().norm())
    off = float((tensor.double() - wanted.double()).norm())
    return off / size if size and off == off else float("inf")


def explained(tensor: Tensor, wanted: Tensor) -> bool:
    """Whether rounding explains what two values of one tensor differ by."""
    return departure(tensor, wanted) <= ROUNDING.get(wanted.dtype, 1e-2)


def _follows(runs: Sequence[Made], values: Sequence[Tensor], source: str) -> bool:
    pairs = zip(runs, values, strict=True)
    return all(same(value, run.before[source]) for run, value in pairs)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _refuse_another_form(function: str, first: Made, other: Made) -> None:
    brought, renamed = set(first.change.brought), first.change.renamed.items()
    odd = brought ^ set(other.change.brought)
    odd |= {name for name, _ in renamed ^ other.change.renamed.items()}
    odd |= {name for name, _ in first.form.items() ^ other.form.items()}
    if odd:
        raise RecordError(
            f"{function} changes a model that the factory builds otherwise than the one that is trained: "
            f"{', '.join(sorted(odd)[:3])}",
            "let what becomes of the model depend on nothing but its architecture",
        )


def _refuse_unregistered(function: str, runs: Sequence[Made]) -> None:
    for other in runs[1:]:
        for place, value in runs[0].unregistered.items():
            own = other.unregistered.get(place)
            if own is not None and not same(own, value):
                raise RecordError(
                    f"{function} keeps values that depend on the trained ones outside parameters and buffers: "
                    f"{place}",
                    "register the module, or the tensor with register_buffer, so that a re-run can "
                    "give it other values",
                )
