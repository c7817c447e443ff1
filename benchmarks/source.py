"""SOURCE-style unrolling from the stages' boundaries alone (Bae et al. 2024, arXiv 2405.12186), as a baseline.

A stage is a segment of K steps whose curvature and gradients are taken to be stationary and independent, with the means
H and g over its checkpoints, here its two ends. With the mean rate r a segment then propagates and adds

    S = exp(-r K H)          t = (1 - exp(-r K H)) H^-1 g          delta_K = S_n ... S_{s+1} t_s   without stage s

`known` takes the stage's recorded displacement theta_a - theta_b in place of t_s, which SOURCE would not know. H is the
Gauss-Newton matrix on a sample of the stage's data, exactly and in a Krylov space, where SOURCE has EK-FAC. Momentum divides
the rate by 1 - mu; Adam's preconditioner P at the stage's end makes H into P^1/2 H P^1/2, and its decoupled decay adds a
factor, as the paper's appendix on optimizers has it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from auditspec.estimator.krylov.lanczos import lanczos
from auditspec.record.state import State

from .estimators import Estimate, Job
from .settings.pipeline import tensors

VECTORS, EXAMPLES = 20, 512
Flat = Callable[[Tensor], Tensor]


def source(job: Job, *, known: bool = False) -> Estimate:
    """delta_K of every stage but the last, read plug-in."""
    segments = [_Segment(job, index) for index in range(len(job.run.trajectory.stages))]
    final, states = job.final, {}
    for index, name in enumerate(job.stages):
        delta = segments[index].displacement if known else segments[index].removed()
        for later in segments[index + 1 :]:
            delta = later.applied(delta, lambda x: torch.exp(-x))
        moved = segments[index].unflat(delta)
        states[name] = State({n: p + moved[n].to(p) for n, p in final.parameters.items()}, {})
    return Estimate(job.reader.plug_in(states), sum(segment.cost for segment in segments))


class _Segment:
    """One stage, by its two ends."""

    def __init__(self, job: Job, index: int) -> None:
        setting, self.stage = job.run.setting, job.run.trajectory.stages[index]
        planned = setting.stages[index]
        self.model: nn.Module = setting.factory()
        self.ends = (self.stage.first, self.stage.last)
        x, y = tensors(job.run.datasets[planned.data])
        self.x, self.y = x, y
        self.sample = torch.randperm(len(x), generator=torch.Generator().manual_seed(index))
        self.sample = self.sample[:EXAMPLES]
        options = setting.options
        rates = [setting.rate(planned, step) for step in range(planned.steps)]
        self.time = sum(rates) / (1 - options.get("momentum", 0.0))
        self.decoupled = setting.optimizer == "AdamW"
        self.decay = options["weight_decay"]
        self.scale = self._preconditioner(options)
        self.batch, self.cost = setting.batch, 0.0

    @property
    def displacement(self) -> Tensor:
        """theta_a - theta_b"""
        return self._flat(self.ends[0].parameters) - self._flat(self.ends[1].parameters)

    def removed(self) -> Tensor:
        """t = (1 - exp(-r K H)) H^-1 g"""
        gradient = torch.stack([self._gradient(end) for end in self.ends]).mean(0)
        return self.applied(self.time * gradient, _one_less_exp_over, both=True)

    def applied(self, vector: Tensor, function: Flat, *, both: bool = False) -> Tensor:
        """P^1/2 f(r K P^1/2 H P^1/2) P^-1/2 v; with `both`, P^1/2 on both sides: v is a gradient."""
        root = self.scale.sqrt()
        start = vector * root if both else vector / root
        space = lanczos(lambda v: self._product(v, root), start[None], VECTORS)
        values, vectors = torch.linalg.eigh(space.projected)
        inside = vectors @ (
            function(values)[:, None] * (vectors.T @ space.coordinates(start[None]))
        )
        shrunk = torch.exp(torch.tensor(-self.time * self.decay)) if self.decoupled else 1.0
        return shrunk * root * space.combine(inside)[0]

    def unflat(self, vector: Tensor) -> dict[str, Tensor]:
        """By parameter."""
        held = dict(self.model.named_parameters())
        pieces = vector.split([p.numel() for p in held.values()])
        return {n: v.view_as(p) for (n, p), v in zip(held.items(), pieces, strict=True)}

    def _product(self, v: Tensor, root: Tensor) -> Tensor:
        curved = torch.stack([self._gauss_newton(end, v * root) for end in self.ends]).mean(0)
        if not self.decoupled:
            curved = curved + self.decay * v * root
        return self.time * root * curved

    def _gauss_newton(self, state: State, v: Tensor) -> Tensor:
        """J^T B J v / N on the sample, B of the softmax."""
        x = self.x[self.sample]
        output = self._output(x)
        theta = {n: state.parameters[n] for n, _ in self.model.named_parameters()}
        logits, slope = jvp(output, (theta,), (self.unflat(v),))  # type: ignore[misc]
        prob = logits.softmax(1)
        bent = prob * slope - prob * (prob * slope).sum(1, keepdim=True)
        self.cost += 2 * len(x) / self.batch
        return self._flat(vjp(output, theta)[1](bent / len(x))[0])

    def _gradient(self, state: State) -> Tensor:
        """Mean over all of the stage's data."""
        leaves = {n: p.clone().requires_grad_() for n, p in state.parameters.items()}
        loss = nn.functional.cross_entropy(functional_call(self.model, leaves, (self.x,)), self.y)
        self.cost += len(self.x) / self.batch
        return self._flat(
            dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True))
        )

    def _output(self, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda theta: functional_call(self.model, theta, (x,))

    def _preconditioner(self, options: dict[str, float]) -> Tensor:
        """P: 1 for SGD, 1 / (sqrt(v_hat) + eps) at the stage's end for AdamW."""
        if not self.decoupled:
            return torch.ones_like(self._flat(self.ends[1].parameters))
        moments = self.ends[1].optimizer_state
        second = self._flat({n: slots["exp_avg_sq"] for n, slots in moments.items()})
        unbiased = second / (1 - 0.999**self.stage.header.steps)
        return 1 / (unbiased.sqrt() + options["eps"])

    def _flat(self, tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat([tensors[n].flatten() for n, _ in self.model.named_parameters()])


def _one_less_exp_over(x: Tensor) -> Tensor:
    """(1 - exp(-x)) / x, 1 at 0."""
    safe = torch.where(x.abs() < 1e-9, torch.ones_like(x), x)
    return torch.where(x.abs() < 1e-9, torch.ones_like(x), -torch.expm1(-safe) / safe)
