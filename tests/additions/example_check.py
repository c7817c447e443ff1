"""How many stages the audit estimated."""

from __future__ import annotations

from typing import ClassVar

from auditspec.checks.interface import Check
from auditspec.checks.subject import Estimated, Subject
from auditspec.messages import message
from auditspec.results import CheckResult


class Stages(Check):
    """Counts the stages that have an effect."""

    id = "stages-counted"
    title = "Every stage has an effect"
    statistic_name = "stages"
    unit = "stages"
    source = "the estimates"
    looks_at = (Estimated,)
    sentences: ClassVar = {"stages-counted:counted": "{stages:count stage was|stages were} counted"}

    def __init__(self, stages: int) -> None:
        self.stages = stages

    @classmethod
    def of(cls, subject: Subject) -> Stages:
        return cls(len(subject[Estimated].effects))

    def run(self) -> CheckResult:
        reason = message("stages-counted:counted", stages=self.stages)
        return self.result("pass", reason, statistic=self.stages)
