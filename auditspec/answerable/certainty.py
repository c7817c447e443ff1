"""How sure the rule's answer is: the whole rule again on every resample of the evaluation examples.

No verdict hangs on which of the rule's tests was near its threshold: what counts is where the rule
ends, again and again (bootstrap of the decision: Efron & Tibshirani 1993; docs/verdicts.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from auditspec.answerable.courses import Case
from auditspec.answerable.rule import MissingArmError, Outcome, decide
from auditspec.estimator.interventions import Arm

Tallies = Mapping[tuple[frozenset[str], str], int]
"""How many resamples ended how: who was named, and by which ending of the rule."""
FEWEST = 10
"""Examples below which resamples of them are not to be relied on."""
Kind = Literal["nobody", "one", "several", "one-or-more", "open"]


@dataclass(frozen=True)
class Answer:
    """What can be said with the certainty asked for."""

    kind: Kind
    parties: frozenset[str] = frozenset()
    """Those who are named."""
    undetermined: frozenset[str] = frozenset()
    """Those who were named in some resamples, too few or too many to be left out or in."""
    share: float = 0.0
    """Of the resamples that bear it out."""
    unexplained: float = 0.0
    """Share of the resamples in which nobody was found."""


@dataclass(frozen=True)
class Tallied:
    """The rule on the evaluation examples and on their resamples."""

    outcome: Outcome
    """On the examples themselves."""
    tallies: Tallies
    """Resamples for which a run was not made are not among them."""
    resamples: int
    wanted: Mapping[Arm, int]
    """Runs that were not made, with the number of resamples that asked for them."""


def tally(case: Case) -> Tallied:
    """Apply the rule to the evaluation examples and to every resample.

    Raises:
        MissingArmError: if the rule needs a run for the examples themselves that has not been made.
    """
    outcome = decide(case)
    ended: Counter[tuple[frozenset[str], str]] = Counter()
    wanted: Counter[Arm] = Counter()
    for sample in range(1, case.samples):
        try:
            found = decide(case, sample)
        except MissingArmError as missing:
            wanted[missing.arm] += 1
        else:
            ended[found.parties, found.ending] += 1
    return Tallied(outcome, dict(ended), case.samples - 1, dict(wanted))


def answer(outcome: Outcome, tallies: Tallies, resamples: int, level: float) -> Answer:
    """What may be said.

    Nobody, where the rule names nobody on the examples and in the share `level` of the resamples;
    parties, where it names somebody and never ends unexplained in that share: exactly these, where it
    names exactly them in that share; those of them whom it always names; or one or more of them.

    Args:
        outcome: the rule on the examples themselves.
        tallies: the rule on their resamples.
        resamples: how many there were; one that is not in the tallies speaks for nothing.
        level: the share that must agree.
    """

    def share(holds: Callable[[frozenset[str], str], bool]) -> float:
        return sum(count for key, count in tallies.items() if holds(*key)) / resamples

    named = outcome.parties
    unexplained = share(lambda _, ending: ending == "unexplained")
    ever = frozenset[str]().union(*(parties for parties, _ in tallies), named)
    if outcome.ending == "within":
        within = share(lambda _, ending: ending == "within")
        kind: Kind = "nobody" if within >= level else "open"
        return Answer(kind, share=within, undetermined=ever, unexplained=unexplained)
    somebody = share(lambda parties, _: bool(parties))
    if not named or somebody < level:
        return Answer("open", undetermined=ever, share=somebody, unexplained=unexplained)
    exactly = share(lambda parties, _: parties == named)
    if exactly >= level:
        kind = "one" if len(named) == 1 else "several"
        return Answer(kind, named, share=exactly, unexplained=unexplained)
    by_party = {
        party: sum(n for (parties, _), n in tallies.items() if party in parties) / resamples
        for party in named
    }
    always = frozenset(party for party, held in by_party.items() if held >= level)
    if always:
        held = share(lambda parties, _: always <= parties)
        kind = "one" if len(always) == 1 else "several"
        return Answer(kind, always, ever - always, held, unexplained)
    among = share(lambda parties, _: bool(parties & named))
    if len(named) > 1 and among >= level:
        return Answer("one-or-more", named, ever - named, among, unexplained)
    return Answer("open", undetermined=ever, share=exactly, unexplained=unexplained)
