"""sampling: how far the effects could move with other evaluation examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from auditspec.answerable.certainty import FEWEST
from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.intervals import Interval, Sample
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import Sampling as Options


class SamplingCheck(Check):
    """Counts effects whose interval leaves open which side of the tolerance they are on."""

    id = "sampling"
    title = "Enough evaluation examples to tell the effects apart"
    statistic_name = "effects whose interval contains the tolerance"
    unit = "effects"
    source = "bootstrap: Efron & Tibshirani 1993; simultaneous by max-T: Westfall & Young 1993"
    resampling = True
    section = Options
    looks_at = (Estimated,)

    def __init__(
        self, samples: Sequence[Sample], intervals: Mapping[str, Interval], options: Options
    ) -> None:
        self.samples = samples
        self.intervals = intervals
        self.options = options

    @classmethod
    def of(cls, subject: Subject) -> SamplingCheck:
        """On the intervals of every effect."""
        estimated = subject[Estimated]
        samples = (*estimated.samples, *estimated.elsewhere)
        return cls(samples, estimated.intervals, subject.spec.checks.of(cls.id, Options))

    def run(self) -> CheckResult:
        """Inconclusive where an effect is undecided or a slice has fewer than ten examples."""
        details, undecided, few = [], 0, []
        for sample in self.samples:
            interval, concern = self.intervals[sample.behavior], sample.concern
            ends = concern.signed(interval.low), concern.signed(interval.high)
            low, high = ends if concern.rises else ends[::-1]
            open_ = int(((low <= concern.tolerance) & (high > concern.tolerance)).sum())
            undecided += open_
            n = len(sample.ids)
            if n < FEWEST:
                few.append(sample.behavior)
            outcome: Outcome = "inconclusive" if open_ or n < FEWEST else "pass"
            details.append(
                CheckDetail(
                    subject=sample.behavior,
                    behavior=sample.behavior,
                    outcome=outcome,
                    statistic=open_,
                    notes=(
                        message(
                            "examples-and-undecided",
                            examples=n,
                            stages=len(interval.low),
                            undecided=open_,
                        ),
                    ),
                )
            )
        reasons = [
            message(
                "effects-undecided",
                effects=undecided,
                level=self.options.level,
                resamples=self.options.resamples,
            )
        ]
        if few:
            reasons.append(message("few-examples", fewest=FEWEST, behaviors=few))
        return self.result(
            "inconclusive" if undecided or few else "pass",
            reasons,
            statistic=undecided,
            threshold=0,
            details=details,
        )
