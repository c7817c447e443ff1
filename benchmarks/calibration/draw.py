"""One random audit of the study, from its seed: pipeline, faults, behaviours, tolerances, and a lie.

Everything is drawn before anything is trained, the tolerances too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Kind = Literal["clean", "one", "two", "lie"]
KINDS: tuple[Kind, ...] = (*("one", "clean", "two", "one", "lie"), *("one", "clean", "one", "two"))
"""By seed, in turn: of nine audits four have one guilty stage, two two, two none, and one lies."""
LIES = ("swapped-checkpoint", "edited-weights", "edited-end", "learning-rate", "other-batches")
LIES = (*LIES, "swapped-data")
CLASSES = 10
TRAIN, HOLDOUT = 500, 400
"""Rows; the other 897 of the 1,797 digits are the pool."""
BATCH = 32
TOLERANCES = {
    "logit-margin": (0.5, 1.0, 2.0),
    "nll": (0.1, 0.25, 0.5),
    "probability": (0.05, 0.1, 0.2),
    "accuracy": (0.1, 0.15, 0.2),
    "rate": (0.1, 0.15, 0.2),
}
"""What an auditor may choose on one class, some forty rows, in the metric's unit."""
SHARED_OUT = 0.4
"""On all rows ten times as many examples tell, and one class weighs less: tolerances are this much smaller."""
UP = {"logit-margin": True, "nll": True, "probability": False, "accuracy": False, "rate": True}
"""Whether an increase is the concern."""


UNREPAIRED = 0.6
"""Probability that a stage after a fault does not see the class concerned."""


@dataclass(frozen=True)
class Fault:
    """A share of one class is called another in one stage's data."""

    stage: int
    true: int
    called: int
    share: float


@dataclass(frozen=True)
class Stage:
    """One stage; its table holds the rows of some classes, or a part of all."""

    id: str
    steps: int
    lr: float
    schedule: Literal["constant", "cosine"]
    state: Literal["reset", "carry"]
    classes: tuple[int, ...]
    part: float
    """Share of the rows of these classes."""


@dataclass(frozen=True)
class Drawn:
    """A whole audit, before anything is trained."""

    seed: int
    kind: Kind
    model: Literal["mlp", "cnn"]
    optimizer: Literal["SGD", "AdamW"]
    options: dict[str, float]
    stages: tuple[Stage, ...]
    faults: tuple[Fault, ...]
    behaviors: tuple[dict[str, Any], ...]
    """As the spec has them."""
    lie: str | None

    @property
    def exact_gradients(self) -> int:
        """What exact replay of every stage costs."""
        return sum(i * stage.steps for i, stage in enumerate(self.stages))


def draw(seed: int) -> Drawn:
    """The audit of a seed."""
    rng = np.random.default_rng([seed, 2024])
    kind = KINDS[seed % len(KINDS)]
    optimizer = str(rng.choice(["SGD", "AdamW"]))
    model = "cnn" if rng.random() < 0.25 else "mlp"
    count = int(rng.integers(3, 8))
    gentle, violent = (1e-3, 0.08) if optimizer == "SGD" else (5e-5, 3e-3)
    ceiling = _log_uniform(rng, gentle, violent)
    """The largest rate of this pipeline's fine-tuning: how violent it is."""
    carried = rng.random() < 0.15
    stages = [_first(rng, optimizer)]
    stages += [_later(rng, i, ceiling, carried=carried) for i in range(1, count)]
    faults = _faults(rng, {"clean": 0, "one": 1, "two": 2, "lie": 1}[kind], count)
    for fault in faults:
        held = stages[fault.stage]
        stages[fault.stage] = replace(held, classes=tuple(sorted({*held.classes, fault.true})))
        for later in range(fault.stage + 1, count):
            if rng.random() < UNREPAIRED and all(f.stage != later for f in faults):
                left = tuple(c for c in stages[later].classes if c != fault.true)
                stages[later] = replace(stages[later], classes=left)
    lies = LIES[seed // len(KINDS) % len(LIES)]
    return Drawn(
        seed=seed,
        kind=kind,
        model=model,  # type: ignore[arg-type]
        optimizer=optimizer,  # type: ignore[arg-type]
        options=_options(rng, optimizer),
        stages=tuple(stages),
        faults=tuple(faults),
        behaviors=tuple(_behaviors(rng, faults)),
        lie=lies if kind == "lie" else None,
    )


def _options(rng: np.random.Generator, optimizer: str) -> dict[str, float]:
    if optimizer == "SGD":
        return {"momentum": float(rng.choice([0.5, 0.9])), "weight_decay": 1e-3}
    return {"weight_decay": 0.01, "eps": float(rng.choice([1e-8, 1e-4]))}


def _first(rng: np.random.Generator, optimizer: str) -> Stage:
    lr = 0.05 if optimizer == "SGD" else 3e-3
    steps = int(rng.integers(80, 201))
    return Stage("stage-0", steps, lr, "cosine", "reset", tuple(range(CLASSES)), 1.0)


def _later(rng: np.random.Generator, index: int, ceiling: float, *, carried: bool) -> Stage:
    every = rng.random() < 0.4
    some = rng.choice(CLASSES, int(rng.integers(3, 9)), replace=False)
    return Stage(
        id=f"stage-{index}",
        steps=int(rng.integers(12, 81)),
        lr=float(f"{_log_uniform(rng, ceiling / 3, ceiling):.3g}"),
        schedule="cosine" if rng.random() < 0.7 else "constant",
        state="carry" if carried else "reset",
        classes=tuple(range(CLASSES)) if every else tuple(sorted(map(int, some))),
        part=float(rng.choice([1.0, 0.5])),
    )


def _faults(rng: np.random.Generator, count: int, stages: int) -> list[Fault]:
    places = rng.choice(stages, count, replace=False)
    true, called = map(int, rng.choice(CLASSES, 2, replace=False))
    same = rng.random() < 0.5
    faults = []
    for place in sorted(map(int, places)):
        if faults and not same:
            true, called = map(int, rng.choice(CLASSES, 2, replace=False))
        faults.append(Fault(place, true, called, round(float(rng.uniform(0.4, 1.0)), 2)))
    return faults


def _behaviors(rng: np.random.Generator, faults: list[Fault]) -> list[dict[str, Any]]:
    """Two or three; every fault is asked after, and some twice, by another metric perhaps."""
    asked = list(dict.fromkeys((fault.true, fault.called) for fault in faults))
    wanted = int(rng.integers(2, 4))
    if asked and len(asked) < wanted and rng.random() < 0.5:
        asked.append(asked[0])
    while len(asked) < wanted:
        true, called = map(int, rng.choice(CLASSES, 2, replace=False))
        asked.append((true, called))
    return [_behavior(rng, i, true, called) for i, (true, called) in enumerate(asked)]


def _behavior(rng: np.random.Generator, index: int, true: int, called: int) -> dict[str, Any]:
    name = str(rng.choice(list(TOLERANCES)))
    metric: dict[str, Any] = {"name": name}
    if name == "logit-margin":
        metric |= {"positive": called, "negative": true}
    elif name == "rate":
        metric |= {"class": called}
    everywhere = index > 0 and name in ("nll", "accuracy", "probability") and rng.random() < 0.3
    tolerance = float(rng.choice(TOLERANCES[name]))
    where = {} if everywhere else {"where": f"digit == {true}"}
    return where | {
        "id": f"b{index}",
        "description": "A digit is misread" if everywhere else f"A {true} is misread",
        "metric": metric,
        "data": "holdout",
        "concern": {
            "direction": "increase" if UP[name] else "decrease",
            "tolerance": round(tolerance * SHARED_OUT if everywhere else tolerance, 3),
            "severity": "high",
        },
    }


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
