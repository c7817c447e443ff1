"""Replaying all stages at once against one after the other: time, and how far the answers differ.

    python benchmarks/batched_replay.py [--pairs 5]

Five stages of 300 and 4 x 60 steps on the digits data, batch 64, recorded, then replayed without each
stage: arm by arm, stage by stage, and all in one pass, in turn, on one thread. Prints the ratio of
CPU times and wall times (medians over pairs) and the largest difference as a share of ||delta||, for
an MLP with SGD and AdamW, a CNN, and a small GPT-style model. Exits 1 above a bar.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from auditspec import Dataset, Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interface import Baseline, Context
from auditspec.estimator.interventions import Arm
from auditspec.estimator.replay.replay import Replay
from auditspec.record.trajectory import Trajectory
from auditspec.report.words import text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "digits"))
import train as digits

STEPS = (300, 60, 60, 60, 60)
RATIO, DIFFERENCE = 0.6, 1e-4


def build_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10)
    )


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.after(x))


class Gpt(nn.Module):
    """Reads the pixels of an image as tokens; the embedding also reads the classes out."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(17, width), nn.Embedding(64, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 17, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


def load_pixels(dataset: Dataset, ids: Sequence[int]) -> Tensor:
    """Tokens [B, 64], the grey levels 0 to 16."""
    return torch.tensor(dataset.frame.to_numpy().take(ids, axis=0))[:, :64].long()


def next_pixel(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def sgd(parameters: Any, first: bool) -> Optimizer:
    return SGD(parameters, lr=0.02 if first else 0.002, momentum=0.9, weight_decay=1e-3)


def adamw(parameters: Any, first: bool) -> Optimizer:
    return AdamW(parameters, lr=3e-3 if first else 1e-4, weight_decay=0.01)


Setting = tuple[str, Callable[[], nn.Module], Callable[..., Optimizer], Any, Any, int, bool]
SETTINGS: tuple[Setting, ...] = (
    ("MLP, SGD", build_mlp, sgd, digits.load_batch, digits.cross_entropy, 64, True),
    ("MLP, AdamW", build_mlp, adamw, digits.load_batch, digits.cross_entropy, 64, True),
    ("CNN, AdamW", digits.build_model, adamw, digits.load_batch, digits.cross_entropy, 64, False),
    ("GPT, AdamW", Gpt, adamw, load_pixels, next_pixel, 4, False),
)


def record(folder: Path, setting: Setting) -> Rerun:
    """Train and record the five stages."""
    _, build, make, load, objective, size, barred = setting
    steps_of = STEPS if barred else [steps // 3 for steps in STEPS]
    for stage, frame in digits.make_data().items():
        frame.to_parquet(folder / f"{stage}.parquet", index=False)
    torch.manual_seed(0)
    model = build()
    data = {s.data: Dataset.open(folder / f"{s.data}.parquet") for s in digits.STAGES}
    with Recorder(
        folder / "record",
        model,
        every=1000,
        factory=build,
        load_batch=load,
        self_check=False,
    ) as recorder:
        for index, (stage, steps) in enumerate(zip(digits.STAGES, steps_of, strict=True)):
            optimizer, dataset = make(model.parameters(), index == 0), data[stage.data]
            rows = partial(digits.batch_ids, 0, index, rows=len(dataset))
            largest = optimizer.defaults["lr"]
            with recorder.stage(
                stage.id, optimizer, objective, dataset=dataset, steps=steps
            ) as run:
                for step in run.steps:
                    optimizer.param_groups[0]["lr"] = digits.cosine(largest, step, steps)
                    loss = run.loss(rows(step)[:size])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
    objectives = {stage.id: objective for stage in digits.STAGES}
    return Rerun(
        Trajectory.open(folder / "record"), Functions(build, load, objectives, digits.predict), data
    )


def timed(
    compute: Callable[[], dict[str, Counterfactual]],
) -> tuple[dict[str, Counterfactual], float, float]:
    """What it gives, its CPU seconds, and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = compute()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def compare(setting: Setting, pairs: int) -> list[dict[str, Any]]:
    """One setting's rows."""
    name, barred = setting[0], setting[-1]
    folder = Path(tempfile.mkdtemp())
    try:
        rerun = record(folder, setting)
        context = Context(engine=rerun, run=Baseline(rerun.trajectory.stages[-1].last))
        ids = [stage.id for stage in rerun.trajectory.stages]

        def one_by_one() -> dict[str, Counterfactual]:
            one = Replay(batched=False)
            return {s: one.estimate(context, [Arm.without(s)])[Arm.without(s)] for s in ids}

        def at_once() -> dict[str, Counterfactual]:
            found = Replay(None if barred else True).estimate(context, Arm.each(ids))
            return {made.stage: made for made in found.values()}

        one_by_one(), at_once()  # warm-up: reads the record and the data
        cpu, wall, worst = [], [], 0.0
        for _ in range(pairs):
            left, left_cpu, left_wall = timed(one_by_one)
            right, right_cpu, right_wall = timed(at_once)
            cpu.append(right_cpu / left_cpu)
            wall.append(right_wall / left_wall)
            worst = max(worst, *(distance(left[s], right[s]) for s in ids))
        ratio = statistics.median(cpu)
        slower = "" if ratio < 1 else "; one by one is faster"
        notes = Replay().estimate(context, Arm.each(ids))[Arm.without(ids[0])].notes
        return [
            row(name, f"CPU time, batched / one by one{slower}", ratio, RATIO if barred else None),
            row(name, "wall time", statistics.median(wall), RATIO if barred else None),
            row(name, "difference / ||delta|| of batching", worst, DIFFERENCE if barred else None),
            row(
                name,
                f"share of stages batched unasked ({text(notes)})",
                1 - len(notes) / (len(ids) - 1),
                None,
            ),
        ]
    finally:
        shutil.rmtree(folder)


def distance(left: Counterfactual, right: Counterfactual) -> float:
    """||right - left|| / ||delta||."""
    off = sum(float((right.delta[n] - d).square().sum()) for n, d in left.delta.items())
    return off**0.5 / left.displacement


def row(setting: str, what: str, measured: float, bar: float | None) -> dict[str, Any]:
    ok = None if bar is None else measured <= bar
    return {"setting": setting, "what": what, "measured": measured, "bar": bar, "ok": ok}


def measure(pairs: int = 5) -> list[dict[str, Any]]:
    """Rows of setting, what, measured, bar (None: none), and whether it is met."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [r for s in SETTINGS for r in compare(s, pairs if s[-1] else 1)]
    finally:
        torch.set_num_threads(threads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    rows = measure(parser.parse_args().pairs)
    for r in rows:
        bar = "no bar" if r["bar"] is None else f"bar {r['bar']:g}"
        missed = "" if r["ok"] is not False else "  MISSED"
        print(f"{r['setting']:<11} {r['measured']:<9.3g} {bar:<10} {r['what']}{missed}")
    return int(any(r["ok"] is False for r in rows))


if __name__ == "__main__":
    sys.exit(main())
