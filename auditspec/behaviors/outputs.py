"""Whether what `predict` gives is of the kind that the spec declares, as far as numbers tell."""

from __future__ import annotations

import torch
from torch import Tensor

from auditspec.behaviors.evaluate import Evaluator
from auditspec.errors import SpecError
from auditspec.record.state import State
from auditspec.spec.measures import OF_CLASSES, OutputKind
from auditspec.spec.source import LoadedSpec

SUMS = 1e-3
"""How far probabilities of an example may add up from 1; more where four roundings of their type are more."""


def require_declared_outputs(loaded: LoadedSpec, reader: Evaluator, state: State) -> None:
    """Hold the deployed model's outputs on every behaviour's first examples against `model.outputs`.

    Args:
        loaded: the spec.
        reader: of its behaviours.
        state: the deployed one.

    Raises:
        SpecError: at the declaration, where the outputs are of another kind.
    """
    for behavior, given in reader.first_predictions(state).items():
        if wrong := contradiction(given, reader.asked.kind):
            stated = "outputs" in loaded.spec.model.model_fields_set
            place = ("model", "outputs" if stated else "predict")
            message = f"model.predict does not give {reader.asked.kind} on {behavior!r}: {wrong[0]}"
            raise SpecError([loaded.problem("AS054", message, place, hint=wrong[1])])


def contradiction(given: Tensor, kind: OutputKind) -> tuple[str, str] | None:
    """Why outputs are not of a kind, and what to do; None where nothing speaks against it.

    Log-probabilities pass as logits: they are logits too, and every metric reads the same.

    Args:
        given: what `predict` gave.
        kind: what it is declared to give.
    """
    shape = list(given.shape)
    if kind == "values":
        if given.dim() == 1 or (given.dim() == 2 and shape[1] == 1):
            return None
        return f"its shape is {shape}", "give one value an example, [B], or declare another kind"
    wanted = "[B, C]" if kind in OF_CLASSES else "[B, T, V]"
    if given.dim() != wanted.count(",") + 1:
        return f"its shape is {shape}, and not {wanted}", "declare what it gives: model.outputs"
    if not given.is_floating_point():
        return f"it gives {given.dtype}".replace("torch.", ""), "give scores, not chosen classes"
    rows = given.detach().double().reshape(-1, shape[-1])
    rows = rows[rows.isfinite().all(1) if kind != "log-probabilities" else ~rows.isnan().any(1)]
    slack = max(SUMS, 4 * torch.finfo(given.dtype).eps)
    if not len(rows):
        return None
    is_distribution = _sums_to_one(rows, slack)
    if kind == "probabilities":
        return None if is_distribution else _no_distribution(rows, slack)
    if kind == "log-probabilities":
        if _sums_to_one(rows.exp(), slack):
            return None
        hint = "declare probabilities" if is_distribution else "declare logits"
        return "exponentials of a row do not add up to 1", f"{hint}: model.outputs"
    if is_distribution and shape[-1] > 1:
        return (
            "every row lies in [0, 1] and adds up to 1",
            "declare model.outputs: probabilities, or give what softmax is taken of",
        )
    return None


def _sums_to_one(rows: Tensor, slack: float) -> bool:
    """Whether every row is a distribution."""
    inside = bool((rows >= -slack).all()) and bool((rows <= 1 + slack).all())
    return inside and bool(((rows.sum(1) - 1).abs() <= slack).all())


def _no_distribution(rows: Tensor, slack: float) -> tuple[str, str]:
    least, most = float(rows.min()), float(rows.max())
    if least < -slack or most > 1 + slack:
        logs = _sums_to_one(rows.exp(), slack)
        hint = "declare log-probabilities" if logs else "declare logits"
        return f"it holds values from {least:.3g} to {most:.3g}", f"{hint}: model.outputs"
    return (
        f"a row adds up to {float(rows.sum(1)[(rows.sum(1) - 1).abs().argmax()]):.3g}",
        "give one distribution over all classes, or read it by a custom metric",
    )
