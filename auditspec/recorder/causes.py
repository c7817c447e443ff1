"""The likely causes of a re-run that does not land, each with what it means and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cause:
    """Why a re-run does not land, as far as can be seen."""

    code: str
    """A key of `CAUSES`; docs/record.md lists them."""
    message: str
    remedy: str


CAUSES: dict[str, tuple[str, str]] = {
    "random-batch": (
        "load_batch gives two batches for the same rows and random state",
        "draw from the generators of torch, numpy, or random, not from one of your own or the clock; or "
        "declare the batch itself: run.batch(ids, tensors=batch)",
    ),
    "other-batch": (
        "load_batch gave another batch in training than in a fresh process",
        "let it depend on the rows and the random state alone (no counter, no epoch, no worker); or declare "
        "the batch itself: run.batch(ids, tensors=batch)",
    ),
    "random-objective": (
        "the objective gives two losses for one model, batch, and random state",
        "draw from the generators of torch, numpy, or random, not from one of your own or the clock, and "
        "keep nothing from one call to the next",
    ),
    "autocast": (
        "the loss was computed under another precision than recorded; with {precision} it agrees",
        "enter torch.autocast around run.loss, or inside the objective",
    ),
    "compile": (
        "{module} is compiled on one side only (in training: {there}; as the factory builds it: {here}), and "
        "compiled code draws and rounds otherwise",
        "compile inside the factory, or not at all",
    ),
    "gradient-hooks": (
        "hooks change the gradient of {module}",
        "put what they do into the objective",
    ),
    "other-model": (
        "{module} is {there} in training, and {here} as the factory builds it",
        "change the model in the factory, or by recorder.extend",
    ),
    "other-loss": (
        "its loss in a fresh process is another",
        "let the objective depend on its model and batch alone: no global that training sets, no trainer.state, "
        "no default precision or device that the script sets, no module outside the model",
    ),
    "own-batch": (
        "the loop loads its batches itself, and their loss is not the objective of what load_batch gives of the "
        "same rows",
        "declare the batch too, run.batch(ids, tensors=batch), if it is augmented or padded otherwise; and let "
        "the objective compute the whole loss",
    ),
    "zero-grad": (
        "the gradient of the step before was still there ({parameter}): zero_grad is missing",
        "call optimizer.zero_grad() once a step, before its first backward()",
    ),
    "zero-grad-between": (
        "gradients were set to zero between the passes of one step, so that the last alone counts",
        "call optimizer.zero_grad() once a step, before its first backward()",
    ),
    "backwards": (
        "{backwards} backward passes were made, and {passes} declared",
        "call run.loss, or run.batch, once before each pass whose loss is differentiated",
    ),
    "scaler": (
        "the gradient is {ratio} times that of the objective: the loss was scaled, and its gradient not unscaled",
        "make the step by scaler.step(optimizer)",
    ),
    "factor": (
        "the gradient is {ratio} times that of the objective: the loss was multiplied by hand",
        "take the loss from run.loss, or tell it by run.watch(loss): its factor is then seen; or pass "
        "weight= to run.batch",
    ),
    "loss-term": (
        "the loss is that of the objective, its gradient is not: something was added to the loss before backward()",
        "let the objective compute the whole loss",
    ),
    "other-objective": (
        "the gradient is not that of the objective: another loss was differentiated",
        "let the objective compute the whole loss, and take it from run.loss",
    ),
    "other-clipping": (
        "gradients were multiplied by {ratio}, which is not what clip_norm={limit} does",
        "clip once a step with torch.nn.utils.clip_grad_norm_(model.parameters(), {limit}), over all "
        "parameters and by the 2-norm",
    ),
    "clipping": (
        "gradients were clipped to a norm of {limit}, which the stage does not declare",
        "pass clip_norm={limit} to recorder.stage",
    ),
    "clipping-scaled": (
        "gradients were clipped to a norm of {limit} while they were still scaled",
        "call scaler.unscale_(optimizer) before clipping, and pass clip_norm= to recorder.stage",
    ),
    "clipping-by-value": (
        "gradients were clipped by value, to {value}, which cannot be recorded",
        "clip by the norm (clip_grad_norm_ and clip_norm=), or inside the optimizer's class",
    ),
    "factor-after": (
        "gradients were multiplied by {ratio} between backward() and step()",
        "pass the factor as the loss's weight, or clip_norm= to recorder.stage where it is clipping",
    ),
    "edited": (
        "gradients were changed between backward() and step() (first: {parameter})",
        "let the objective, or the optimizer's class, do what was done to them",
    ),
    "other-update": (
        "the optimizer took the recorded gradient and changed {parameter} otherwise than its class does from the "
        "recorded state: a step hook, or a change of its state",
        "put what else is done to weights and state into the optimizer's class",
    ),
    "outside": (
        "{parameter} was changed after the step before, outside the optimizer",
        "let the optimizer's class make the change (decay, constraints), or keep averages of weights in a "
        "model of their own; change a model between stages by recorder.extend",
    ),
    "fails": (
        "it cannot be run again: {error}",
        "{remedy}",
    ),
    "trains-on-import": (
        "the training code trains when it is imported, and an audit imports it",
        'put what trains under: if __name__ == "__main__":',
    ),
    "not-importable": (
        "{error}",
        "let {name} be imported without its script being run: an audit imports it so",
    ),
    "buffer": (
        "the weights are the recorded ones, and {buffer} is not: something else than the forward pass changes it",
        "let the forward pass alone change buffers",
    ),
    "not-noted": (
        "what the loop did with a loss, its gradient, or the weights, in this step or those before it, is not "
        "what was recorded",
        "look for terms added to the loss, a missing zero_grad, clipping that is not declared, gradients or "
        "weights that something else than the optimizer changes; a recorder that checks itself names which",
    ),
}
"""Message and remedy by code."""

_FAILS = "let the objective, load_batch, and factory depend on their arguments alone"


def cause(code: str, step: int | None = None, **values: Any) -> Cause:
    """A cause, by its code.

    Args:
        code: a key of `CAUSES`.
        step: where it was seen; None where that says nothing.
        values: what its sentences name.
    """
    message, remedy = CAUSES[code]
    known = {"remedy": _FAILS, **{name: value for name, value in values.items() if value}}
    lead = "" if step is None else f"step {step}: "
    return Cause(code, lead + message.format(**known), remedy.format(**known))
