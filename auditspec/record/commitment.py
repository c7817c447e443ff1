"""What a trainer commits to before a stage: its beginning, code, data, hyperparameters, and the order of its batches.

The order is the root of a Merkle tree (RFC 6962) with one leaf a step: what the step is made of, as JSON
with sorted keys and no spaces, without passes whose loss is not differentiated::

    {"batches":[["vendor",[7,12,17],1.0]],"groups":[{"lr":0.2,"momentum":0.9}]}

A record amounts to a commitment of its own (`plan.recorded_commitment`); following one is to be equal to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from auditspec.artifacts import merkle, strict_json
from auditspec.frozen import Frozen
from auditspec.record.format import Group
from auditspec.results import NAME, Boundary

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Commitment(Frozen):
    """A planned stage, version 1."""

    auditspec_commitment: Literal["1"] = "1"
    stage: Annotated[str, Field(pattern=NAME)]
    code: Digest
    """Of the training code, as `auditspec digest` gives it."""
    objective: str
    """`module:callable`"""
    initial: Digest
    """Of the state with which the stage begins: parameters, buffers, and optimizer state."""
    seed: int
    """With which torch's generator was seeded last."""
    random: Digest
    """Of the random generators' state as the stage begins."""
    boundary: Boundary
    datasets: dict[str, str]
    """Digest of each data set, by name."""
    optimizer: str
    groups: tuple[Group, ...]
    """The optimizer's parameter groups as the stage begins."""
    frozen: tuple[str, ...]
    clip_norm: float | None
    steps: Annotated[int, Field(ge=1)]
    order: Digest
    """Root over the steps: batches and hyperparameters of each."""

    def encode(self) -> bytes:
        """The content of a commitment's file, and of its envelope."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes, what: str) -> Commitment:
        """Read a commitment strictly; `what` names it in errors.

        Raises:
            EvidenceError: if it is not strict JSON, or no commitment.
        """
        return strict_json.load(cls, data, what)

    def differing(self, recorded: Commitment) -> tuple[str, ...]:
        """Names of the fields in which a record is not what was committed to, in their order."""
        fields = type(self).model_fields
        return tuple(name for name in fields if getattr(self, name) != getattr(recorded, name))


def order_of(leaves: Sequence[bytes]) -> str:
    """The root over the steps' leaves."""
    return f"sha256:{merkle.root([merkle.leaf(leaf) for leaf in leaves]).hex()}"
