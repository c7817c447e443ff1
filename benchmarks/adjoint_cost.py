"""What the adjoint costs: CPU time of a sweep in plain gradients, its error in float32, its memory.

    python benchmarks/adjoint_cost.py [--out FILE]

Two models (a GPT-style decoder with fused attention; the digits MLP 64-64-64-10), two optimizers, both
kinds of Hessian-vector products, records that are dense and records of every sqrt(K)-th state. The unit
is one gradient of the same model on a batch at hand (forward, loss, `torch.autograd.grad`) on one
thread, measured after every step of the sweep, so that whatever else the machine does slows both down.
Steps and gradients are summed over windows of sqrt(K) steps; the median of the windows' ratios counts. A sweep's time has everything in it but reading the recorded states, which is
printed by itself, and the user's own loading of batches. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from auditspec import Dataset, Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.estimator.interface import Baseline, Context
from auditspec.estimator.linear.adjoint import Contributions, adjoint
from auditspec.progress import SILENT, Progress
from auditspec.record.trajectory import StageTrajectory, Trajectory

VOCABULARY, CONTEXT, WIDTH, LAYERS = 80, 64, 128, 2
BARS = {"exact": 5.5, "finite-difference": 3.8}
"""Gradients a step, where they outweigh the calls: of the decoder. The MLP's figures are only shown."""
SPARSE = 1.3
"""Gradients a step that a record of every sqrt(K)-th state may cost more there."""
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.01),
}


# --- the models and their data --------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, t, 3, 4, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Decoder(nn.Module):
    """A small GPT: tied embedding, pre-norm blocks, fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.place.weight, std=0.02)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place.weight
        return self.head(self.norm(self.blocks(x)))


def build_mlp() -> nn.Module:
    layers = [m for _ in range(2) for m in (nn.Linear(64, 64), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def build_wide() -> nn.Module:
    """Large states and fast steps: for the memory's growth."""
    return nn.Sequential(
        nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10)
    )


@lru_cache(maxsize=8)
def rows_of(dataset: Dataset) -> Tensor:
    return torch.tensor(dataset.frame.to_numpy())


def load_rows(dataset: Dataset, ids: Any) -> Tensor:
    return rows_of(dataset)[list(ids)]


def digits_loss(model: nn.Module, rows: Tensor) -> Tensor:
    return F.cross_entropy(model(rows[:, :64] / 16), rows[:, 64].long())


def text_loss(model: nn.Module, rows: Tensor) -> Tensor:
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def digits() -> pd.DataFrame:
    from sklearn.datasets import load_digits

    data = load_digits()
    table = np.column_stack([data.data, data.target]).astype(np.float32)
    return pd.DataFrame(table, columns=[str(i) for i in range(65)])


def text(seed: int = 0) -> pd.DataFrame:
    """Sequences of a random Markov chain whose states each have five likely successors."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(0, VOCABULARY, (VOCABULARY, 5))
    tokens = np.empty((1000, CONTEXT + 1), dtype=np.int64)
    tokens[:, 0] = rng.integers(0, VOCABULARY, len(tokens))
    for t in range(CONTEXT):
        tokens[:, t + 1] = successors[tokens[:, t], rng.integers(0, 5, len(tokens))]
    return pd.DataFrame(tokens, columns=[str(i) for i in range(CONTEXT + 1)])


@dataclass(frozen=True)
class Task:
    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], pd.DataFrame]
    loss: Callable[[nn.Module, Tensor], Tensor]
    batch: int
    steps: int
    """Of each of two stages."""
    spacing: int = 1
    """Of a sparse record's states: near sqrt(K), a divisor of the steps."""
    barred: bool = False
    """Whether its figures have bars."""


MLP = Task("digits MLP", build_mlp, digits, digits_loss, 64, 105, 15)
GPT = Task("GPT", Decoder, text, text_loss, 16, 18, 6, barred=True)
WIDE = Task("wide MLP", build_wide, digits, digits_loss, 4, 0)


# --- recording and measuring ----------------------------------------------------------------------


def record(
    folder: Path, task: Task, optimizer: str, every: int, steps: int, stages: int = 2
) -> Rerun:
    """Train with the recorder: even rows, then odd rows, each with a new optimizer."""
    folder.mkdir(parents=True)
    task.data().to_parquet(folder / "data.parquet")
    torch.manual_seed(0)
    model, data = task.build(), Dataset.open(folder / "data.parquet")
    with Recorder(
        folder / "record",
        model,
        every=every,
        factory=task.build,
        load_batch=load_rows,
        self_check=False,
    ) as recorder:
        for number in range(stages):
            method = OPTIMIZERS[optimizer](model.parameters())
            rng = np.random.default_rng(number)
            with recorder.stage(
                f"stage-{number}", method, task.loss, dataset=data, steps=steps
            ) as run:
                for _ in run.steps:
                    method.zero_grad()
                    rows = 2 * rng.integers(0, 300, task.batch) + number
                    run.loss(rows.tolist()).backward()
                    method.step()
    return reopen(folder, task)


def reopen(folder: Path, task: Task) -> Rerun:
    trajectory = Trajectory.open(folder / "record")
    objectives = dict.fromkeys((s.id for s in trajectory.stages), task.loss)
    functions = Functions(task.build, load_rows, objectives, lambda model, rows: model(rows))
    return Rerun(trajectory, functions, {"data": Dataset.open(folder / "data.parquet")})


def behaviors(rerun: Rerun, task: Task) -> dict[str, dict[str, Tensor]]:
    """Slopes of the loss on three sets of rows that no stage trained on."""
    state = rerun.trajectory.stages[-1].last
    parameters = dict(rerun.model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.parameters[name])
    found = {}
    for number in range(3):
        rows = load_rows(rerun.datasets["data"], range(700 + 50 * number, 750 + 50 * number))
        slope = torch.autograd.grad(task.loss(rerun.model, rows), list(parameters.values()))
        found[f"loss on held-out rows {number}"] = dict(zip(parameters, slope, strict=True))
    return found


@contextmanager
def clock(owner: Any, name: str) -> Iterator[list[float]]:
    """CPU seconds spent in a method, in one cell."""
    spent, real = [0.0], getattr(owner, name)

    def timed(*args: Any) -> Any:
        began = time.process_time()
        try:
            return real(*args)
        finally:
            spent[0] += time.process_time() - began

    setattr(owner, name, timed)
    try:
        yield spent
    finally:
        setattr(owner, name, real)


def plain(rerun: Rerun, task: Task) -> Callable[[], float]:
    """Makes one gradient on a batch at hand; gives its CPU seconds."""
    rows = load_rows(rerun.datasets["data"], range(task.batch))
    parameters = list(rerun.model.parameters())

    def once() -> float:
        began = time.process_time()
        torch.autograd.grad(task.loss(rerun.model, rows), parameters)
        return time.process_time() - began

    return once


@dataclass
class Swept:
    """A sweep with a plain gradient after every step; all in CPU seconds, last step first."""

    steps: list[float]
    """Without reading recorded states and loading batches."""
    reading: float
    """A step."""
    plain: list[float]
    found: dict[str, Contributions]

    def ratio(self, window: int) -> float:
        """Gradients a step: the median over windows, each of which is re-run as one where it must be.

        Both are summed over the same window, so that what else the machine does slows both down.
        """
        starts = range(0, len(self.steps), window)
        return statistics.median(
            sum(self.steps[i : i + window]) / sum(self.plain[i : i + window]) for i in starts
        )


def swept(rerun: Rerun, task: Task, slopes: dict[str, dict[str, Tensor]], products: Any) -> Swept:
    """Run the sweep and the plain gradients in turn."""
    once = plain(rerun, task)
    steps: list[float] = []
    units: list[float] = []
    with clock(StageTrajectory, "state") as reading, clock(Rerun, "batch") as loading:

        def now() -> float:
            return time.process_time() - reading[0] - loading[0]

        mark = [now()]

        def told(_: int) -> None:
            steps.append(now() - mark[0])
            units.append(once())
            mark[0] = now()

        found = adjoint(context(rerun, Calling(told)), slopes, products=products)
    return Swept(steps, reading[0] / len(steps), units, found)


class Calling:
    """Calls a function at every advance."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Every phase alike."""
        yield self.function


def context(rerun: Rerun, progress: Progress = SILENT) -> Context:
    """What the sweep is made of."""
    final = rerun.trajectory.stages[-1].last
    return Context(engine=rerun, run=Baseline(final), progress=progress)


def row(setting: str, what: str, measured: float, bar: float | None) -> dict[str, Any]:
    ok = None if bar is None else measured <= bar
    return {"setting": setting, "what": what, "measured": measured, "bar": bar, "ok": ok}


def costs(folder: Path, task: Task, optimizer: str) -> list[dict[str, Any]]:
    """Dense and sparse cost of both kinds of products, and the error of finite differences."""
    setting = f"{task.name}, {optimizer}"
    records = {
        "dense": record(folder / "dense", task, optimizer, 1, task.steps),
        "sparse": record(folder / "sparse", task, optimizer, task.spacing, task.steps),
    }
    slopes = behaviors(records["dense"], task)
    first = dict(list(slopes.items())[:1])
    swept(records["dense"], task, first, "exact")  # warm-up
    lines = []
    reading = 0.0
    for products, bar in BARS.items():
        runs = {kind: swept(rerun, task, first, products) for kind, rerun in records.items()}
        dense, sparse = (run.ratio(task.spacing) for run in runs.values())
        limit, slack = (bar, SPARSE) if task.barred else (None, None)
        lines.append(row(setting, f"{products}, dense: gradients a step", dense, limit))
        more = f"{products}, every {task.spacing}th state: more than dense"
        lines.append(row(setting, more, sparse - dense, slack))
        reading = runs["dense"].reading / statistics.median(runs["dense"].plain)
    lines.append(row(setting, "reading one dense state, in gradients", reading, None))
    three = {products: swept(records["dense"], task, slopes, products) for products in BARS}
    for products in BARS:
        what = f"{products}, dense: gradients a step for three behaviours"
        lines.append(row(setting, what, three[products].ratio(task.spacing), None))
    exact, estimate = (
        np.array([[c.effect(s) for s in c.steps] for c in three[products].found.values()])
        for products in BARS
    )
    error = float(np.linalg.norm(estimate - exact) / np.linalg.norm(exact))
    lines.append(row(setting, "finite-difference: relative error of the effect", error, 1e-2))
    return lines


def growth(folder: Path, lengths: tuple[int, ...] = (50, 200, 800)) -> list[dict[str, Any]]:
    """Peak memory of a sweep over one stage of which only the ends were kept, and its exponent."""
    peaks = []
    for steps in lengths:
        record(folder / str(steps), WIDE, "AdamW", 10**6, steps, stages=1)
        command = [sys.executable, __file__, "--peak", str(folder / str(steps))]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
        shutil.rmtree(folder / str(steps))
    exponent = float(np.polyfit(np.log(lengths), np.log(peaks), 1)[0])
    setting = "wide MLP, AdamW, boundary states only"
    lines = [
        row(setting, f"peak memory above the start at {k} steps, MB", peak, None)
        for k, peak in zip(lengths, peaks, strict=True)
    ]
    return [*lines, row(setting, "exponent of peak memory in steps", exponent, 0.55)]


def peak(folder: Path) -> float:
    """MB by which a sweep raises this process's peak memory."""
    rerun = reopen(folder, WIDE)
    slopes = dict(list(behaviors(rerun, WIDE).items())[:1])
    plain(rerun, WIDE)()
    before = high_water()
    adjoint(context(rerun), slopes, products="finite-difference")
    return high_water() - before


def high_water() -> float:
    """This process's largest resident memory so far, MB (getrusage would start at its parent's)."""
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


def measure() -> list[dict[str, Any]]:
    """Every measurement: (setting, what, measured, bar, ok); bar and ok are None where there is none."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        lines = []
        for task in (MLP, GPT):
            for optimizer in OPTIMIZERS:
                lines += costs(folder / task.name / optimizer, task, optimizer)
                shutil.rmtree(folder / task.name / optimizer)
        return lines + growth(folder)
    finally:
        shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the measurements there, as JSON")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak is not None:
        torch.set_num_threads(1)
        print(peak(options.peak))
        return 0
    lines = measure()
    for line in lines:
        bar = "" if line["bar"] is None else f"  bar {line['bar']:g}"
        said = {None: "", True: "  ok", False: "  MISSED"}[line["ok"]]
        print(f"{line['setting']:38} {line['what']:58} {line['measured']:9.4g}{bar}{said}")
    if options.out is not None:
        options.out.write_text(json.dumps(lines, indent=2) + "\n")
    return int(any(line["ok"] is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
