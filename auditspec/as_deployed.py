"""States as checkpoints of the deployed form: its names, its precision, its adapters merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditspec.artifacts.checkpoints import encode_tensors
from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.weight_files import aligned
from auditspec.artifacts.weights import Weights
from auditspec.checks.deployed import Deployed, Differs, Recorded, model_of, recorded_end
from auditspec.engine.interface import Engine
from auditspec.errors import UsageError
from auditspec.record.adapters import bare
from auditspec.record.state import State
from auditspec.spec.models import Conversion

FORMAT = {"format": "pt"}
"""What transformers looks for in a file."""


@dataclass(frozen=True)
class AsDeployed:
    """Writes states as the deployed weights are written.

    A cast and a merge of adapters are made again. Quantisation is not: such models are written in the precision
    before it.
    """

    deployed: Deployed
    recorded: Recorded
    """The record's last state."""
    names: Mapping[str, str]
    """Names in the deployed weights, each with the model's own."""

    @classmethod
    def of(cls, weights: Weights, conversion: Conversion | None, rerun: Engine) -> AsDeployed:
        """For the deployed weights of a record.

        Raises:
            EvidenceError: if the record is damaged.
            UsageError: if the weights lie as adapters beside others, or are not those of the record's last state.
        """
        made = conversion or Conversion()
        if made.adapters == "beside":
            raise UsageError(
                "models are not written as adapters beside base weights",
                "deploy merged weights, and declare model.conversion.adapters: merged",
            )
        deployed, recorded = Deployed(weights, conversion=made), recorded_end(rerun)
        try:
            own = model_of(deployed, recorded).keys()
        except Differs as differs:
            raise _unlike(differs.note.code) from None
        names = _shipped(weights.tensors, own, _ties(recorded, made))
        if {*names.values()} != {*own}:
            raise _unlike("other tensors")
        return cls(deployed, recorded, names)

    def tensors(self, state: State) -> dict[str, Tensor] | None:
        """A state's tensors by the deployed names; None for one of another model, such as before a new head."""
        held, last = state.parameters | state.buffers, self.recorded.tensors
        if any(n not in held or held[n].shape != t.shape for n, t in last.items()):
            return None
        tensors = {name: held[name].to("cpu", t.dtype) for name, t in last.items()}
        parts = model_of(self.deployed, replace(self.recorded, tensors=tensors))
        return {name: self._cast(parts[own].exact) for name, own in self.names.items()}

    def encoded(self, state: State) -> bytes | None:
        """The file `model.safetensors` of a state; None as `tensors`. Equal states give equal bytes."""
        tensors = self.tensors(state)
        return None if tensors is None else encode_tensors(tensors, FORMAT)

    def digest(self, state: State) -> str | None:
        """The digest of that file, by which scores name the model; None as `tensors`."""
        data = self.encoded(state)
        return None if data is None else digest_bytes(data)

    def _cast(self, tensor: Tensor) -> Tensor:
        dtype = self.deployed.conversion.dtype
        if dtype is None or not tensor.is_floating_point():
            return tensor
        return tensor.to(getattr(torch, dtype))


def _ties(recorded: Recorded, conversion: Conversion) -> Mapping[str, str]:
    """Second names in the deployed model, each with the first; those of merged weights are told apart by their tensors."""
    if conversion.adapters is None:
        return recorded.ties
    return {bare(second): bare(first) for second, first in recorded.ties.items()}


def _shipped(
    tensors: Mapping[str, Tensor], own: Iterable[str], ties: Mapping[str, str]
) -> dict[str, str]:
    """Names in the deployed weights, each with the model's own; what lies beside, such as scales, is left out."""
    names = [*own]
    tied = {*ties, *ties.values()}
    fitted = aligned(tensors, [n for n in names if n not in tied] or names)
    renamed = dict(tensors) if fitted is None else fitted[0]
    ours = {id(tensor): name for name, tensor in renamed.items()}
    shipped = {name: ours[id(tensor)] for name, tensor in tensors.items()}
    return {
        name: inner if inner in names else ties.get(inner, inner)
        for name, inner in shipped.items()
        if inner in names or ties.get(inner) in names
    }


def _unlike(why: str) -> UsageError:
    return UsageError(
        f"the deployed weights are not the record's last state as converted ({why})",
        "auditspec validate and run say what differs; declare model.conversion",
    )
