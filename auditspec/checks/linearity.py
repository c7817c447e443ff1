"""linearity: the plug-in reading of a displacement against its linear reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.messages import Message, message
from auditspec.results import CheckDetail, CheckResult
from auditspec.spec.checks import Linearity as Options


@dataclass(frozen=True)
class TwoReadings:
    """One displacement's effect on one behaviour, read in both ways."""

    stage: str
    behavior: str
    plug_in: float
    """gamma(theta_K) - gamma(theta_K + delta)"""
    linear: float
    """The same of scores that change by -grad score(theta_K) . delta."""
    apart: float
    """How far the two readings are apart (`Statistic.distance`)."""
    size: float
    """How far the plug-in reading is from no change."""
    tolerance: float
    first_order: bool
    """Whether the effect rests on linearising the whole way."""

    @property
    def disagreement(self) -> float:
        """Distance of the readings, relative to the size of the plug-in reading.

        An effect below the tolerance is held against the tolerance instead.
        """
        return self.apart / max(self.size, self.tolerance) if self.apart else 0.0


class Linearity(Check):
    """Largest relative disagreement of the readings of a first-order estimate.

    A gate for behaviours that are read from a `first-order` displacement; for those of other
    estimators, which are read plug-in, it describes how far the stage moved the model.
    """

    id = "linearity"
    title = "The plug-in and the linear reading agree where an effect rests on linearising"
    statistic_name = "largest relative disagreement of a first-order estimate"
    source = "Taylor's theorem: the readings differ by the second order (docs/method.md)"
    bars = "estimated"
    remedy = message("settle-another-estimator")
    section = Options
    looks_at = (Estimated,)

    def __init__(
        self,
        readings: Sequence[TwoReadings],
        options: Options,
        unread: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.readings = readings
        self.options = options
        self.unread = unread
        """Stages and behaviours of first-order estimates that have no linear reading."""

    @classmethod
    def of(cls, subject: Subject) -> Linearity:
        """On every effect that was read in both ways."""
        readings, unread = [], []
        estimated = subject[Estimated]
        for stage, effects in estimated.effects.items():
            first_order = effects.counterfactual.linear_reading
            for behavior in subject.spec.behaviors:
                name, slope = behavior.id, effects.linear.get(behavior.id)
                if slope is not None:
                    deployed, plug_in = estimated.base[name], effects.plug_in[name]
                    statistic = estimated.reader.slices[name].statistic
                    readings.append(
                        TwoReadings(
                            stage=stage,
                            behavior=name,
                            plug_in=statistic.effect(deployed, plug_in),
                            linear=statistic.effect(deployed, slope),
                            apart=statistic.effect_distance(deployed, plug_in, slope),
                            size=statistic.size(deployed, plug_in),
                            tolerance=behavior.concern.tolerance,
                            first_order=first_order,
                        )
                    )
                elif first_order:
                    unread.append((stage, name))
        return cls(readings, subject.spec.checks.of(cls.id, Options), unread)

    def run(self) -> CheckResult:
        """Fail where a first-order estimate is read in a region that is not linear."""
        threshold = self.options.threshold
        details = []
        for reading in self.readings:
            off = reading.disagreement
            bad = off > threshold
            details.append(
                CheckDetail(
                    subject=f"{reading.stage} / {reading.behavior}",
                    stage=reading.stage,
                    behavior=reading.behavior,
                    outcome="fail" if bad and reading.first_order else "pass",
                    statistic=off if np.isfinite(off) else None,
                    estimate=reading.linear,
                    reference=reading.plug_in,
                    notes=() if reading.first_order else _plug_in(bad),
                )
            )
        details += [
            CheckDetail(
                subject=f"{stage} / {behavior}",
                stage=stage,
                behavior=behavior,
                outcome="inconclusive",
                notes=(message("no-slope-to-compare"),),
            )
            for stage, behavior in self.unread
        ]
        gated = [r for r in self.readings if r.first_order]
        if not gated and self.unread:
            return self.result(
                "inconclusive",
                message("no-linear-reading-to-compare"),
                threshold=threshold,
                details=details,
            )
        if not gated:
            return self.result(
                "pass",
                message("nothing-rests-on-first-order"),
                threshold=threshold,
                details=details,
            )
        worst = max(gated, key=lambda r: r.disagreement)
        failed = worst.disagreement > threshold
        return self.result(
            "fail" if failed else "inconclusive" if self.unread else "pass",
            _worst(worst, failed),
            statistic=worst.disagreement if np.isfinite(worst.disagreement) else None,
            threshold=threshold,
            details=details,
        )


def _plug_in(far: bool) -> tuple[Message, ...]:
    return (message("read-plug-in-far") if far else message("read-plug-in"),)


def _worst(worst: TwoReadings, failed: bool) -> tuple[Message, ...]:
    reason = message(
        "readings-differ", stage=worst.stage, behavior=worst.behavior, share=worst.disagreement
    )
    return (reason, *((message("first-order-not-to-be-trusted"),) if failed else ()))
