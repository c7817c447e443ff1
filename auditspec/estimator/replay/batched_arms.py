"""Several counterfactual arms at one and the same step: their states stacked, their steps made at once.

An arm is the run with something done otherwise before. Every arm sees the same minibatch, hyperparameters, and random
state at the same step, and differs in its state only. So the step of n arms is

    g = vmap(grad loss_k)(theta)          theta [n, *shape], one minibatch, the same random numbers
    (theta, s) := U(theta, s, g; h_k)

with the objective itself under `torch.vmap`. U is the real optimizer class: where it is elementwise,
it treats every number alike, so that one optimizer over the stacked tensors makes every arm's update;
where that does not hold (another class, counters that differ between arms after a `carry`
boundary), every arm has an optimizer of its own.

vmap cannot take every model: objectives that look at values (`item`, branches on a loss), custom
autograd functions, some operations in place. Those raise. Nothing is taken on trust: at the
gradients 0, 16, 64, … of a stage and at the first use of every tape, the arms taking turns, the result is compared with the ordinary
gradient of the arm, buffers included, and a difference beyond rounding raises `NotVectorizedError`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.engine.batched_gradient import NotVectorizedError, batched_gradient
from auditspec.engine.clipping import clip_rows
from auditspec.engine.data_parallel import Gradients, add_to, by_rank
from auditspec.engine.interface import Engine
from auditspec.engine.optimizers import is_elementwise
from auditspec.estimator.replay.batched_tensors import (
    close,
    on_cpu,
    or_zeros,
    row_of,
    stacked_optimizer_state,
)
from auditspec.messages import message
from auditspec.record.describe_optimizer import match_skipped_gradients
from auditspec.record.state import (
    State,
    capture,
    named_buffers,
    named_parameters,
    restore,
)
from auditspec.record.trajectory import Microbatch, StageTrajectory, Step
from auditspec.record.uncompiled import uncompiled

Key = TypeVar("Key", bound=Hashable)
"""Names an arm."""


class Arms(Generic[Key]):
    """The states of several arms at one step of a stage.

    Use it inside `rerun.training()`. The parameters of `rerun.model` serve as working memory.

    Args:
        rerun: the record.
        stage: the stage that the arms go through.
        states: each arm's state where it enters the stage, by name; without moments for a fresh
            optimizer.
        vectorized: False takes ordinary gradients, arm by arm, with an optimizer for each: slow,
            for every model, and equal to `Engine.run` bit for bit.

    Raises:
        NotVectorizedError: unless `vectorized` is False, for precisions below float32 and optimizers
            that are not torch's.
    """

    def __init__(
        self,
        rerun: Engine,
        stage: StageTrajectory,
        states: Mapping[Key, State],
        *,
        vectorized: bool = True,
    ) -> None:
        self.rerun = rerun
        self.stage = stage
        self.vectorized = vectorized
        self.names = tuple(states)
        """Row i of every stacked tensor is arm `names[i]`."""
        rerun.enter(stage)
        model = rerun.model
        rows, optimizer_state = [], []
        for state in states.values():
            optimizer = rerun.optimizer(stage)
            restore(state, model, optimizer)
            rows.append(capture(model, None))
            held = named_parameters(model)
            optimizer_state.append({n: dict(optimizer.state.get(p, {})) for n, p in held.items()})
        changing = self._changing_buffers(rows)
        self.theta = {
            n: nn.Parameter(
                torch.stack([row.parameters[n] for row in rows]).to(p.device), p.requires_grad
            )
            for n, p in named_parameters(model).items()
        }
        """theta_k, [n, *shape] per parameter."""
        self.buffers = {
            n: torch.stack([row.buffers[n] for row in rows]).to(b.device)
            for n, b in named_buffers(model).items()
            if n in changing
        }
        """[n, *shape] per buffer that training changes; the others are those of `rerun.model`."""
        self._trained = [n for n, p in self.theta.items() if p.requires_grad]
        if vectorized and any(
            self.theta[n].dtype not in (torch.float32, torch.float64) for n in self._trained
        ):
            raise NotVectorizedError(message("below-float32"))
        self._optimizers = self._make_optimizers(optimizer_state)
        self._batched_gradient = batched_gradient(
            rerun.functions.objectives[stage.id], model, self._trained, [*self.buffers]
        )
        self._device = rerun.device
        self.overhead_bound = False
        """Whether an arm's operations are so small that calling them takes longer than their arithmetic; known
        after the first gradient."""
        self._calls, self._next_check, self._checking = 0, 0, True

    def gradients(self, step: Step) -> Gradients:
        """g_k of every arm at its own theta_k, on step k's minibatch, before clipping.

        Buffers (BatchNorm's statistics) advance.

        Raises:
            NotVectorizedError: if vmap cannot take the objective, or gives something else than the
                ordinary gradient. The arms are then to be made anew from their last known states.
        """
        if not self.vectorized:
            return self._one_by_one(step)
        self._checking = self._calls == self._next_check
        before = {n: b.clone() for n, b in self.buffers.items()}
        total: Gradients = dict.fromkeys(self.theta)
        for passes in by_rank(step.batches, self.buffers):
            rank_total: Gradients = {}
            for microbatch in passes:
                self.rerun.go_to_random_state(microbatch)
                add_to(rank_total, self._batched(self.rerun.batch(microbatch), microbatch))
                self.rerun.count(len(self.names))
            add_to(total, rank_total)
        match_skipped_gradients(self.stage, step, total, self.theta)
        if self._checking:
            self._check(step, self._calls % len(self.names), before, total)
        if self._calls == self._next_check:
            self._next_check = max(16, 4 * self._calls)
        self._calls += 1
        return total

    def update(self, step: Step, gradients: Gradients) -> None:
        """Make the step's update of every arm, clipping each arm's gradient where the loop did.

        Args:
            step: gives the hyperparameters.
            gradients: [n, *shape] per parameter, before clipping; None leaves a parameter alone.
        """
        for rows, optimizer, parameters in self._optimizers:
            for name, p in parameters.items():
                g = gradients[name]
                if g is not None:
                    p.grad = (g if isinstance(rows, slice) else g[rows]).contiguous()
            if self.stage.header.clip_norm is not None:
                self._clip(parameters, self.stage.header.clip_norm, stacked=isinstance(rows, slice))
            for group, options in zip(optimizer.param_groups, step.groups, strict=True):
                group.update(options)
                if (
                    isinstance(rows, slice) and "fused" in group
                ):  # one kernel a parameter, on the CPU too
                    group.update(self._kernel(options))
            with uncompiled():
                optimizer.step()
            for p in parameters.values():
                p.grad = None
            if not isinstance(rows, slice):
                with torch.no_grad():
                    for name, p in parameters.items():
                        self.theta[name][rows].copy_(p)

    @staticmethod
    def _clip(parameters: Mapping[str, nn.Parameter], limit: float, *, stacked: bool) -> None:
        """Clip the gradients that the parameters hold, of every arm by itself."""
        g = {
            n: p.grad if stacked else p.grad[None]
            for n, p in parameters.items()
            if p.grad is not None
        }
        for name, clipped in clip_rows(g, limit).items():
            parameters[name].grad = clipped if stacked else clipped[0]

    @property
    def checked(self) -> bool:
        """Whether the last gradients were held against an ordinary one."""
        return self._checking

    def states(self) -> dict[Key, State]:
        """Every arm's present state, as `Engine.run` would give it."""
        return {name: self._state(i) for i, name in enumerate(self.names)}

    # --- gradients --------------------------------------------------------------------------------

    def _batched(self, batch: Any, microbatch: Microbatch) -> Gradients:
        outcome = self._batched_gradient(self.theta, self.buffers, microbatch.weight, batch)
        self._checking |= outcome.first_use
        self.overhead_bound = outcome.overhead_bound
        for name, b in self.buffers.items():
            if outcome.buffers[name] is not b:
                b.copy_(outcome.buffers[name])
        return outcome.gradients

    def _one_by_one(self, step: Step) -> Gradients:
        rows = [self._ordinary(step, i) for i in range(len(self.names))]
        reached = [n for n in rows[0] if any(row[n] is not None for row in rows)]
        return {
            n: torch.stack([or_zeros(row[n], self.theta[n][0]) for row in rows])
            if n in reached
            else None
            for n in self.theta
        }

    def _ordinary(self, step: Step, row: int) -> Gradients:
        """The arm's gradient from the model itself; its buffers advance."""
        self._load(row, self.buffers)
        step_gradient = self.rerun.gradient(self.stage, step, self._optimizers[0][1])
        held = named_buffers(self.rerun.model)
        for name, b in self.buffers.items():
            b[row].copy_(held[name])
        return step_gradient.gradients

    def _check(self, step: Step, row: int, before: Mapping[str, Tensor], found: Gradients) -> None:
        """Hold one arm's gradient and buffers against the ordinary ones."""
        self._load(row, before)
        still = {n: b.clone() for n, b in named_buffers(self.rerun.model).items()}
        step_gradient = self.rerun.gradient(self.stage, step, self._optimizers[0][1])
        if any((found[n] is None) != (g is None) for n, g in step_gradient.gradients.items()):
            raise NotVectorizedError(message("batched-loss-differs"))
        pairs = [(g, found[n]) for n, g in step_gradient.gradients.items() if g is not None]
        if not close([g for g, _ in pairs], [b[row] for _, b in pairs if b is not None]):
            raise NotVectorizedError(message("batched-gradient-differs"))
        held = named_buffers(self.rerun.model)
        ours = {n: self.buffers[n][row] if n in self.buffers else b for n, b in still.items()}
        if held and not all(close([b], [ours[n]]) for n, b in held.items()):
            raise NotVectorizedError(message("batched-buffers-differ"))

    def _load(self, row: int, buffers: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in named_parameters(self.rerun.model).items():
                p.copy_(self.theta[name][row])
            for name, b in named_buffers(self.rerun.model).items():
                if name in buffers:
                    b.copy_(buffers[name][row])

    # --- states -----------------------------------------------------------------------------------

    def _changing_buffers(self, rows: list[State]) -> set[str]:
        """Buffers that differ between arms, or that the recorded stage left other than it found."""
        if not rows[0].buffers:
            return set()
        pairs = [(rows[0], row) for row in rows[1:]] + [(self.stage.first, self.stage.last)]
        return {
            name
            for name in rows[0].buffers
            if any(not torch.equal(a.buffers[name], b.buffers[name]) for a, b in pairs)
        }

    def _make_optimizers(
        self, optimizer_state: list[dict[str, dict[str, Any]]]
    ) -> list[tuple[slice | int, Optimizer, dict[str, nn.Parameter]]]:
        """One optimizer over all rows, or one per row; each with its rows and its parameters."""
        kind = type(self.rerun.optimizer(self.stage))
        if self.vectorized and kind is not getattr(torch.optim, kind.__name__, None):
            raise NotVectorizedError(message("not-of-torch-optim", optimizer=kind.__name__))
        if self.vectorized:
            stacked = {
                n: stacked_optimizer_state([m[n] for m in optimizer_state], p[0])
                for n, p in self.theta.items()
            }
            if is_elementwise(kind.__name__) and all(s is not None for s in stacked.values()):
                return [(slice(None), self._optimizer(self.theta, stacked), self.theta)]
        found: list[tuple[slice | int, Optimizer, dict[str, nn.Parameter]]] = []
        for i, held in enumerate(optimizer_state):
            own = {
                n: nn.Parameter(p.detach()[i].clone(), p.requires_grad)
                for n, p in self.theta.items()
            }
            found.append((i, self._optimizer(own, held), own))
        return found

    def _optimizer(
        self, parameters: Mapping[str, nn.Parameter], optimizer_state: Mapping[str, Any]
    ) -> Optimizer:
        """The stage's optimizer, over other tensors than the model's."""
        optimizer = self.rerun.optimizer(self.stage)
        names = {id(p): n for n, p in named_parameters(self.rerun.model).items()}
        for group in optimizer.param_groups:
            group["params"] = [parameters[names[id(p)]] for p in group["params"]]
        optimizer.state.clear()
        for name, p in parameters.items():
            if optimizer_state[name]:
                optimizer.state[p] = optimizer_state[name]
        return optimizer

    def _kernel(self, options: Mapping[str, Any]) -> dict[str, Any]:
        fused = self._device.type == "cpu" and not options.get("differentiable")
        return {"fused": True, "foreach": False} if fused else {}

    def _state(self, row: int) -> State:
        self._load(row, self.buffers)
        state = capture(self.rerun.model, None)
        rows, optimizer, parameters = self._optimizers[0 if len(self._optimizers) == 1 else row]
        for name, p in parameters.items():
            if p in optimizer.state:
                state.optimizer_state[name] = {
                    key: row_of(value, row, p) if isinstance(rows, slice) else on_cpu(value)
                    for key, value in optimizer.state[p].items()
                    if value is not None
                }
        return state
