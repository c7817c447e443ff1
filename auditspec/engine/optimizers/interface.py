"""What an estimator needs to know of an optimizer: its update as a function, and what follows from it.

A step takes the state xi = (theta, s) of a parameter to xi' = U(xi, g; h): theta the parameter, s the
tensors that the optimizer keeps for it (`Slots`, under torch's own names), g the gradient after
clipping, h the hyperparameters of its group. Counters are no part of s: they are never differentiated.
A rule is U for one class, parameter by parameter. Nothing else in the package compares the name of an
optimizer; an optimizer without a rule is replayed by its own class, and has no derivatives.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from auditspec.record.uncompiled import pulled_back

Options = Mapping[str, Any]
"""Hyperparameters of a parameter group, as `torch.optim` names them."""
Slots = dict[str, Tensor]
"""What the optimizer keeps for a parameter, by torch's name, in the parameter's shape."""
Pull = Callable[[Tensor, Mapping[str, Tensor]], tuple[Tensor, Slots, Tensor]]
"""(lambda_theta', lambda_s') -> (lambda_theta, lambda_s, lambda_g); [n, *shape] each."""


class UpdateRule(ABC):
    """The update of one optimizer class, as differentiable operations on one parameter's tensors.

    Its step must equal that of the class, and must not change its arguments; the derivatives in both
    directions are torch's, of this very step.
    """

    name: ClassVar[str]
    """The class: of torch.optim, or of the training code under whatever module it stands there."""
    elementwise: ClassVar[bool]
    """Whether the update of a number depends on that number's own history alone."""
    counts_steps: ClassVar[bool]
    """Whether the update depends on how many steps were made before (Adam's bias correction)."""

    @abstractmethod
    def slots(self, h: Options) -> tuple[str, ...]:
        """The slots of s that the step uses and moves."""

    @abstractmethod
    def step(
        self, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
    ) -> tuple[Tensor, Slots]:
        """U: one step.

        Args:
            theta: the parameter.
            s: its slots; zeros before the first step.
            g: its gradient, as the optimizer gets it.
            count: steps made before this one, as `steps_made` tells them.
            h: hyperparameters.

        Returns:
            theta' and s', all of theta's shape.
        """

    def gradient_between(
        self, theta: Tensor, s: Slots, s_next: Slots, count: int, h: Options
    ) -> Tensor | None:
        """The gradient that a step from (theta, s) to s_next used; None where s' does not tell it.

        Where the loop clips, it is the clipped gradient.
        """
        return None

    def unsupported_option(self, h: Options) -> str:
        """The name of an option in use that the step does not know; empty where there is none."""
        return ""

    def steps_made(self, state: Mapping[str, Any]) -> int:
        """Steps made, by a parameter's optimizer state; a rule that counts none tells whether there was one."""
        return int(any(value is not None for value in state.values()))

    def read(self, state: Mapping[str, Any], theta: Tensor, h: Options) -> tuple[Slots, int]:
        """Slots and steps made, of a parameter's optimizer state; zeros for what is not there yet."""
        values = {slot: state.get(slot) for slot in self.slots(h)}
        s = {n: torch.zeros_like(theta) if x is None else x for n, x in values.items()}
        return s, self.steps_made(state)

    def push_forward(
        self,
        at: tuple[Tensor, Slots, Tensor],
        along: tuple[Tensor, Slots, Tensor],
        count: int,
        h: Options,
    ) -> tuple[tuple[Tensor, Slots], tuple[Tensor, Slots]]:
        """The step, and its derivative in several directions.

        Args:
            at: theta, s, and g.
            along: directions of them, [n, *shape] each.
            count: steps made before.
            h: hyperparameters.

        Returns:
            (theta', s'), and its derivatives, [n, *shape] each.
        """

        def step(theta: Tensor, s: Slots, g: Tensor) -> tuple[Tensor, Slots]:
            return self.step(theta, s, g, count, h)

        def derivative(*direction: Any) -> Any:
            return torch.func.jvp(step, at, direction)[1]

        theta_dot, s_dot = torch.vmap(derivative)(*along)
        return step(*at), (theta_dot, s_dot)

    def pull_back(
        self, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
    ) -> tuple[tuple[Tensor, Slots], Pull]:
        """The step, and the transpose of its derivative.

        Returns:
            (theta', s'), and a function that takes cotangents of them, [n, *shape] each and zero for a
            missing slot, to those of theta, s, and g.
        """
        leaves = [x.detach().requires_grad_() for x in (theta, *s.values(), g)]
        slots = dict(zip(s, leaves[1:-1], strict=True))
        with torch.enable_grad():
            theta_next, s_next = self.step(leaves[0], slots, leaves[-1], count, h)

        def pull(theta_bar: Tensor, s_bar: Mapping[str, Tensor]) -> tuple[Tensor, Slots, Tensor]:
            none = torch.zeros_like(theta_bar)
            pulled = pulled_back(
                [theta_next, *s_next.values()],
                leaves,
                [theta_bar, *(s_bar.get(slot, none) for slot in s_next)],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
            first, *middle, last = (none if x is None else x for x in pulled)
            return first, dict(zip(s, middle, strict=True)), last

        after = theta_next.detach(), {slot: x.detach() for slot, x in s_next.items()}
        return after, pull


class Coefficients(NamedTuple):
    """The scalars of one step of `LinearRule`."""

    a: float
    b: float
    w: float
    p: float
    q: float

    @property
    def limit(self) -> float:
        """The curvature above which the step, repeated, amplifies (Jury's criterion): 2 / lr for plain SGD.

        (2 - w)(1 + a) / (p (1 + a) + q b)
        """
        slope = self.p * (1 + self.a) + self.q * self.b
        return (2 - self.w) * (1 + self.a) / slope if slope > 0 else math.inf


class LinearRule(UpdateRule):
    """An update that is linear in the gradient and in a first moment, under a preconditioner P.

    A displacement delta of theta, and nu of the first moment, go through one step as

        g' = H' delta                    H' = +-H + Lambda (coupled weight decay, maximize)
        nu <- a nu + b g'
        delta <- (1 - w) delta - P (p g' + q nu)

    This is the derivative of the step: exactly where P is constant, else with P held.
    """

    first_moment: ClassVar[str]
    """The slot that nu displaces."""

    @abstractmethod
    def coefficients(self, count: int, h: Options) -> Coefficients:
        """The scalars of the step that follows `count` steps; lr stands in w, p, and q."""

    @abstractmethod
    def coupled_decay(self, h: Options) -> float:
        """The weight decay that is part of the gradient; 0 where it shrinks the weights apart from it."""

    @abstractmethod
    def preconditioner(self, state: Mapping[str, Any], h: Options) -> Tensor | float | None:
        """P without the learning rate, at a parameter's optimizer state; None before the first step."""
