"""A recorded state, moved by what a counterfactual differs from the recorded run in a simulation of both."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from auditspec.record.state import OptimizerState, State


def anchored(recorded: State, arm: State, run: State) -> State:
    """Where the counterfactual ends a stage: xi_b + (arm' - run').

    What both simulations share, an order of the data that is not the recorded one, drops out (control variate: Owen,
    *Monte Carlo theory, methods and examples*, 2013, ch. 8). Variances and second moments, which are never negative, are
    scaled instead: s_b arm' / run', where run' is not 0. Counters are the arm's own.

    Args:
        recorded: where the recorded run ended it.
        arm: where the simulated counterfactual did.
        run: where the simulated run did, from the recorded start, on the same minibatches.

    Returns:
        The state, moments included, in the precision of the recorded one.
    """
    return State(
        {
            n: p + (arm.parameters[n] - run.parameters[n]).to(p)
            for n, p in recorded.parameters.items()
        },
        {n: _moved(b, arm.buffers[n], run.buffers[n]) for n, b in recorded.buffers.items()},
        _moments(recorded.optimizer_state, arm.optimizer_state, run.optimizer_state),
    )


def _moments(recorded: OptimizerState, arm: OptimizerState, run: OptimizerState) -> OptimizerState:
    """The arm's moments, moved where the recorded and the simulated run have the same."""
    return {
        name: {
            slot: _moved(recorded.get(name, {}).get(slot), value, run.get(name, {}).get(slot))
            for slot, value in slots.items()
        }
        for name, slots in arm.items()
    }


def _moved(recorded: Any, arm: Any, run: Any) -> Any:
    tensors = [recorded, arm, run]
    if not all(isinstance(t, Tensor) and t.dim() and t.is_floating_point() for t in tensors):
        return arm
    if all(bool((t >= 0).all()) for t in tensors):
        scaled = recorded * (arm / run).to(recorded)
        return scaled.where(run.to(recorded) > 0, arm.to(recorded))
    return recorded + (arm - run).to(recorded)
