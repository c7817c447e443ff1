"""Running checks: each as soon as the audit has come to what it looks at, all in one order of report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from auditspec import plugins
from auditspec.attempt import NotRun, attempt
from auditspec.checks import CHECKS
from auditspec.checks.interface import Check
from auditspec.checks.subject import Subject
from auditspec.errors import PluginError
from auditspec.messages import Message, message
from auditspec.results import CheckResult


def available() -> Mapping[str, type[Check]]:
    """Every check by its id, built in or plugged in, in the order of the report.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    return plugins.available("checks", CHECKS, Check, key="id")  # type: ignore[type-abstract]


class Examination:
    """The checks of one audit, which grows part by part.

    Args:
        subject: the audit, as far as it has come.
        checks: in the order of the report; by default all that are available.
    """

    def __init__(self, subject: Subject, checks: Iterable[type[Check]] | None = None) -> None:
        self.subject = subject
        self.checks = tuple(available().values() if checks is None else checks)
        self.halted: Message | None = None
        """Why nothing further is to be looked at; None where the audit may go on."""
        self._results: dict[str, CheckResult] = {}

    def add(self, *parts: object) -> None:
        """Add parts to the subject, and run every check that now has what it looks at.

        It stops at the first check that halts the audit.

        Raises:
            PluginError: if a check gives something else than a result of its own.
            AuditspecError: whatever keeps a check that bars every verdict from running.
        """
        self.subject = self.subject.also(*parts)
        for check in self.checks:
            ready = all(kind in self.subject for kind in check.looks_at)
            if self.halted or check.id in self._results or not ready:
                continue
            self.again(check)

    def again(self, check: type[Check]) -> None:
        """Run a check on the subject as it is now; its result takes the place of an earlier one.

        Raises:
            PluginError: as `add`.
            AuditspecError: as `add`.
        """
        result = run_check(check, self.subject)
        self._results[check.id] = result
        self.halted = check.stops(result, self.subject.spec)

    def __getitem__(self, check: type[Check]) -> CheckResult:
        """The result of a check that was run."""
        return self._results[check.id]

    def amend(self, result: CheckResult) -> None:
        """Put another result in the place of a check's own."""
        self._results[result.id] = result

    @property
    def gradients(self) -> float:
        """What the checks cost together that is counted nowhere else, in minibatch gradients."""
        paid = {check.id for check in self.checks if check.budgeted}
        return sum(r.gradients for r in self._results.values() if r.id not in paid)

    def results(self, why: Message) -> tuple[CheckResult, ...]:
        """Of all checks, in order; those that did not come to run say why."""
        return tuple(self._results.get(c.id) or c.skipped(why) for c in self.checks)


def run_check(check: type[Check], subject: Subject) -> CheckResult:
    """Run one check on a subject that has what it looks at.

    One that fails says so in its result, and takes no other down with it; if it bars every verdict,
    nothing can be said without it, and the failure is that of the audit.

    Raises:
        PluginError: if it gives something else than a result of its own.
        EvidenceError: if the evidence turns out to be damaged.
    """
    if check.bars == "all":
        ready: object = check.of(subject)
        return _own(check, ready.run() if isinstance(ready, Check) else ready)
    ready = attempt(lambda: check.of(subject))
    if isinstance(ready, Check):
        ready = attempt(ready.run)
    if isinstance(ready, NotRun):
        return check.skipped(message("failed", error=ready.reason))
    return _own(check, ready)


def _own(check: type[Check], result: object) -> CheckResult:
    """What a check gave, if that is a result of this check.

    Raises:
        PluginError: if it is anything else.
    """
    if isinstance(result, CheckResult) and result.id == check.id:
        return result
    given = result.id if isinstance(result, CheckResult) else type(result).__name__
    raise PluginError(
        f"the check '{check.id}' ({check.__module__}.{check.__qualname__}) gave {given!r}, not a result of its own",
        "build results with Check.result or Check.skipped",
    )
