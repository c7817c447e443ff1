"""initial-weights: whether the training began with the weights that the spec says it began with."""

from __future__ import annotations

from typing import Literal

from auditspec.checks.interface import Check
from auditspec.results import CheckResult

Origin = Literal["random", "given", "unknown"]


class InitialWeights(Check):
    """Holds the declared beginning against the record's first state and the factory's draws."""

    id = "initial-weights"
    title = "Training began with the declared weights"
    role = "descriptive"
    statistic_name = "tensors that differ from what is declared"
    unit = "tensors"
    source = "the factory called again under other random numbers (docs/checks.md)"

    def __init__(
        self,
        declared: Literal["random", "given"] | None,
        seed: int | None,
        differs: str,
        unlike: str,
        pinned: bool = True,
    ) -> None:
        self.declared, self.seed, self.pinned = declared, seed, pinned
        self.differs = differs
        """A tensor in which the first state differs from the pinned weights, or from what the seed draws."""
        self.unlike = unlike
        """A tensor that no draw of the factory is like."""

    @property
    def origin(self) -> Origin:
        """Where the first weights come from, as far as is seen."""
        if self.declared == "given":
            return "unknown" if self.differs else "given"
        return "unknown" if self.differs or self.unlike else "random"

    def run(self) -> CheckResult:
        """Fails where the declaration is contradicted; inconclusive where nobody declares anything, or
        nothing pins what was given.
        """
        if self.declared is None:
            reason = "nobody declares where the first weights come from (model.initial); "
            reason += (
                f"{self.unlike} is like no draw of the factory"
                if self.unlike
                else "they are like draws of the factory"
            )
            return self.result("inconclusive", reason)
        if self.declared == "given":
            if self.differs:
                return self.result(
                    "fail",
                    f"{self.differs} is not as in the pinned weights",
                    statistic=1,
                    threshold=0,
                )
            if not self.pinned:
                reason = "nothing pins the weights that were given (model.initial.weights)"
                return self.result("inconclusive", reason)
            return self.result(
                "pass", "the first weights are those that were given", statistic=0, threshold=0
            )
        if self.differs:
            reason = f"seed {self.seed} draws another {self.differs} than the record begins with"
            return self.result("fail", reason, statistic=1, threshold=0)
        if self.unlike:
            reason = f"{self.unlike} is like no draw of the factory: it was not drawn at random"
            return self.result("fail", reason, statistic=1, threshold=0)
        seen = (
            "the seed draws them again"
            if self.seed is not None
            else "they are like its other draws"
        )
        return self.result(
            "pass",
            f"the factory draws the first weights at random: {seen}",
            statistic=0,
            threshold=0,
        )
