"""MAGIC of bergson on two of the settings: exact metagradients through training, as a peer has them.

    python -m benchmarks.peers --out benchmarks/results/peers.json     # README.md: its environment

MAGIC (arXiv 2504.16430; bergson 2.5.1) weights every training example by w and differentiates the
behaviour with respect to w through the whole run, backwards. Summed over a stage's examples, that
is its linear estimate of what leaving the stage's data out would change. Its trainer takes any
module and batch, so it is driven here on the very stages, batches, and learning rates of a recorded
run; the optimizer's reset at a boundary is made by chaining one backward pass per stage.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditspec.engine.rerun import Rerun
from auditspec.record.trajectory import StageTrajectory

from .metrics import relative_error
from .settings import SETTINGS, Behaviour, Run

SEED = 101
COMPARED = ("digits-sgd-gentle", "digits-adamw-gentle", "digits-adamw-mlp")
BEHAVIOURS = ("3-read-as-8", "8-read-as-3", "digit-3")
"""Settings and behaviours of which every stage's effect is compared."""
TIMED = ("digits-sgd-gentle", "verses-gpt")
"""Settings on which a step's cost is measured, on the last stage."""
REPEATS = 3
WHAT = (
    "Compared: the effect of each middle stage on three behaviours' means by MAGIC, read as it is "
    "defined (the sum of its example scores), and CPU time per step of its backward pass."
)
WHAT_NOT = (
    "Not compared: effects per evaluation row (MAGIC takes one backward pass for each), memory, AdamW "
    "(its example scores sum to about 0 under Adam, whose updates hardly depend on the gradient's "
    "length), and anything on a GPU. MAGIC leaves out data, not a stage: weight decay and momentum "
    "go on. It takes a tied embedding for two parameters, so that of the GPT only the cost is measured. "
    "Other estimators of bergson answer another question (single examples, after training)."
)


class Weighted(nn.Module):
    """A setting's model as MAGIC's trainer calls it: a batch with example weights -> the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor, example_weight: Tensor, **_: Any) -> Tensor:
        """Weighted mean loss; x [B, ...], y [B] or [B, T], weights [B]."""
        logits = self.model(x)
        losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
        return (losses.view(len(x), -1).mean(1) * example_weight).mean()


class Stream:
    """The minibatches of a recorded stage, in order, each example of each step with its own weight."""

    def __init__(self, rerun: Rerun, stage: StageTrajectory) -> None:
        self._batches = [rerun.batch(step.batches[0]) for step in rerun.steps_of(stage)]
        ends = np.cumsum([0, *(len(x) for x, _ in self._batches)])
        self._rows = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        self.weights = nn.Parameter(torch.ones(int(ends[-1])))
        self.device = torch.device("cpu")

    @property
    def requires_grad(self) -> bool:
        return self.weights.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.weights.requires_grad = value

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        x, y = self._batches[step]
        weights = self.weights[self._rows[step]]
        return {"x": x, "y": y, "example_weight": weights, "shift_loss_mask": torch.ones(len(x))}


@dataclass
class Passed:
    """One stage driven forwards by MAGIC's trainer, ready for backward passes."""

    trainer: Any
    state: Any
    stream: Stream
    folder: Path
    forward_cpu: float


def forward(
    rerun: Rerun, stage: StageTrajectory, parameters: Mapping[str, Tensor], folder: Path
) -> Passed:
    """Train one stage from given parameters with a fresh optimizer, keeping √K states."""
    import torchopt
    from bergson.magic.trainer import Trainer

    model = rerun.functions.factory()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(parameters[name])
    steps = rerun.steps_of(stage)
    rates = torch.tensor([step.groups[0]["lr"] for step in steps])
    options = stage.header.groups[0].options
    if stage.header.optimizer == "SGD":
        optimizer = torchopt.sgd(
            lambda count: rates[int(count)].item(),
            momentum=options["momentum"],
            weight_decay=options["weight_decay"],
        )
    else:
        optimizer = torchopt.adamw(
            lambda count: rates[int(count)].item(),
            betas=options["betas"],
            eps=options["eps"],
            eps_root=1e-12,
            weight_decay=options["weight_decay"],
        )
    trainer, state = Trainer.initialize(Weighted(model), optimizer)
    stream = Stream(rerun, stage)
    cpu = time.process_time()
    with _quiet():
        state = trainer.train(state, stream, save_dir=str(folder), save_mode="sqrt")
    return Passed(trainer, state, stream, folder, time.process_time() - cpu)


def backward(passed: Passed, gradient: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """The stage's effect on a behaviour, and the behaviour's gradient where the stage began.

    Args:
        passed: the stage.
        gradient: d behaviour / d theta at the stage's end, by parameter.
    """
    from bergson.magic.trainer import BackwardState

    state = passed.state
    optimizer_state = state.differentiable_tensors()[len(state.params) :]
    begin = BackwardState(
        {
            n: gradient.get(n.removeprefix("model."), torch.zeros_like(p))
            for n, p in state.params.items()
        },
        [torch.zeros_like(m) for m in optimizer_state],
        torch.zeros_like(passed.stream.weights),
    )
    with _quiet():
        found = passed.trainer.backward(
            str(passed.folder), passed.stream, begin, state.to("cpu").detach_(), cleanup=False
        )
    theta = {n.removeprefix("model."): g.detach() for n, g in found.param_grads.items()}
    return float(found.weight_grads.sum()), theta


def gradient_of(
    run: Run, behaviour: Behaviour, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """d (mean score) / d theta."""
    model = run.functions.factory()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(parameters[name])
    model.eval()
    data = run.evaluation
    logits = run.functions.predict(model, (data.x, data.y))
    mean = behaviour.scores(logits, data.y).mean()
    held = dict(model.named_parameters())
    return dict(zip(held, torch.autograd.grad(mean, list(held.values())), strict=True))


def compare(name: str, work: Path) -> list[dict[str, Any]]:
    """Effects of every middle stage on a few behaviours, MAGIC's and exact."""
    from .estimators import Job, displacement, exact_replay, first_order, paired_at
    from .readings import Evaluator

    run = SETTINGS[name].make(SEED, work / name)
    rerun, reader = run.rerun(), Evaluator(run)
    chosen = [i for i, b in enumerate(run.evaluation.behaviours) if b.id in BEHAVIOURS]
    exact = exact_replay(run, rerun, reader)
    job = Job(run, rerun, reader, exact.gradients)

    passes, parameters = [], run.trajectory.stages[0].first.parameters
    for stage in run.trajectory.stages:
        passes.append(forward(rerun, stage, parameters, work / f"magic-{name}-{stage.id}"))
        parameters = {
            n.removeprefix("model."): p.detach() for n, p in passes[-1].state.params.items()
        }
    final = run.trajectory.stages[-1].last.parameters
    off = sum(float((parameters[n] - p).square().sum()) for n, p in final.items()) ** 0.5
    norm = sum(float(p.square().sum()) for p in final.values()) ** 0.5

    found = np.zeros((len(passes), len(chosen)))
    for column, index in enumerate(chosen):
        behaviour = run.evaluation.behaviours[index]
        gradient = gradient_of(run, behaviour, parameters)
        for row in reversed(range(len(passes))):
            effect, gradient = backward(passes[row], gradient)
            found[row, column] = behaviour.concern * effect

    def means(effects: Any) -> Any:
        return np.stack([effects.behaviours[i].mean(axis=1) for i in chosen], axis=1)

    truth = means(exact.effects)
    title = run.setting.name
    rows = [
        {
            "setting": title,
            "what": "its training against the recorded one, relative",
            "measured": off / norm,
        }
    ]
    for label, guess in (
        ("MAGIC", found[:-1]),
        ("first-order, linear", means(first_order(job).effects)),
        ("displacement, plug-in", means(displacement(job).effects)),
        ("paired replay at 1/4", means(paired_at(0.25)(job).effects)),
    ):
        error = relative_error(guess[1:], truth[1:])
        rows.append(
            {
                "setting": title,
                "what": f"{label}: error of behaviours' means, middle stages",
                "measured": error,
            }
        )
    return rows


def timed(name: str, work: Path) -> list[dict[str, Any]]:
    """CPU time of one step, in minibatch gradients, on the last stage."""
    run = SETTINGS[name].make(SEED, work / name)
    rerun = run.rerun()
    stage = run.trajectory.stages[-1]
    behaviour = run.evaluation.behaviours[0]
    gradient, final = [], stage.last.parameters
    passed = forward(rerun, stage, stage.first.parameters, work / f"magic-{name}")
    cpu = []
    for _ in range(REPEATS):
        began = time.process_time()
        for step in rerun.steps_of(stage):
            rerun.gradient(stage, step, rerun.optimizer(stage))
        gradient.append(time.process_time() - began)
        began = time.process_time()
        backward(passed, gradient_of(run, behaviour, final))
        cpu.append(time.process_time() - began)
    one = min(gradient)
    rows = [
        ("MAGIC: backward pass, gradients a step (√K states)", min(cpu) / one),
        ("MAGIC: forward pass with its states, gradients a step", passed.forward_cpu / one),
    ]
    return [{"setting": name, "what": what, "measured": value} for what, value in rows]


def measure() -> dict[str, Any]:
    """What `results/peers.json` holds: rows, and what was and was not compared."""
    held = Path(__file__).resolve().parent / "results" / "peers.json"
    if held.exists():
        found: dict[str, Any] = json.loads(held.read_text())
        return found
    return {"not_run": "results/peers.json is not there: python -m benchmarks.peers makes it"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        versions = {name: version(name) for name in ("bergson", "torchopt", "torch")}
    except ModuleNotFoundError as error:
        print(
            f"peers: {error.name} is not installed; benchmarks/README.md says how", file=sys.stderr
        )
        return 2
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rows = []
        for name in COMPARED:
            rows += compare(name, work)
        for name in TIMED:
            rows += timed(name, work)
    result = {
        "command": "python -m benchmarks.peers",
        "versions": versions,
        "seed": SEED,
        "compared": WHAT,
        "not_compared": WHAT_NOT,
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['setting']:<20} {row['measured']:<9.3g} {row['what']}")
    return 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the trainer's progress bars off the screen."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


if __name__ == "__main__":
    sys.exit(main())
