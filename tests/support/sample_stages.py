"""The training stages of the sample result, its parties, and levels along its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from auditspec.results import Curve, Effect, PartyResult, Path, StageResult

STAGES = ("pretrain", "low-digits", "relabel", "high-digits", "refresh")
STEPS = (300, 60, 60, 60, 120)
PEAKS = (0.05, 0.005, 0.005, 0.005, 0.003)
OWNERS = ("Foundation team", "Products team", "Data operations", "Products team", "Release team")
DESCRIPTIONS = (
    "Pretraining on all digits",
    "Specialisation on the digits 0 to 4",
    "Fine-tuning on the labels of batch 7, which were entered by hand",
    "Specialisation on the digits 5 to 9",
    "Final pass over all digits before release",
)
DATA = (
    ("train-a",),
    ("train-low",),
    ("train-relabelled", "train-a"),
    ("train-high",),
    ("train-a",),
)


def _curve(stage: int) -> Curve:
    steps = STEPS[stage]
    ticks = tuple(range(0, steps, max(1, steps // 40)))
    rate = tuple(PEAKS[stage] * 0.5 * (1 + math.cos(math.pi * k / steps)) for k in ticks)
    start = (2.3, 0.62, 0.94, 0.71, 0.55)[stage]
    end = (0.48, 0.31, 0.42, 0.33, 0.29)[stage]
    loss = tuple(
        None
        if k == 0 and stage == 3
        else end + (start - end) * math.exp(-4 * k / steps) + 0.03 * math.sin(7.0 * k)
        for k in ticks
    )
    return Curve(step=ticks, learning_rate=rate, loss=loss)


def sample_stages() -> tuple[StageResult, ...]:
    """Five stages, each with its curve."""
    return tuple(
        StageResult(
            id=STAGES[i],
            owner=OWNERS[i],
            description=DESCRIPTIONS[i],
            data=DATA[i],
            objective="train:cross_entropy",
            optimizer=f"SGD: lr {PEAKS[i]}, momentum 0.9, weight_decay 0.001, schedule cosine",
            boundary="reset",
            steps=STEPS[i],
            examples=STEPS[i] * 64,
            seconds=STEPS[i] * 0.021,
            curve=_curve(i),
        )
        for i in range(len(STAGES))
    )


def sample_parties() -> tuple[PartyResult, ...]:
    """Random initial weights, and the five stages."""
    return (
        PartyResult(id="weights:initial", kind="initial", owner="Foundation team", origin="random"),
        *(
            PartyResult(id=stage, kind="stage", stage=stage, owner=owner)
            for stage, owner in zip(STAGES, OWNERS, strict=True)
        ),
    )


def sample_paths(
    behavior: str, recorded: Sequence[float], effects: Sequence[Effect]
) -> tuple[Path, ...]:
    """A behaviour along the recorded run, and along each run without one stage, which ends as its effect says."""
    states = ("initial", *(f"{stage}:end" for stage in STAGES))
    paths = [
        Path(
            behavior=behavior,
            arm=(),
            states=states,
            levels=tuple(recorded),
            errors=(0.0,) * len(states),
            skills=(0.02, 0.94, 0.91, 0.97, 1.0, 0.99),
            exact=True,
        )
    ]
    for effect in (e for e in effects if e.behavior == behavior):
        first = STAGES.index(effect.stage) + 2
        levels = [level - 0.9 * effect.value for level in recorded[first:-1]]
        # The last stage left out: its arm ends where it would have begun, and holds no state of its own.
        kept = states[first:]
        if kept:
            levels.append(effect.counterfactual)
        paths.append(
            Path(
                behavior=behavior,
                arm=(f"omit {effect.stage}",),
                states=kept,
                levels=tuple(levels),
                errors=(effect.error or 0.0,) * len(kept),
                skills=(0.96,) * len(kept),
                exact=effect.exact,
            )
        )
    return tuple(paths)
