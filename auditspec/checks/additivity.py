"""additivity: do the stages' effects add up to what training did as a whole?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.messages import message
from auditspec.results import CheckDetail, CheckResult, Outcome
from auditspec.spec.checks import Additivity as Options


@dataclass(frozen=True)
class Account:
    """A behaviour's whole change beside the effects of its stages, in the metric's unit."""

    behavior: str
    total: float | None
    """gamma(theta_K) - gamma(theta_0); None where theta_0 cannot be read with the deployed model."""
    effects: tuple[float, ...]
    """Of leaving out each stage, in order."""
    tolerance: float

    @property
    def interaction(self) -> float | None:
        """|sum of effects - total| / |total|; a total below the tolerance is held against that."""
        if self.total is None:
            return None
        off = abs(sum(self.effects) - self.total)
        size = max(abs(self.total), self.tolerance)
        return off / size if size else (0.0 if not off else None)


class Additivity(Check):
    """Largest interaction share: what the sum of the effects lies off the total change.

    Leave-one-out effects need not add: a later stage may overwrite an earlier one, or build on it.
    So this describes; it decides nothing.
    """

    id = "additivity"
    title = "The stages' effects add up to the total change"
    statistic_name = "largest interaction share, |sum of effects - total| / |total|"
    source = "leave-one-out effects against the telescoped total (docs/method.md, Estimand)"
    section = Options
    looks_at = (Estimated,)

    def __init__(self, accounts: Sequence[Account], options: Options) -> None:
        self.accounts = accounts
        self.options = options

    @classmethod
    def of(cls, subject: Subject) -> Additivity | CheckResult:
        """On every behaviour's effects, and its change from the first state to the last."""
        estimated, accounts = subject[Estimated], []
        if not estimated.reader.slices:
            return cls.skipped(message("no-behavior-read"))
        first = estimated.ends[next(iter(estimated.effects))]
        for behavior in subject.spec.behaviors:
            name = behavior.id
            level = estimated.reader.slices[name].statistic.level
            effects = tuple(e.effect(name) for e in estimated.effects.values())
            total = level(estimated.base[name]) - level(first[0][name]) if first else None
            accounts.append(Account(name, total, effects, behavior.concern.tolerance))
        return cls(accounts, subject.spec.checks.of(cls.id, Options))

    def run(self) -> CheckResult:
        """Fail where stages act together too much for their effects to be read as shares."""
        details = [self._line(account) for account in self.accounts]
        shares = [d.statistic for d in details if d.statistic is not None]
        over = [d.subject for d in details if d.outcome == "fail"]
        unread = [d.subject for d in details if d.outcome == "inconclusive"]
        if over:
            reason = message("effects-do-not-add-up", behaviors=over)
        elif unread:
            reason = message("total-not-known", behaviors=unread)
        else:
            reason = message("effects-add-up", share=max(shares, default=0.0))
        outcome: Outcome = "fail" if over else "inconclusive" if unread else "pass"
        return self.result(
            outcome,
            reason,
            statistic=max(shares, default=None),
            threshold=self.options.threshold,
            details=details,
        )

    def _line(self, account: Account) -> CheckDetail:
        share, total = account.interaction, sum(account.effects)
        outcome: Outcome = (
            "inconclusive"
            if share is None
            else "pass"
            if share <= self.options.threshold
            else "fail"
        )
        note = message("sum-without-total", sum=total)
        if account.total is not None:
            note = message("sum-and-total", sum=total, total=account.total)
        return CheckDetail(
            subject=account.behavior,
            behavior=account.behavior,
            outcome=outcome,
            statistic=share,
            estimate=total,
            reference=account.total,
            notes=(note,),
        )
