"""English: the catalogue of sentences by topic, and the language's own rules."""

from __future__ import annotations

from collections.abc import Mapping

from auditspec.estimator.interventions import Arm, in_words
from auditspec.report.words.en import checks, estimates, evidence, verdicts
from auditspec.report.words.language import Language

TOPICS: Mapping[str, Mapping[str, str]] = {
    **verdicts.TOPICS,
    **evidence.TOPICS,
    **checks.TOPICS,
    **estimates.TOPICS,
}
"""The catalogue, topic by topic."""
ENGLISH = Language(
    name="en",
    templates={code: text for topic in TOPICS.values() for code, text in topic.items()},
    plural=lambda count: 0 if count == 1 else 1,
    party=in_words,
    arm=lambda name: Arm.of(name).words,
    conjunction=lambda items: ", and " if items > 2 else " and ",
    more=lambda items: f" and {items:,} more",
)
