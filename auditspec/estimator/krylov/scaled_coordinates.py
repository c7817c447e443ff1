"""The coordinates in which a segment of a stage is symmetric.

With P the preconditioner of the optimizer's `LinearRule`, y = P^(-1/2) delta, nu <- P^(1/2) nu, and
A = P^(1/2) (+-H + Lambda) P^(1/2), a step is

    nu <- a nu + b (A y + f)
    y <- (1 - w) y - p (A y + f) - q nu

in which all but A are scalars of the step and of the parameter group. Groups may have learning
rates of their own: the ratio of their mean rates goes into P. Where they differ in more (the shape of
the schedule, betas, decoupled decay on some), the Krylov space gets a block for each group.

Parameters that take no part (not in the optimizer, not reached by the loss, or at learning rate 0)
keep their displacement; what they do to the gradient of the others is the constant force f.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from auditspec.engine.optimizers import linear_rule_of
from auditspec.engine.optimizers.interface import Coefficients
from auditspec.errors import UnsupportedError
from auditspec.estimator.krylov.curvature import Curvature
from auditspec.estimator.krylov.lanczos import Krylov
from auditspec.estimator.krylov.recurrence import propagate
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Step

Rows = dict[str, Tensor]
"""[n, *shape] per parameter, one row for each direction."""


class ScaledCoordinates:
    """The scaled coordinates of one segment: N numbers of all parameters that take part.

    Args:
        stage: the segment's stage.
        steps: the segment's steps.
        state: the recorded state whose curvature and second moment are held.
        curvature: the curvature at that state.

    Raises:
        UnsupportedError: if coupled weight decay changes over the segment, or some groups maximize
            and some do not.
    """

    def __init__(
        self, stage: StageTrajectory, steps: Sequence[Step], state: State, curvature: Curvature
    ) -> None:
        self.rule = linear_rule_of(stage.header.optimizer, steps[0].groups[0])
        self.steps, self.curvature = steps, curvature
        parameters = curvature.step_gradients[0].parameters
        rates = [sum(float(step.groups[g]["lr"]) for step in steps) for g in _groups(steps)]
        self.shares = [rate / max(rates) if rate else 0.0 for rate in rates]
        """Mean learning rate of each group, relative to the largest."""
        self.sign = -1.0 if _same(stage, steps, "maximize") else 1.0
        self.names: list[str] = []
        self.sizes: list[int] = []
        self.blocks: list[tuple[int, slice]] = []
        """Group and place of each parameter that takes part."""
        roots, decays, end = [], [], 0
        for g, group in enumerate(stage.header.groups):
            h = steps[0].groups[g]
            decay = self.rule.coupled_decay(h)
            if any(self.rule.coupled_decay(step.groups[g]) != decay for step in steps):
                raise UnsupportedError(
                    f"stage '{stage.id}': its weight decay changes on the way; krylov holds it",
                    "use estimator.method: replay",
                )
            for name in group.parameters:
                scale = self.rule.preconditioner(state.optimizer_state.get(name, {}), h)
                if name not in curvature.reached or not self.shares[g] or scale is None:
                    continue
                like = parameters[name].detach()
                p = torch.as_tensor(scale * self.shares[g]).to(like).expand_as(like).flatten()
                roots.append(p.sqrt())
                decays.append(decay * p)
                self.names.append(name)
                self.sizes.append(len(p))
                self.blocks.append((g, slice(end, end + len(p))))
                end += len(p)
        wide = torch.promote_types(torch.float32, next(iter(parameters.values())).dtype)
        self.root = torch.cat(roots).to(wide) if roots else torch.zeros(0, dtype=wide)
        """P^(1/2), [N]"""
        self.decay = torch.cat(decays).to(self.root) if decays else self.root
        """P Lambda, [N]"""

    # --- into the coordinates and back ------------------------------------------------------------------

    def scale(self, delta: Rows) -> Tensor:
        """Y = P^(-1/2) delta, [n, N]."""
        return self._flat(delta) / self.root

    def scale_moment(self, nu: Rows) -> Tensor:
        """P^(1/2) nu, [n, N]; also of gradients."""
        return self._flat(nu) * self.root

    def unscale(self, y: Tensor, delta: Rows) -> None:
        """Put the displacement y back into `delta`; parameters that take no part stay."""
        self._put(y * self.root, delta)

    def unscale_moment(self, y: Tensor, nu: Rows) -> None:
        """Put the first moment's displacement back into `nu`."""
        self._put(y / self.root, nu)

    def scale_gradient(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """+-P^(1/2) g of one gradient, [N]."""
        return self.sign * self.scale_moment({n: g[None] for n, g in gradient.items()})[0]

    # --- what acts in it --------------------------------------------------------------------------

    def operator(self, y: Tensor) -> Tensor:
        """A y, [N] to [N]."""
        delta = {
            n: torch.zeros_like(p) for n, p in self.curvature.step_gradients[0].parameters.items()
        }
        for name, block in zip(self.names, self._split(y * self.root), strict=True):
            delta[name] = block.view_as(delta[name]).to(delta[name])
        return self.scale_gradient(self.curvature.product(delta)) + self.decay * y

    def displaces_others(self, delta: Rows) -> bool:
        """Whether a parameter that takes no part is displaced."""
        return any(bool(rows.any()) for n, rows in delta.items() if n not in self.names)

    def force(self, delta: Rows) -> Tensor:
        """F = +-P^(1/2) H delta of the parameters that take no part, [n, N]; a product a row."""
        count = len(next(iter(delta.values())))
        forces = []
        for i in range(count):
            others = {
                n: torch.zeros_like(p) if n in self.names or n not in delta else delta[n][i].to(p)
                for n, p in self.curvature.step_gradients[0].parameters.items()
            }
            forces.append(self.scale_gradient(self.curvature.product(others)))
        return torch.stack(forces)

    def schedule(self, count: int) -> list[tuple[Coefficients, ...]]:
        """The scalars of each step and group, `count` steps being made before the first.

        A group's share of the learning rate stands in P, and is taken out of its scalars.
        """
        moving = [g for g, share in enumerate(self.shares) if share > 0]
        return [
            tuple(
                _relative(self.rule.coefficients(count + k, step.groups[g]), self.shares[g])
                for g in moving
            )
            for k, step in enumerate(self.steps)
        ]

    def parts(self, schedule: Sequence[tuple[Coefficients, ...]]) -> list[Tensor]:
        """A mask [N] for each group, where the groups' scalars differ; else none."""
        if all(
            math.isclose(x, y, rel_tol=1e-9)
            for first, *others in schedule
            for other in others
            for x, y in zip(first, other, strict=True)
        ):
            return []
        masks = {g: torch.zeros_like(self.root) for g, _ in self.blocks}
        for g, place in self.blocks:
            masks[g][place] = 1
        return list(masks.values())

    def run(
        self,
        space: Krylov,
        schedule: Sequence[Sequence[Coefficients]],
        y: Tensor,
        nu: Tensor,
        force: Tensor,
        *,
        stable: bool,
    ) -> tuple[Tensor, Tensor]:
        """The segment's steps on the Ritz values of a Krylov space; y and nu at its end, [n, N].

        With `stable`, no Ritz value makes a step amplify: negative ones count as 0, and those beyond
        the step's limit are brought within it.
        """
        values, vectors = torch.linalg.eigh(space.projected)
        if stable:
            values = values.clamp(min=0)
        grams = []
        for g in (g for g, share in enumerate(self.shares) if share > 0):
            part = torch.zeros_like(space.projected)
            for group, place in self.blocks:
                if group == g:
                    part += (space.basis[:, place] @ space.basis[:, place].T).double()
            grams.append(vectors.T @ part @ vectors)
        y_m, nu_m, f_m = (vectors.T @ space.coordinates(x) for x in (y, nu, force))
        y_m, nu_m = propagate(values, schedule, grams, y_m, nu_m, f_m, stable=stable)
        return space.combine(vectors @ y_m), space.combine(vectors @ nu_m)

    # --- flat vectors -----------------------------------------------------------------------------

    def _flat(self, rows: Mapping[str, Tensor]) -> Tensor:
        count = len(next(iter(rows.values()))) if rows else 1
        parts = [
            rows[n].flatten(1).to(self.root) if n in rows else self.root.new_zeros(count, size)
            for n, size in zip(self.names, self.sizes, strict=True)
        ]
        return torch.cat(parts, 1) if parts else self.root.new_zeros(count, 0)

    def _split(self, flat: Tensor) -> tuple[Tensor, ...]:
        return torch.split(flat, self.sizes, dim=-1)

    def _put(self, flat: Tensor, rows: Rows) -> None:
        parameters = self.curvature.step_gradients[0].parameters
        for name, block in zip(self.names, self._split(flat), strict=True):
            like = parameters[name].detach()
            rows[name] = block.reshape(len(flat), *like.shape).to(like)


def _groups(steps: Sequence[Step]) -> range:
    return range(len(steps[0].groups))


def _same(stage: StageTrajectory, steps: Sequence[Step], key: str) -> bool:
    values = {bool(h.get(key)) for step in steps for h in step.groups}
    if len(values) > 1:
        raise UnsupportedError(
            f"stage '{stage.id}': {key} differs between steps or parameter groups; krylov holds it",
            "use estimator.method: replay",
        )
    return values.pop()


def _relative(c: Coefficients, share: float) -> Coefficients:
    return c._replace(p=c.p / share, q=c.q / share)
