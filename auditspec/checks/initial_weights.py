"""initial-weights: whether the training began with the weights that the spec says it began with."""

from __future__ import annotations

from auditspec.beginnings import FirstWeights
from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.messages import Message, message
from auditspec.results import CheckResult, Outcome


class InitialWeights(Check):
    """Holds the declared beginning against the record's first state and the factory's draws."""

    id = "initial-weights"
    title = "Training began with the declared weights"
    statistic_name = "tensors that differ from what is declared"
    unit = "tensors"
    source = "the factory called again under other random numbers (docs/checks.md)"
    looks_at = (Estimated,)

    def __init__(self, first: FirstWeights) -> None:
        self.first = first

    @classmethod
    def of(cls, subject: Subject) -> InitialWeights:
        """On what was seen of the beginning."""
        return cls(subject[Estimated].beginnings.first)

    def run(self) -> CheckResult:
        """Fails where the declaration is contradicted; inconclusive where nobody declares anything, or
        nothing pins what was given.
        """
        first = self.first
        if first.declared is None:
            seen = (
                message("like-no-draw", tensor=first.unlike)
                if first.unlike
                else message("like-draws")
            )
            return self.result("inconclusive", [message("beginning-undeclared"), seen])
        if first.declared == "given" and not first.differs and not first.pinned:
            return self.result("inconclusive", message("given-weights-not-pinned"))
        wrong = self._wrong()
        outcome: Outcome = "pass" if wrong is None else "fail"
        return self.result(
            outcome, wrong or self._right(), statistic=int(wrong is not None), threshold=0
        )

    def _wrong(self) -> Message | None:
        """What contradicts the declaration."""
        first = self.first
        if first.declared == "given":
            return message("not-the-given-weights", tensor=first.differs) if first.differs else None
        if first.differs:
            return message("seed-draws-another", seed=first.seed or 0, tensor=first.differs)
        return message("not-drawn", tensor=first.unlike) if first.unlike else None

    def _right(self) -> Message:
        if self.first.declared == "given":
            return message("the-given-weights")
        if self.first.seed is not None:
            return message("drawn-by-seed")
        return message("drawn-at-random")
