"""initial-weights: whether the training began with the weights that the spec says it began with."""

from __future__ import annotations

from auditspec.beginnings import FirstWeights
from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.results import CheckResult


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
            reason = "nobody declares where the first weights come from (model.initial); "
            reason += (
                f"{first.unlike} is like no draw of the factory"
                if first.unlike
                else "they are like draws of the factory"
            )
            return self.result("inconclusive", reason)
        if first.declared == "given":
            if first.differs:
                return self.result(
                    "fail",
                    f"{first.differs} is not as in the pinned weights",
                    statistic=1,
                    threshold=0,
                )
            if not first.pinned:
                reason = "nothing pins the weights that were given (model.initial.weights)"
                return self.result("inconclusive", reason)
            return self.result(
                "pass", "the first weights are those that were given", statistic=0, threshold=0
            )
        if first.differs:
            reason = f"seed {first.seed} draws another {first.differs} than the record begins with"
            return self.result("fail", reason, statistic=1, threshold=0)
        if first.unlike:
            reason = f"{first.unlike} is like no draw of the factory: it was not drawn at random"
            return self.result("fail", reason, statistic=1, threshold=0)
        seen = (
            "the seed draws them again"
            if first.seed is not None
            else "they are like its other draws"
        )
        return self.result(
            "pass",
            f"the factory draws the first weights at random: {seen}",
            statistic=0,
            threshold=0,
        )
