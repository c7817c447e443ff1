"""Estimates: why each method was taken, and what there is to say about a run."""

from __future__ import annotations

from collections.abc import Mapping

CHOICES = {
    "exact-within-budget": "exact, and within the budget",
    "asked-for": "{method} was asked for",
    "last-needs-none": "the last stage's counterfactual is the state before it",
    "replay-over-budget": "exact replay of every stage needs {gradients:count gradient|gradients}, more than the "
    "budget",
    "rows-over-budget": "exact replay of every stage needs {gradients:count gradient|gradients}, more than the budget; on "
    "a model of {parameters:count parameter|parameters}, some rows of every step say more than some whole steps",
    "order-not-recorded": "no steps are recorded, so that the order of the data is simulated",
    "replayed-by-spot-check": "replayed by the spot check; the exact effect is used",
    "verdict-rests-on-it": "replayed, since a verdict rests on it",
    "verdict-asks-for-it": "a verdict asks for it, and the budget pays for no replay",
    "rest-pays-for-estimates": "the runs that verdicts rest on are replayed; the rest of the budget pays for "
    "estimates",
    "budget-too-small": "the budget is {total:count gradient|gradients}, of which re-running the record takes "
    "{fidelity:count}; an estimate needs {needed:count}: raise estimator.budget",
    "budget-pays-for-nothing": "{error}: {remedy}",
}
METHODS = {
    "replay-does": "The later stages are trained again from the state in which the stage began. For the last stage "
    "that state is the answer itself.",
    "paired-replay-does": "The later stages are trained again with gradients computed at some of their steps only; "
    "in between, the recorded run's own gradients stand in, corrected by the last difference seen.",
    "sub-batch-replay-does": "The later stages are trained again with every gradient computed on some rows of its "
    "minibatch only, corrected by what the recorded run's gradient on the same rows is off its gradient on all of them.",
    "simulated-replay-does": "The run and the counterfactual are trained again on the same minibatches, drawn as the "
    "training was declared; what the two differ by is added to the recorded states.",
    "first-order-does": "The stage's updates are removed infinitesimally, and the change is carried to the end of "
    "training through the linearised steps.",
    "displacement-does": "The stage's own displacement is known exactly; the later stages carry it to the end "
    "through their linearised steps.",
    "krylov-does": "The stage's own displacement is known exactly; each later stage acts on it through the curvature "
    "of its loss, in a small subspace.",
}
"""What each estimator does."""
NOTES = {
    "of-stage": "{stage}: {note}",
    "arm-by-arm": "arm by arm, because {reason}",
    "arm-by-arm-asked-for": "arm by arm, as asked for",
    "under-autocast": "the stage trains under autocast",
    "passes-without-gradient": "the stage has passes without a gradient",
    "single-arm": "a single arm",
    "batchnorm-and-rounding": "BatchNorm lets rounding steer an adaptive optimizer",
    "too-many-parameters": "{parameters:count parameter is|parameters are} too many to gain",
    "operations-too-large": "its operations are too large to gain",
    "below-float32": "the model trains in a precision below float32",
    "batched-loss-differs": "the batched loss reaches other parameters than the ordinary",
    "batched-gradient-differs": "the batched gradient is not the ordinary one",
    "batched-buffers-differ": "the batched pass leaves other buffers than the ordinary",
    "no-scalar-objective": "the objective gives no scalar",
    "vmap-refuses": "vmap cannot take the objective: {error}",
    "not-of-torch-optim": "{optimizer} is no optimizer of torch.optim",
    "no-linear-reading": "no linear reading of {behavior}: {error}",
    "no-twin": "no twin of the estimate: {error}",
    "no-contributions": "no contributions: {error}",
    "budget-went-to-verdicts": "no effect of {stages} was estimated: the budget went to the runs that verdicts "
    "rest on",
    "later-batches-hold-outputs": "later batches hold outputs of the model that this stage trained, as recorded",
    "gone-astray": "without {stages}, the gradients in {stage} outgrew the recorded ones ({size:number 2} times their square) "
    "and hardly anything foretold them ({missed:percent 0} of it wrong): the estimate left the region in which it is stable, and was given up",
    "rows-not-foretold": "without {stages}, {missed:percent 0} of what the gradients on some rows said in {stage} was foretold wrongly by "
    "those of the recorded run on the same rows (more than {most:percent 0}): half of the rows do not tell the error",
    "error-not-foretold": "without {stages}, training goes on from weights that no stage trained, and in {stage} "
    "the recorded gradients foretell too little of its own (c {foretold:number 2}, below {least:declared}): the "
    "estimate does not know its error",
}

TOPICS: Mapping[str, Mapping[str, str]] = {
    "Estimators": METHODS,
    "Choices of estimators": CHOICES,
    "Notes on estimates": NOTES,
}
