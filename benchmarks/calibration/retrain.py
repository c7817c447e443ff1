"""Exact retraining in plain torch, beside the product: the truth that audits are held against.

It imports nothing of auditspec. Its run of a pipeline as it is has to end with the deployed weights, bit
for bit.
"""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from . import networks
from .domains import Rows
from .draw import INITIAL, OPTIONS, SHORTER, Behavior, Pipeline, Stage, Start
from .networks import CHANGES, SIDE, Classifier

Logits = NDArray[np.float64]
Parties = frozenset[str]
NOBODY: Parties = frozenset()
BEFORE = 424_243
"""Added to a pipeline's seed: whoever trained given weights drew other numbers."""
CLEAN_MODELS = 3
"""Models that the auditor trains to know what is normal."""


class Retraining:
    """Trains a pipeline again with the planted fault of some parties taken away."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._models: dict[tuple[int, Parties], Classifier] = {}
        self._logits: dict[Parties, Logits] = {}

    def logits(self, cleaned: Parties = NOBODY) -> Logits:
        """Of the deployed model on the holdout, [n, C], had these parties been clean."""
        if cleaned not in self._logits:
            self._logits[cleaned] = logits_of(self.model(cleaned), self.pipeline.world.holdout)
        return self._logits[cleaned]

    def model(self, cleaned: Parties = NOBODY) -> Classifier:
        """The deployed model, had these parties been clean."""
        return self._after(len(self.pipeline.stages), cleaned)

    def first(self, cleaned: Parties = NOBODY) -> Classifier:
        """The model before its first stage."""
        return self._after(0, cleaned)

    def _after(self, count: int, cleaned: Parties) -> Classifier:
        """After the first `count` stages; runs with the same beginning share it."""
        p = self.pipeline
        seen = {INITIAL, *(party for stage in p.stages[:count] for party in stage.parties)}
        key = (count, cleaned & seen)
        if key not in self._models:
            if count == 0:
                self._models[key] = start(p, clean=INITIAL in cleaned)
            else:
                model = deepcopy(self._after(count - 1, cleaned))
                self._advance(model, count - 1, cleaned)
                self._models[key] = model
        return self._models[key]

    def _advance(self, model: Classifier, index: int, cleaned: Parties) -> None:
        p, stage = self.pipeline, self.pipeline.stages[index]
        torch.manual_seed(p.stage_seed(index))
        if stage.change == SIDE:
            networks.side_path(model, **p.side(planted=f"change:{stage.id}" not in cleaned))
        elif stage.change is not None:
            CHANGES[stage.change](model)
        rows = stage.clean if stage.clean is not None and stage.id in cleaned else stage.rows
        fit(model, p, stage, rows, p.seed, index)


def start(pipeline: Pipeline, *, clean: bool) -> Classifier:
    """The model before its first stage, as it was or without what was planted in it."""
    held = pipeline.start
    torch.manual_seed(pipeline.seed)
    model = networks.build(pipeline.kind)
    if held.kind == "planted" and not clean:
        networks.plant(model, **pipeline.plant())
    if held.trained is not None:
        return trained_before(pipeline, held, clean=clean)
    return model


def trained_before(pipeline: Pipeline, held: Start, *, clean: bool) -> Classifier:
    """Given or smuggled weights, as they are or without what was planted in them."""
    stage, seed = held.trained, pipeline.seed + BEFORE
    assert stage is not None
    torch.manual_seed(seed)
    model = networks.build(pipeline.kind)
    rows = stage.clean if clean and stage.clean is not None else stage.rows
    fit(model, pipeline, stage, rows, seed, 0)
    return model


def clean_models(pipeline: Pipeline) -> list[Classifier]:
    """What the auditor trains: honest rows, other seeds, the usual recipe; the first is the reference."""
    models = []
    lr, later = pipeline.rates
    scale = SHORTER.get(pipeline.world.domain, 1.0)
    for number in range(CLEAN_MODELS):
        seed = 10**6 + 97 * number + pipeline.seed
        draw = np.random.default_rng(seed)
        torch.manual_seed(seed)
        model = networks.build(pipeline.kind)
        first = Stage("first", pipeline.world.pools[0], int(scale * draw.integers(120, 190)), lr)
        second = Stage(
            "second", pipeline.world.reference, int(scale * draw.integers(20, 50)), later
        )
        for index, stage in enumerate((first, second)):
            fit(model, pipeline, stage, stage.rows, seed, index)
        models.append(model)
    return models


def fit(
    model: Classifier, pipeline: Pipeline, stage: Stage, rows: Rows, seed: int, index: int
) -> None:
    """Train one stage in place: a fresh optimizer, the rate falling by a cosine to 0."""
    x, y = torch.tensor(rows.x), torch.tensor(rows.y)
    kind = getattr(torch.optim, pipeline.optimizer)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = kind(trained, lr=stage.lr, **OPTIONS[pipeline.optimizer])
    model.train()
    for step in range(stage.steps):
        rate = stage.lr * ((1 + math.cos(math.pi * step / stage.steps)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        draw = np.random.default_rng([seed, index, step])
        ids = draw.choice(len(rows), min(pipeline.batch, len(rows)), replace=False)
        loss: Tensor = F.cross_entropy(model(x[ids]), y[ids])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def logits_of(model: Classifier, rows: Rows) -> Logits:
    """In eval mode, [n, C]."""
    model.eval()
    with torch.no_grad():
        found: Logits = model(torch.tensor(rows.x)).double().numpy()
    return found


def level(behavior: Behavior, logits: Logits, labels: NDArray[np.int64]) -> float:
    """The behaviour's mean over its slice, in the metric's unit."""
    z, y = logits[behavior.rows], labels[behavior.rows]
    metric, norm = behavior.metric, np.logaddexp.reduce(z, axis=1)
    match metric["name"]:
        case "rate":
            scores = z.argmax(1) == metric["class"]
        case "probability":
            scores = np.exp(z[:, metric["class"]] - norm)
        case "logit-margin":
            scores = z[:, metric["positive"]] - z[:, metric["negative"]]
        case "nll":
            scores = norm - z[np.arange(len(z)), y]
        case "accuracy":
            scores = z.argmax(1) == y
        case name:
            raise ValueError(f"no metric {name!r}")
    return float(scores.mean())
