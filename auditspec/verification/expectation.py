"""What a verifier expects a packet to be about: a good packet may still be one about something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from auditspec.errors import SignatureError
from auditspec.results import AuditResult

STEP = "expected"


@dataclass(frozen=True)
class Expectation:
    """Digests and names that the packet must state; what is left out is not compared."""

    spec: str | None = None
    """Digest of the spec."""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """Digest of each artifact, by its name in the spec."""
    version: str | None = None
    """Of the audited system."""

    @property
    def count(self) -> int:
        """How many things are expected."""
        return len(self.artifacts) + (self.spec is not None) + (self.version is not None)

    def require(self, result: AuditResult) -> None:
        """Compare with what the packet states.

        Raises:
            SignatureError: at step `expected`, naming the first thing that is another one.
        """
        if self.spec is not None and self.spec != result.run.spec_digest:
            raise SignatureError(
                STEP, f"the packet is about spec {result.run.spec_digest}, expected is {self.spec}"
            )
        if self.version is not None and self.version != result.system.version:
            raise SignatureError(
                STEP,
                f"the packet is about version {result.system.version}, expected is {self.version}",
            )
        stated = {e.name: e.found for e in result.evidence if e.state == "verified"}
        for name, digest in self.artifacts.items():
            if stated.get(name) != digest:
                raise SignatureError(
                    STEP,
                    f"the packet is about {name} {stated.get(name, 'without a verified digest')}, "
                    f"expected is {digest}",
                )
