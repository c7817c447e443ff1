"""Whether a rule's steps are those of an optimizer class, where its name alone does not say so.

A class of torch.optim is what its rule says (the tests hold them together). A class of the training code
may bear a rule's name and make other steps; so it is tried out, or held against a record of its steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.engine.optimizers import find_rule
from auditspec.engine.optimizers.interface import Options, UpdateRule
from auditspec.record.describe_optimizer import build
from auditspec.record.trajectory import StageTrajectory
from auditspec.record.uncompiled import uncompiled

STEPS = 3
TOLERANCE = 1e-9
"""Of a step in float64, relative to it."""
SLACK, ROUNDING = 0.01, 16
"""How far a recorded step may be off, relative to it; and how many times its rounding must fit into that."""


def disagreement(rule: UpdateRule, kind: type[Optimizer], h: Options) -> str:
    """In which way a class makes other steps than its rule; empty where it makes the same.

    Both make a few steps of a small matrix in float64.

    Args:
        rule: the rule.
        kind: the class.
        h: hyperparameters of a group; the learning rate is left unused.
    """
    h = {**h, "lr": 0.1}
    theta = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    parameter = nn.Parameter(theta.clone())
    try:
        optimizer = build(kind, [{**h, "params": [parameter]}])
        for k in range(STEPS):
            g = torch.sin(theta * (k + 2) + k)
            s, steps_made = rule.read(optimizer.state.get(parameter, {}), theta, h)
            theta_next, s_next = rule.step(theta, s, g, steps_made, h)
            parameter.grad = g.clone()
            with uncompiled():
                optimizer.step()
            state, theirs = optimizer.state.get(parameter, {}), parameter.detach().clone()
            if not _close(theta_next - theta, theirs - theta):
                return f"its step {k + 1} moves the parameter otherwise"
            for slot, value in s_next.items():
                if not _close(value, state[slot]):
                    return f"its step {k + 1} leaves another {slot}"
            theta = theirs
    except Exception as error:  # of the class, or of a rule that lacks an option or a slot there
        return f"{type(error).__name__}: {error}"
    return ""


def tells_gradients(stage: StageTrajectory) -> bool:
    """Whether the gradient of every step of a stage can be read off its recorded states.

    So it is where every state was recorded and the optimizer's rule finds it between two of them; the
    first step of a class of the training code must be as the rule makes it from that gradient.
    """
    rule = find_rule(stage.header.optimizer)
    if rule is None or len(stage.state_steps) != stage.header.steps + 1:
        return False
    probe = torch.zeros(1)
    for group in stage.groups:
        s = dict.fromkeys(rule.slots(group.options), probe)
        if rule.gradient_between(probe, s, s, 1, group.options) is None:
            return False
    return ":" not in stage.header.optimizer or _bears_out(rule, stage)


def _bears_out(rule: UpdateRule, stage: StageTrajectory) -> bool:
    """Whether the first recorded step is the rule's, within `SLACK` of it."""
    before, after = stage.state(0), stage.state(1)
    for group, h in zip(stage.header.groups, stage.steps[0].groups, strict=True):
        for name in group.parameters:
            if name not in after.optimizer_state:
                continue
            theta, recorded = before.parameters[name], after.parameters[name]
            s, steps_made = rule.read(before.optimizer_state.get(name, {}), theta, h)
            s_next, _ = rule.read(after.optimizer_state[name], theta, h)
            g = rule.gradient_between(theta, s, s_next, steps_made, h)
            size = (recorded - theta).norm()
            rounding = torch.finfo(theta.dtype).eps * theta.norm()
            if g is None or rounding > SLACK / ROUNDING * size:
                return False
            if (rule.step(theta, s, g, steps_made, h)[0] - recorded).norm() > SLACK * size:
                return False
    return True


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).norm() <= TOLERANCE * theirs.norm())
