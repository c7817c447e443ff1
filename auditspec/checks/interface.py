"""The interface of a confidence check: it feeds itself from a subject, runs once, and gives a result.

A check that cannot run says so with `skipped(reason)`; that is a result too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self, final

from auditspec.checks.subject import Subject
from auditspec.messages import Message
from auditspec.results import Bars, CheckDetail, CheckResult, Outcome, Picture
from auditspec.spec.checks import CheckOptions
from auditspec.spec.models import Spec

ABOUT = (
    "id",
    "title",
    "bars",
    "bars_when",
    "remedy",
    "statistic_name",
    "unit",
    "source",
    "discloses",
    "resampling",
    "picture",
)
"""Class attributes that stand in every result, so that whoever reads it needs to know no check."""


class Check(ABC):
    """One confidence check."""

    id: ClassVar[str]
    title: ClassVar[str]
    bars: ClassVar[Bars] = "nothing"
    bars_when: ClassVar[Literal["not-passed", "failed"]] = "not-passed"
    """Which outcomes stand in the way of what the check bars."""
    section: ClassVar[type[CheckOptions]] = CheckOptions
    """What a spec may say under `checks`, below the check's id; every option has a default."""
    remedy: ClassVar[Message | None] = None
    """What settles a verdict that the check bars."""
    statistic_name: ClassVar[str]
    unit: ClassVar[str] = ""
    source: ClassVar[str]
    """Where the statistic comes from: a publication, or the document that defines it."""
    looks_at: ClassVar[tuple[type, ...]]
    """Parts of the subject without which the check cannot run; it runs as soon as all are there."""
    discloses: ClassVar[bool] = False
    """Whether each line that does not pass is a limitation of its own."""
    resampling: ClassVar[bool] = False
    """Whether the check is about resampled examples, by which verdicts and intervals go."""
    picture: ClassVar[Picture | None] = None
    """How the report draws the check's lines."""
    halts: ClassVar[Message | None] = None
    """Why nothing further is looked at where the check does not pass; None: the audit goes on."""
    sentences: ClassVar[Mapping[str, str]] = {}
    """Templates (`report.words.template`) by code of the messages that a plug-in makes, whose codes begin with its id
    and a colon; those of built-in checks stand in the catalogue."""
    budgeted: ClassVar[bool] = False
    """Whether the check's cost was paid from the budget of the estimates, and is counted there."""

    @classmethod
    @abstractmethod
    def of(cls, subject: Subject) -> Self | CheckResult:
        """The check on a subject, ready to run; or why it is not run, by `skipped`."""

    @classmethod
    def stops(cls, result: CheckResult, spec: Spec) -> Message | None:
        """Why nothing further is looked at after a result; None where the audit goes on."""
        return None if result.outcome == "pass" else cls.halts

    @abstractmethod
    def run(self) -> CheckResult:
        """Measure, compare with the threshold, and say why."""

    @final
    def result(
        self,
        outcome: Outcome,
        reasons: Message | Iterable[Message],
        *,
        statistic: float | None = None,
        threshold: float | None = None,
        gradients: float = 0.0,
        coverage: float = 1.0,
        details: Iterable[CheckDetail] = (),
    ) -> CheckResult:
        """A result of this check, with why it came out so."""
        return CheckResult(
            **self.about(),
            outcome=outcome,
            statistic=statistic,
            threshold=threshold,
            reasons=_several(reasons),
            gradients=gradients,
            coverage=coverage,
            details=tuple(details),
        )

    @final
    @classmethod
    def skipped(
        cls, reasons: Message | Iterable[Message], *, gradients: float = 0.0
    ) -> CheckResult:
        """The result of a check that was not run, or came to nothing."""
        return CheckResult(
            **cls.about(), outcome="not-run", reasons=_several(reasons), gradients=gradients
        )

    @classmethod
    def about(cls) -> dict[str, Any]:
        """What every result of this check says of it."""
        return {name: getattr(cls, name) for name in ABOUT}


def _several(messages: Message | Iterable[Message]) -> tuple[Message, ...]:
    return (messages,) if isinstance(messages, Message) else tuple(messages)
