"""Texts and tokens that metrics of language models ask about, as the evaluation table holds them."""

from __future__ import annotations

from auditspec.artifacts.tokenizer import Tokenizer
from auditspec.behaviors.metrics.generation import Generation
from auditspec.behaviors.metrics.patterns import PatternError, compiled
from auditspec.behaviors.metrics.sequences import SequenceMetric
from auditspec.consistency.inquiry import Inquiry
from auditspec.consistency.slices import rows_of
from auditspec.errors import EvidenceError, UsageError
from auditspec.spec.models import Behavior
from auditspec.spec.tree import Location


def check_texts(inquiry: Inquiry, index: int, behavior: Behavior) -> None:
    """Every row of the slice holds what its metric of token sequences asks about."""
    metric = behavior.metric
    if not isinstance(metric, SequenceMetric) or not _sound_pattern(inquiry, index, metric):
        return
    found, name = rows_of(inquiry, behavior, metric.columns), inquiry.spec.model.tokenizer
    if found is None or (name is not None and not inquiry.usable(name)):
        return
    frame, rows = found
    try:
        tokenizer = None if name is None else Tokenizer.open(inquiry.path(name))
    except UsageError as error:
        inquiry.fault("AS095", error.message, ("model", "tokenizer"), error.remedy)
        return
    except EvidenceError as error:
        inquiry.fault("AS036", error.message, ("model", "tokenizer"), error.remedy)
        return
    columns = {column: frame[column].to_numpy() for column in metric.columns}
    try:
        metric.examples(columns, rows.tolist(), tokenizer)
    except EvidenceError as error:
        place: Location = ("behaviors", index, "metric", "name")
        inquiry.fault("AS057", error.message, place, error.remedy)


def _sound_pattern(inquiry: Inquiry, index: int, metric: SequenceMetric) -> bool:
    if not isinstance(metric, Generation) or metric.pattern is None:
        return True
    place: Location = ("behaviors", index, "metric", "pattern")
    try:
        compiled(metric.pattern)
    except UsageError as error:
        inquiry.fault("AS095", error.message, place, error.remedy)
        return False
    except PatternError as error:
        message = f"no regular expression of RE2: {error}"
        inquiry.fault("AS057", message, place, "RE2 has no look-around and no back-references")
        return False
    return True
