"""What a counterfactual run does otherwise: stages left out, data or first weights replaced.

A *party* is whatever formed the model: its initial weights, a change of the model between two stages,
a stage. Parties have ids: `weights:initial`, `change:STAGE` (what changed the model before that stage),
and a stage's own id, which never holds a colon. Free of torch: results and verdicts name parties too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

INITIAL = "weights:initial"
"""The party that the initial weights are."""
_CHANGE = "change:"


def change_before(stage: str) -> str:
    """The party that the change of the model before a stage is."""
    return _CHANGE + stage


def changed_stage(party: str) -> str | None:
    """The stage before which a party changed the model; None for a party of another kind."""
    return party.removeprefix(_CHANGE) if party.startswith(_CHANGE) else None


def is_stage(party: str) -> bool:
    """Whether a party is a stage."""
    return ":" not in party


def in_words(party: str) -> str:
    """How readers are told of a party: "the initial weights", "stage 'vendor'"."""
    if party == INITIAL:
        return "the initial weights"
    before = changed_stage(party)
    return f"stage '{party}'" if before is None else f"the change of the model before '{before}'"


def listed(words: Iterable[str]) -> str:
    """The words of a list: a, b, and c."""
    *most, last = list(words)
    if not most:
        return last
    return f"{', '.join(most)}{',' if len(most) > 1 else ''} and {last}"


@dataclass(frozen=True)
class Arm:
    """A counterfactual run: the recorded one but for what is left out or replaced.

    Every stage that is not left out keeps its steps, hyperparameters, and random states; it begins
    where the one before it ended in this arm.
    """

    omitted: frozenset[str] = frozenset()
    """Ids of the stages that are not trained."""
    replaced: frozenset[str] = frozenset()
    """Parties that are given clean evidence: a stage is trained on the rows of its reference data, the
    initial weights are the reference weights."""

    @classmethod
    def without(cls, *stages: str) -> Arm:
        """The run without some stages."""
        return cls(omitted=frozenset(stages))

    @classmethod
    def each(cls, stages: Iterable[str]) -> list[Arm]:
        """The runs without one stage, for each of some stages."""
        return [cls.without(stage) for stage in stages]

    @classmethod
    def of(cls, name: Sequence[str]) -> Arm:
        """The arm of a `name`.

        Raises:
            ValueError: if it is not one.
        """
        kinds: dict[str, set[str]] = {"omit": set(), "replace": set()}
        for part in name:
            kind, _, party = part.partition(" ")
            if kind not in kinds or not party:
                raise ValueError(f"{part!r} is no intervention")
            kinds[kind].add(party)
        return cls(frozenset(kinds["omit"]), frozenset(kinds["replace"]))

    @property
    def name(self) -> tuple[str, ...]:
        """One text for each intervention, `omit STAGE` or `replace PARTY`, sorted; the recorded run: none."""
        return (
            *(f"omit {stage}" for stage in sorted(self.omitted)),
            *(f"replace {party}" for party in sorted(self.replaced)),
        )

    @property
    def words(self) -> str:
        """How readers are told of it: "without stage 'vendor'"; the recorded run: "as recorded"."""
        parts = []
        if self.omitted:
            parts.append("without " + listed(map(in_words, sorted(self.omitted))))
        for party in sorted(self.replaced):
            kind = "weights" if party == INITIAL else "data"
            parts.append(f"with reference {kind} for {in_words(party)}")
        return " and ".join(parts) or "as recorded"

    @property
    def stage(self) -> str:
        """The id of the one stage that is left out.

        Raises:
            ValueError: for an arm that does anything else.
        """
        if len(self.omitted) != 1 or self.replaced:
            raise ValueError(f"the arm {', '.join(self.name)} is not the run without one stage")
        return next(iter(self.omitted))

    @property
    def parties(self) -> frozenset[str]:
        """Everyone who is left out or replaced."""
        return self.omitted | self.replaced

    def within(self, stages: Collection[str]) -> Arm:
        """What this arm does otherwise up to the end of the first stages of the run.

        Two arms that do the same there are in the same state there.

        Args:
            stages: ids of those first stages.
        """
        parties = {*stages, INITIAL}
        return Arm(self.omitted & parties, self.replaced & parties)

    def first(self, stages: Sequence[str]) -> int:
        """Index of the first stage that this arm makes otherwise; the number of stages if there is none.

        An arm with other initial weights differs from the start.
        """
        if INITIAL in self.replaced:
            return 0
        return next((i for i, s in enumerate(stages) if s in self.parties), len(stages))


RECORDED = Arm()
"""The recorded run."""
