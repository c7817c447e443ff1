"""What checks look at: the parts of an audit that there are so far.

A check names the parts that it needs in `looks_at`, and takes them from the subject by their types::

    looks_at = (Opened,)
    ...
    trajectory = subject[Opened].trajectory
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from auditspec.beginnings import Beginnings
from auditspec.behaviors.bound import Scores
from auditspec.behaviors.evaluate import Evaluator
from auditspec.checks.windows import Windows
from auditspec.effects import Ends, StageEffects, Unread
from auditspec.engine.interface import Engine
from auditspec.estimator.interface import Baseline
from auditspec.estimator.model_outputs import Borrowed
from auditspec.intervals import Interval, Sample
from auditspec.messages import Message
from auditspec.progress import SILENT, Progress
from auditspec.results import Evidence
from auditspec.sealed.witness import Repeated
from auditspec.spec.models import Spec
from auditspec.spot_checks import Confirmed

Part = TypeVar("Part")


@dataclass(frozen=True)
class Artifacts:
    """The files that the spec names, none of them opened."""

    evidence: Sequence[Evidence]


@dataclass(frozen=True)
class Rerunnable:
    """The record with the code that trained, in the record's own precision."""

    rerun: Engine
    windows: Windows = field(default_factory=Windows)
    """Those that were re-run."""


@dataclass(frozen=True)
class Rescored:
    """What is known of the noise in one behaviour's scores."""

    behavior: str
    tolerance: float
    noise: float | None = None
    """Standard deviation of a level by what is random in scoring; None: no model was scored twice."""
    unmeasured: Message | None = None
    """Why the behaviour is not measured at all; None where it is."""
    missing: tuple[Message, ...] = ()
    """Runs of which there are no scores."""


@dataclass(frozen=True)
class Estimated:
    """The estimates of one audit, read."""

    reader: Evaluator
    """On the re-run in the precision of the estimate."""
    run: Baseline
    base: Mapping[str, Scores]
    """gamma(theta_K) per example, by behaviour."""
    confirmed: Confirmed
    diverged: Mapping[str, Unread]
    """Why a run cannot be read, by the stage that it leaves out."""
    samples: Sequence[Sample]
    intervals: Mapping[str, Interval]
    ends: Ends
    beginnings: Beginnings
    borrowed: Sequence[Borrowed]
    """Tensors of the batches that the models of earlier stages give."""
    elsewhere: Sequence[Sample] = ()
    """What stages change by scores that other tools made; the intervals are theirs too."""
    rescored: Sequence[Rescored] = ()
    """Behaviours whose scores are made elsewhere, or have chance in them."""

    @property
    def effects(self) -> Mapping[str, StageEffects]:
        """Of every stage, in order."""
        return self.confirmed.readings


@dataclass(frozen=True)
class AskedAgain:
    """What came of asking the audited code again, in a second process; None where it runs in the audit's own."""

    repeated: Repeated | None


class Subject:
    """One audit, as far as it has come: its spec, and at most one part of each type.

    Args:
        spec: what is audited.
        parts: `Artifacts`, `gather.Opened`, `data_evidence.TrainedRows`, `Rerunnable`, `Estimated`,
            `data_evidence.AuditReads`, `AskedAgain`, as far as there are any.
        progress: told of the long phases.
    """

    def __init__(self, spec: Spec, *parts: object, progress: Progress = SILENT) -> None:
        self.spec = spec
        self.progress = progress
        self._parts = {type(part): part for part in parts}

    def __contains__(self, kind: type) -> bool:
        return kind in self._parts

    def __getitem__(self, kind: type[Part]) -> Part:
        """The part of a type.

        Raises:
            KeyError: if there is none, which a check that names it in `looks_at` never sees.
        """
        part = self._parts[kind]
        assert isinstance(part, kind)  # noqa: S101
        return part

    def also(self, *parts: object) -> Subject:
        """The same audit with further parts."""
        return Subject(self.spec, *self._parts.values(), *parts, progress=self.progress)
