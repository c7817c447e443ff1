"""placebo: do random displacements as large as a stage's move the behaviours as much?

For each stage, random displacements of the deployed parameters: half of them isotropic within every
parameter tensor, with the norm that the stage's displacement has there; half the stage's recorded
movements with random signs, scaled to the norm of the whole. They are read as the effect is. Effects and
draws are taken in units of their root mean square, effect and draws of a stage and behaviour together; an effect's p is its
rank among the largest of every round of draws, itself one of them (max-T: Westfall & Young 1993, 2.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from auditspec.checks.interface import Check
from auditspec.checks.placebo_draws import Around, Lot
from auditspec.checks.subject import Estimated, Rerunnable, Subject
from auditspec.how_much import most_examples
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import Placebo as Options

LEVEL = 0.05
"""Adjusted p above which an effect does not stand out."""
ENOUGH = 19
"""Draws of each stage with which an effect can stand out: 1 / (1 + 19) is the level."""
KEPT = 100
"""Most draws of an effect that the result keeps: of more, evenly spaced ones in order of size."""


@dataclass(frozen=True)
class Drawn:
    """A stage's effect on a behaviour, and what random displacements of its size gave instead."""

    stage: str
    behavior: str
    effect: float
    """On the examples that the draws were read on."""
    draws: NDArray[np.float64]
    """[R], in the effect's unit."""
    matters: bool
    """Whether the effect is beyond the tolerance; only such effects must stand out."""
    examples: int | None = None
    """How many both were read on, where those are not all of the behaviour's."""


def adjusted(drawn: Sequence[Drawn]) -> list[float]:
    """The p of every effect among all of them: (1 + rounds of which some draw reaches it) / (1 + rounds)."""
    rounds = min((len(d.draws) for d in drawn), default=0)
    effects = np.array([abs(d.effect) for d in drawn])
    draws = np.array([np.abs(d.draws[:rounds]) for d in drawn]).reshape(len(drawn), rounds)
    squares = np.square(effects) + np.square(draws).sum(axis=1)
    scale = np.sqrt(np.where(squares > 0, squares / (1 + rounds), 1.0))
    largest = (draws / scale[:, None]).max(axis=0, initial=0.0)
    reached = (largest[None, :] >= (effects / scale)[:, None]).sum(axis=1)
    return [float(p) for p in (1 + reached) / (1 + rounds)]


class Placebo(Check):
    """Counts effects beyond the tolerance that random displacements of the same size match.

    It describes, and gates nothing: nearly every stage exceeds random directions, and one that does not,
    such as pretraining, may still have made the behaviour. The empty stage is a
    draw of its own, with the displacement 0; its effect must be exactly 0.
    """

    id = "placebo"
    title = "The effects stand out from random displacements of the same size"
    statistic_name = "effects beyond the tolerance that random displacements match"
    unit = "effects"
    source = "randomisation test: Phipson & Smyth 2010; max-T: Westfall & Young 1993"
    picture = "draws"
    section = Options
    looks_at = (Estimated,)

    def __init__(self, drawn: Sequence[Drawn], empty: Mapping[str, float]) -> None:
        self.drawn = drawn
        self.empty = empty
        """The effect of the empty stage, by behaviour."""

    @classmethod
    def of(cls, subject: Subject) -> Placebo | CheckResult:
        """On the effects as some of the examples have them, and on as many random displacements as they need."""
        estimated, spec = subject[Estimated], subject.spec
        if not estimated.reader.slices:
            return cls.skipped(message("no-behavior-read"))
        options, rerun = spec.checks.of(cls.id, Options), estimated.reader.rerun
        draws = ENOUGH if options.draws is None else options.draws
        if not draws:
            return cls.skipped(message("no-draws"))
        most = most_examples(options.examples, rerun.trajectory)
        reader, rows = estimated.reader.thinned(rerun, most)
        fewer = estimated.reader.fewer(rows)
        tolerances = {b.id: b.concern.tolerance for b in spec.behaviors}
        again = reader.plug_in(estimated.run.final)
        around = Around(reader, estimated.run.final)
        empty = {n: around.effects(again)[n] for n in again}
        lots = [
            Lot(stage, number + spec.checks.seed, range(draws), effects.counterfactual.delta)
            for number, (stage, effects) in enumerate(estimated.effects.items())
        ]
        team = subject[Rerunnable].windows.team if Rerunnable in subject else None
        with subject.progress.phase("reading placebos", draws * len(lots)) as advance:
            random = around.read_all(lots, most, team, advance)
        drawn = [
            Drawn(
                stage=stage,
                behavior=name,
                effect=part.statistic.effect(
                    estimated.base[name][rows[name]], effects.plug_in[name][rows[name]]
                ),
                draws=np.array([read[name] for read in readings]),
                matters=abs(effects.effect(name)) > tolerances[name],
                examples=fewer.get(name),
            )
            for (stage, effects), readings in zip(estimated.effects.items(), random, strict=True)
            for name, part in reader.slices.items()
        ]
        return cls(drawn, empty)

    def run(self) -> CheckResult:
        """Fail where an effect does not stand out, or where nothing has an effect."""
        details, matched = [], []
        for d, p in zip(self.drawn, adjusted(self.drawn), strict=True):
            lost = d.matters and p > LEVEL
            if lost:
                matched.append(f"{d.stage} on {d.behavior}")
            details.append(
                CheckDetail(
                    subject=f"{d.stage} / {d.behavior}",
                    stage=d.stage,
                    behavior=d.behavior,
                    outcome="fail" if lost else "pass",
                    statistic=p,
                    estimate=d.effect,
                    draws=_thinned(d.draws),
                    examples=d.examples,
                    notes=() if d.matters else (message("within-tolerance"),),
                )
            )
        moved = [name for name, effect in self.empty.items() if effect]
        examples = {d.behavior: d.examples for d in self.drawn}
        for name, effect in self.empty.items():
            details.append(
                CheckDetail(
                    subject=f"the empty stage / {name}",
                    behavior=name,
                    outcome="fail" if effect else "pass",
                    estimate=effect,
                    reference=0.0,
                    examples=examples.get(name),
                    notes=(message("deployed-read-twice"),),
                )
            )
        draws = min((len(d.draws) for d in self.drawn), default=0)
        outcome: Outcome = "fail" if matched or moved else "pass"
        if moved:
            reason = message("reading-not-repeatable", behaviors=moved)
        elif draws < ENOUGH:
            outcome = "inconclusive"
            reason = message(
                "too-few-draws", draws=draws, level=LEVEL, effects=len(self.drawn), needed=ENOUGH
            )
        elif matched:
            reason = message("placebos-match", effects=matched)
        elif count := sum(d.matters for d in self.drawn):
            reason = message("effects-stand-out", draws=draws, effects=count, level=LEVEL)
        else:
            reason = message("no-effect-beyond-tolerance")
        return self.result(outcome, reason, statistic=len(matched), threshold=0, details=details)


def _thinned(draws: NDArray[np.float64]) -> tuple[float, ...]:
    ordered = np.sort(draws)
    places = np.linspace(0, len(ordered) - 1, min(len(ordered), KEPT)).round().astype(int)
    return tuple(map(float, ordered[places])) if len(ordered) else ()
