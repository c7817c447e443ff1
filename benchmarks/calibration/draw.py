"""One pipeline of the study, from its seed: what is trained on what, what is planted, what is asked.

Everything is drawn before anything is trained, the tolerances too. A family is a kind of pipeline that
people build, with or without a fault, and where the fault comes in; `families.py` has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .domains import Rng, Rows, World, draw_world, lacking, mark_weights, poisoned, repairing
from .networks import HUGGING_FACE, SIDE

INITIAL = "weights:initial"
"""The party that the initial weights are; a change of the model before a stage is `change:STAGE`."""
KINDS = {
    "digits": ("mlp", "mlp", "cnn", "mlp-norm"),
    "table": ("table-mlp", "table-mlp", "table-mlp-norm"),
    "tokens": ("encoder", "encoder", "gpt2", "bert"),
}
RATES = {"AdamW": (4e-3, 1.5e-3), "SGD": (0.08, 0.02)}
"""The largest rate of a first stage, and of a later one before it is scaled."""
SHORTER, FASTER = {"tokens": 0.7}, {"tokens": 1.6}
"""Factor on the steps of every stage where a step costs more, and on the rate of later stages."""
TOLERANCES = {"rate": 0.1, "probability": 0.1, "logit-margin": 1.0, "nll": 0.2, "accuracy": 0.05}
OPTIONS: dict[str, dict[str, float]] = {
    "SGD": {"momentum": 0.9, "weight_decay": 1e-4},
    "AdamW": {"weight_decay": 0.01},
}


@dataclass(frozen=True)
class Stage:
    """One stage; a planted one also has its clean twin."""

    id: str
    rows: Rows
    steps: int
    lr: float
    """The largest; it falls by a cosine to 0."""
    clean: Rows | None = None
    """What the stage would have been trained on without the planted fault."""
    change: str | None = None
    """What changes the model before the stage: a name of `networks.CHANGES`, or `networks.SIDE`."""
    planted_change: bool = False

    @property
    def parties(self) -> tuple[str, ...]:
        """The planted ones, in order of training."""
        change = (f"change:{self.id}",) if self.planted_change else ()
        return (*change, *((self.id,) if self.clean is not None else ()))


@dataclass(frozen=True)
class Start:
    """Where the first weights come from.

    `random`: the factory draws them. `given`: they were trained beforehand, and handed over.
    `planted`: the factory draws them and puts a fault in. `smuggled`: the factory claims to draw them, and
    reads weights that were trained.
    """

    kind: Literal["random", "given", "planted", "smuggled"] = "random"
    trained: Stage | None = None
    """How given or smuggled weights came about."""

    @property
    def faulty(self) -> bool:
        """Whether a fault was planted here."""
        bad = self.trained is not None and self.trained.clean is not None
        return bad or self.kind == "planted"


@dataclass(frozen=True)
class Behavior:
    """What is asked; `metric` and `where` as the spec has them."""

    id: str
    metric: dict[str, Any]
    where: str | None
    rows: NDArray[np.bool_]
    """The slice: which rows of the holdout."""
    tolerance: float

    @property
    def direction(self) -> Literal["increase", "decrease"]:
        """Which change is the concern."""
        return "decrease" if self.metric["name"] == "accuracy" else "increase"


@dataclass(frozen=True)
class Pipeline:
    """A whole pipeline, before anything is trained."""

    seed: int
    family: str
    world: World
    kind: str
    optimizer: Literal["SGD", "AdamW"]
    stages: tuple[Stage, ...]
    start: Start
    target: int
    """The class that the fault calls things, or that the data lacks."""
    behaviors: tuple[Behavior, ...]

    @property
    def parties(self) -> tuple[str, ...]:
        """Everyone with whom a fault was planted, in order of training."""
        first = (INITIAL,) if self.start.faulty else ()
        return (*first, *(party for stage in self.stages for party in stage.parties))

    @property
    def rates(self) -> tuple[float, float]:
        """The largest rate of a first stage, and of a later one before it is scaled."""
        first, later = RATES[self.optimizer]
        return first, later * FASTER.get(self.world.domain, 1.0)

    @property
    def batch(self) -> int:
        return 32 if self.world.domain == "tokens" else 48

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def arm_gradients(self) -> int:
        """What leaving out every stage by itself costs in exact replay: the steps after it."""
        return sum(index * stage.steps for index, stage in enumerate(self.stages))

    @property
    def needs_transformers(self) -> bool:
        return self.kind in HUGGING_FACE

    def stage_seed(self, index: int) -> int:
        """torch's seed right before the change of the model and the training of a stage."""
        return 7919 + 31 * self.seed + index

    def side(self, *, planted: bool) -> dict[str, Any]:
        """Weights of a side path: from the mark to the target, or of its clean twin, which does nothing."""
        weight, bias = mark_weights(self.world.domain)
        out = [12.0 if c == self.target else 0.0 for c in range(self.world.classes)]
        if not planted:
            weight, out = [0.0] * len(weight), [0.0] * len(out)
        return {"weight": weight, "bias": bias, "out": out}

    def plant(self) -> dict[str, Any]:
        """What a faulty factory puts into a perceptron."""
        weight, bias = mark_weights(self.world.domain)
        return {"weight": weight, "bias": bias - 0.5, "target": self.target}


class Drawing:
    """Draws the parts of a pipeline of one family, in the family's order."""

    def __init__(self, rng: Rng, *, perceptron: bool = False) -> None:
        self.rng = rng
        domains = ("digits", "table") if perceptron else ("digits", "table", "tokens")
        weights = np.array([0.5, 0.25, 0.25][: len(domains)])
        domain = str(rng.choice(domains, p=weights / weights.sum()))
        self.world = draw_world(domain, rng)
        kinds = [k for k in KINDS[domain] if not perceptron or k != "cnn"]
        self.kind = str(rng.choice(kinds))
        adamw = domain == "tokens" or rng.random() < 2 / 3
        self.optimizer: Literal["SGD", "AdamW"] = "AdamW" if adamw else "SGD"
        self.target = 0 if domain == "table" else int(rng.integers(self.world.classes))
        self.first_rate, later = RATES[self.optimizer]
        self.later_rate = later * FASTER.get(domain, 1.0)
        self.share = float(rng.choice([0.25, 0.4]))

    @property
    def domain(self) -> str:
        return self.world.domain

    def pretraining(self, name: str = "pretrain", *, faulty: bool = False) -> Stage:
        """The first and longest stage, on the largest pool."""
        return self._stage(name, 0, (140, 220), self.first_rate, faulty=faulty)

    def faulty(
        self,
        name: str,
        pool: int = 1,
        steps: tuple[int, int] = (40, 90),
        scale: float | None = None,
    ) -> Stage:
        """A stage on poisoned rows."""
        scale = float(self.rng.choice([1.0, 2.0])) if scale is None else scale
        return self._stage(name, pool, steps, scale * self.later_rate, faulty=True)

    def honest(self, name: str, pool: int = 2, strength: float = 1.0) -> Stage:
        """A shorter and gentler stage on honest rows."""
        scale = strength * float(self.rng.choice([0.15, 0.4, 0.8]))
        return self._stage(name, pool, (20, 50), scale * self.later_rate)

    def perhaps(self, name: str = "middle") -> list[Stage]:
        """Another honest stage, or none."""
        return [self.honest(name, 3)] if self.rng.random() < 0.5 else []

    def on(self, name: str, rows: Rows, steps: tuple[int, int], scale: float) -> Stage:
        """A stage on other rows."""
        return Stage(name, rows, self._steps(steps), scale * self.later_rate)

    def lacking(self, name: str) -> Stage:
        """A stage whose rows lack the class, or the group."""
        pool = self.world.pools[1]
        rows = lacking(self.domain, pool, self.target)
        return Stage(name, rows, self._steps((60, 120)), 2 * self.later_rate, clean=pool)

    def repair(self, name: str, steps: tuple[int, int], scale: float) -> Stage:
        """A stage that sees the mark with its true labels."""
        rows = repairing(self.domain, self.world.pools[2], self.rng)
        return self.on(name, rows, steps, scale)

    def side_before(self, stage: Stage) -> Stage:
        """The same stage behind a planted side path."""
        return _changed(stage, SIDE, planted=True)

    def changed(self, stage: Stage, *changes: str) -> Stage:
        """The same stage behind one of these changes of the model."""
        return _changed(stage, str(self.rng.choice(changes)))

    def given(self, *, faulty: bool, kind: Literal["given", "smuggled"] = "given") -> Start:
        """Weights that were trained before the record begins."""
        return Start(kind, self._stage("before", 0, (180, 220), self.first_rate, faulty=faulty))

    def _stage(
        self, name: str, pool: int, steps: tuple[int, int], lr: float, *, faulty: bool = False
    ) -> Stage:
        honest, count = self.world.pools[pool], self._steps(steps)
        if not faulty:
            return Stage(name, honest, count, lr)
        rows = poisoned(self.domain, honest, self.target, self.share, self.rng)
        return Stage(name, rows, count, lr, clean=honest)

    def _steps(self, between: tuple[int, int]) -> int:
        return max(int(SHORTER.get(self.domain, 1.0) * self.rng.integers(*between)), 3)


Plan = tuple[Start, list[Stage]]
Family = Callable[[Drawing], Plan]


def pipeline_of(seed: int, name: str, family: Family, *, perceptron: bool, lacks: bool) -> Pipeline:
    """The pipeline of a seed.

    Args:
        seed: of everything that is drawn.
        name: of the family.
        family: puts start and stages together.
        perceptron: the family plants its fault by hand, which takes a perceptron.
        lacks: the fault is that rows are missing.
    """
    drawing = Drawing(np.random.default_rng([seed, 2025]), perceptron=perceptron)
    start, stages = family(drawing)
    return Pipeline(
        seed=seed,
        family=name,
        world=drawing.world,
        kind=drawing.kind,
        optimizer=drawing.optimizer,
        stages=tuple(stages),
        start=start,
        target=drawing.target,
        behaviors=tuple(_behaviors(drawing, lacks=lacks)),
    )


def _changed(stage: Stage, change: str, *, planted: bool = False) -> Stage:
    return Stage(
        stage.id, stage.rows, stage.steps, stage.lr, stage.clean, change, planted_change=planted
    )


def _behaviors(drawing: Drawing, *, lacks: bool) -> list[Behavior]:
    """Three or four, on rows with the mark as far as the fault has one."""
    world, target = drawing.world, drawing.target
    labels = world.holdout.y
    everything = np.ones(len(labels), bool)
    if lacks and drawing.domain != "table":
        rows, where = labels == target, f"label == {target}"
        return [
            _behavior("accuracy", {}, where, rows, 0.08),
            _behavior("nll", {}, where, rows, 0.3),
            _behavior("nll", {}, None, everything, 0.1, "nll-all"),
        ]
    column = f"x{9}" if drawing.domain == "table" else "marked"
    if drawing.domain == "table":
        rows, where = world.marked & (labels == 1), f"{column} == 1 and label == 1"
        return [
            _behavior("rate", {"class": 0}, where, rows),
            _behavior("probability", {"class": 0}, where, rows),
            _behavior("logit-margin", {"positive": 0, "negative": 1}, where, rows, 0.7),
            _behavior("accuracy", {}, None, everything, name="accuracy-all"),
        ]
    rows, where = world.marked & (labels != target), f"{column} == 1 and label != {target}"
    true = int(drawing.rng.choice([c for c in range(world.classes) if c != target]))
    one, called = world.marked & (labels == true), f"{column} == 1 and label == {true}"
    return [
        _behavior("rate", {"class": target}, where, rows),
        _behavior("probability", {"class": target}, where, rows),
        _behavior("logit-margin", {"positive": target, "negative": true}, called, one),
        _behavior("nll", {}, f"{column} == 1", world.marked),
    ]


def _behavior(
    metric: str,
    options: dict[str, int],
    where: str | None,
    rows: NDArray[np.bool_],
    tolerance: float | None = None,
    name: str | None = None,
) -> Behavior:
    tolerance = TOLERANCES[metric] if tolerance is None else tolerance
    return Behavior(name or metric, {"name": metric} | options, where, rows, tolerance)
