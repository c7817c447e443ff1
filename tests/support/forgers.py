"""Forgers of whole training records, after what is published on proofs of learning; each counts its gradients.

Each begins from an honest record of `training` and makes another that claims something else. What they may
use is what a trainer has: the code, the data, all states, and as many gradients as they like.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tampering import copy, reopened, rewrite_header, rewrite_state, rewrite_steps
from torch import Tensor
from training import Recorded, load_batch

from auditspec.engine.rerun import Rerun
from auditspec.record.state import State

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Forged:
    """A false record, and what it cost."""

    recorded: Recorded
    gradients: int
    honest: int
    """Gradients of training what the record says."""

    @property
    def trainings(self) -> float:
        return self.gradients / self.honest


def honest_gradients(recorded: Recorded) -> int:
    return sum(len(s.batches) for stage in recorded.trajectory.stages for s in stage.steps)


def forged(recorded: Recorded, gradients: int) -> Forged:
    return Forged(reopened(recorded), gradients, honest_gradients(reopened(recorded)))


def deployed(recorded: Recorded) -> Tensors:
    last = recorded.trajectory.stages[-1].last
    return last.parameters | last.buffers


def between(left: State, right: State, share: float, noise: float = 0.0) -> State:
    """A state on the way from one to another."""
    generator = torch.Generator().manual_seed(0)

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        drawn = torch.randn(a.shape, generator=generator).to(a)
        return torch.lerp(a, b, share) + noise * drawn

    pairs = {n: (p, right.parameters[n]) for n, p in left.parameters.items()}
    return replace(left, parameters={n: mixed(a, b) for n, (a, b) in pairs.items()})


def interpolated(
    recorded: Recorded, folder: Path, *, noise: float = 0.0, only: Sequence[int] | None = None
) -> Forged:
    """States inside the stage lie on a straight line; no step is computed."""
    false = copy(recorded, folder)
    stage = false.trajectory.stages[0]
    first, last = stage.first, stage.last
    for step in stage.state_steps[1:-1]:
        if only is None or step in only:
            state = between(first, last, step / stage.header.steps, noise)
            rewrite_state(false.folder / "record", stage.id, step, state)
    return forged(false, 0)


def short_fine_tune(recorded: Recorded, folder: Path, steps: int) -> Forged:
    """From a state near the deployed one a few real steps are made, and recorded as the whole training."""
    false = copy(recorded, folder)
    record, stage = false.folder / "record", false.trajectory.stages[0]
    rerun, kept = recorded.rerun(), stage.state_steps
    near = between(stage.last.without_optimizer(), stage.first, 1e-3)
    rewrite_state(record, stage.id, 0, near)
    state = near
    for start, stop in itertools.pairwise(k for k in kept if k <= steps):
        state = rerun.run(recorded.trajectory.stages[0], state, start, stop)
        rewrite_state(record, stage.id, stop, state)
    for step in kept:
        if step > steps:
            next(record.glob(f"*/state-{step:06d}.safetensors")).unlink()
    rewrite_steps(record, stage.id, lambda rows: [row | {"loss": None} for row in rows[:steps]])
    rewrite_header(record, lambda header: header["stages"][0].update(steps=steps))
    return forged(false, rerun.gradients)


def inverted(recorded: Recorded, folder: Path, rounds: int) -> Forged:
    """From the deployed state backwards, along other batches: theta_k = theta_(k+1) + eta g_k(theta_k), solved by iteration.

    The record's rows are shifted by one, so that it claims a training that was never made.
    """
    false = copy(recorded, folder)
    record, stage = false.folder / "record", false.trajectory.stages[0]

    def shift(rows: list) -> None:
        for row in rows:
            for batch in row["batches"]:
                batch["ids"] = [(i + 1) % 48 for i in batch["ids"]]
            row["loss"] = None

    rewrite_steps(record, stage.id, shift)
    false = reopened(false)
    rerun, stage = false.rerun(), false.trajectory.stages[0]
    state = stage.last.without_optimizer()
    for step in reversed(stage.steps):
        guess = state
        for _ in range(rounds):
            guess = _before(rerun, false, step.index, guess, state)
        state = guess
        if step.index in stage.state_steps:
            rewrite_state(record, stage.id, step.index, state)
    return forged(false, rerun.gradients)


def _before(rerun: Rerun, recorded: Recorded, step: int, guess: State, after: State) -> State:
    """after + eta g(guess), where the step gives guess - eta g(guess)."""
    made = rerun.run(recorded.trajectory.stages[0], guess, step, step + 1)
    moved = {n: p - made.parameters[n] for n, p in guess.parameters.items()}
    return replace(after, parameters={n: p + moved[n] for n, p in after.parameters.items()})


def adversarial_step(recorded: Recorded, folder: Path, iterations: int = 200) -> Forged:
    """A batch is made by gradient descent so that one recorded step leads from the first state to the next that is claimed.

    What is claimed is a state on the straight line; the batch is recorded as tensors.
    """
    stage = recorded.trajectory.stages[0]
    target = between(stage.first, stage.last, 0.25)
    model = recorded.build()
    model.load_state_dict(stage.first.parameters)
    x, token, y = load_batch(recorded.datasets["data"], stage.steps[0].batches[0].ids)
    x = x.float().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    rate, names = stage.steps[0].groups[0]["lr"], [n for n, _ in model.named_parameters()]
    losses = []
    for _ in range(iterations):
        loss = torch.nn.functional.cross_entropy(model(x, token), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        off = sum(
            (stage.first.parameters[n] - rate * g - target.parameters[n]).square().sum()
            for n, g in zip(names, gradients, strict=True)
        )
        optimizer.zero_grad()
        off.backward()
        optimizer.step()
        losses.append(float(off.detach()))
    assert losses[-1] < losses[0]
    false = copy(recorded, folder)
    rewrite_state(false.folder / "record", stage.id, stage.state_steps[1], target)
    return forged(false, iterations)


def greedy_rows(recorded: Recorded, folder: Path) -> Forged:
    """Of many batches of real rows the one is recorded whose step comes closest to the state that is claimed."""
    stage = recorded.trajectory.stages[0]
    target, best, chosen = between(stage.first, stage.last, 0.25), float("inf"), [0]
    rerun, generator = recorded.rerun(), torch.Generator().manual_seed(0)
    for _ in range(60):
        ids = torch.randperm(48, generator=generator)[:8].tolist()
        passes = (replace(stage.steps[0].batches[0], ids=tuple(ids)),)
        steps = [replace(stage.steps[0], batches=passes), *stage.steps[1:]]
        reached = rerun.run(stage, stage.first, 0, 1, steps=steps)
        off = float(
            sum((reached.parameters[n] - t).square().sum() for n, t in target.parameters.items())
        )
        if off < best:
            best, chosen = off, ids
    false = copy(recorded, folder)

    def choose(rows: list) -> None:
        rows[0]["batches"][0]["ids"] = chosen
        rows[0]["loss"] = None

    rewrite_steps(false.folder / "record", stage.id, choose)
    rewrite_state(false.folder / "record", stage.id, stage.state_steps[1], target)
    return forged(false, rerun.gradients)


def retrained(recorded: Recorded, folder: Path, stop: int | None = None) -> Forged:
    """Another run is really made, on other rows, and recorded: no record is more honest.

    With `stop` only up to that step, from where the record jumps to the deployed state.
    """
    false = copy(recorded, folder)
    record, name = false.folder / "record", false.trajectory.stages[0].id

    def other(rows: list) -> None:
        for row in rows:
            ids = [(5 * row["step"] + i) % 48 for i in range(8)]
            row["batches"][0]["ids"], row["loss"] = ids, None

    rewrite_steps(record, name, other)
    false = reopened(false)
    stage, rerun = false.trajectory.stages[0], false.rerun()
    state, last = stage.first, stage.last
    for start, end in itertools.pairwise(stage.state_steps):
        made = stop is None or end <= stop
        state = rerun.run(stage, state, start, end) if made else last
        rewrite_state(record, name, end, state)
    return forged(false, rerun.gradients)
