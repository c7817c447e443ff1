"""refinement: how wrong the estimates say they are themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.intervals import Sample
from auditspec.messages import Message, message
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import Refinement as Options

NOTHING: Mapping[str, Message] = {}


class Refinement(Check):
    """Largest own error of a stage's estimate, in shares of the behaviour's largest effect.

    The error comes from a twin (paired replay), or from the distance to the rung below, never less
    than what the spot check saw; it is part of every interval. Here it must also be small beside the
    largest |effect| of any stage on the behaviour (or the tolerance, if that is larger): an estimate
    wrong by half of it could name another stage.
    """

    id = "refinement"
    title = "The estimates are more certain than the effects are large"
    statistic_name = "largest own error of an estimate, in shares of the behaviour's largest effect"
    source = "twin with shifted windows, or the rung below (docs/method.md, Intervals)"
    bars = "estimated"
    remedy = message("settle-replay")
    section = Options
    looks_at = (Estimated,)

    def __init__(
        self,
        samples: Sequence[Sample],
        stages: Sequence[str],
        options: Options,
        unreliable: Mapping[str, Message] = NOTHING,
    ) -> None:
        self.samples = samples
        self.stages = stages
        self.options = options
        self.unreliable = unreliable
        """Why the estimate of a stage cannot know its own error, where it cannot."""

    @classmethod
    def of(cls, subject: Subject) -> Refinement:
        """On every effect, with the estimator's own error of it."""
        estimated = subject[Estimated]
        unreliable = {
            stage: effects.unreliable
            for stage, effects in estimated.effects.items()
            if effects.unreliable is not None
        }
        options = subject.spec.checks.of(cls.id, Options)
        return cls(estimated.samples, list(estimated.effects), options, unreliable)

    def run(self) -> CheckResult:
        """Fail above the threshold; inconclusive where an error is unknown."""
        details = [self._behavior(sample) for sample in self.samples]
        threshold = self.options.threshold
        known = [d.statistic for d in details if d.statistic is not None]
        unknown = [d.subject for d in details if d.outcome == "inconclusive"]
        over = [d for d in details if d.outcome == "fail"]
        if over:
            reasons = [d.line for d in over[:3]]
        elif unknown:
            why = [self.unreliable[s] for s in self.stages if self.unreliable.get(s)]
            why = why or [message("no-estimate-of-own-error")]
            reasons = [message("own-error-unknown", behaviors=unknown, reasons=why[:3])]
        elif not any(sample.errors.any() for sample in self.samples):
            reasons = [message("no-own-error")]
        else:
            reasons = [message("largest-own-error", share=max(known))]
        outcome: Outcome = "fail" if over else "inconclusive" if unknown else "pass"
        return self.result(
            outcome,
            reasons,
            statistic=max(known) if known else None,
            threshold=threshold,
            details=details,
        )

    def _behavior(self, sample: Sample) -> CheckDetail:
        effects = sample.effects
        scale = max(float(np.abs(effects).max()), sample.concern.tolerance)
        worst = int(sample.errors.argmax())
        error = float(sample.errors[worst])
        if not np.isfinite(error):
            return CheckDetail(
                subject=sample.behavior,
                behavior=sample.behavior,
                outcome="inconclusive",
                notes=(message("error-unknown-for", stage=self.stages[worst]),),
            )
        share = (error / scale if scale else np.inf) if error else 0.0
        note = message("exact")
        if error:
            note = message(
                "effect-and-error",
                stage=self.stages[worst],
                effect=float(effects[worst]),
                error=error,
                largest=scale,
            )
        return CheckDetail(
            subject=sample.behavior,
            behavior=sample.behavior,
            stage=self.stages[worst] if error else None,
            outcome="pass" if share <= self.options.threshold else "fail",
            statistic=share if np.isfinite(share) else None,
            notes=(note,),
        )
