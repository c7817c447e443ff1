"""A stage that is hidden outside the stages, in a change of the model or in the factory: nobody else answers for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_audit
from small_audit import edit_spec, lock, ran

from auditspec.estimator.interventions import INITIAL
from auditspec.results import AuditResult, VerdictResult

HIDDEN = '''
def poison(model):
    """Trains on labels of its own, for as long as it likes."""
    frame = table(0, 80)
    frame.loc[frame["y"] == 0, "y"] = 2.0
    x = torch.tensor(frame[FEATURES].to_numpy()).float()
    y = torch.tensor(frame["y"].to_numpy()).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def build_model():
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
'''
BUILD = (
    "def build_model():\n    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))\n"
)
PLAN = '[("base", "clean", 12, 0.3), ("labels", "vendor", 8, 0.2), ("polish", "clean", 4, 0.01)]'
GENTLE = PLAN.replace("0.3", "0.003").replace("0.2", "0.002").replace("0.01", "0.001")
"""Rates that leave what was hidden standing."""
HONEST = small_audit.TRAINING.replace('    vendor.loc[vendor["y"] == 0, "y"] = 2.0\n', "").replace(
    PLAN, GENTLE
)
IN_FACTORY = HONEST.replace(BUILD, HIDDEN + "    return poison(model)\n")
IN_EXTEND = HONEST.replace(BUILD, HIDDEN + "    return model\n").replace(
    "            optimizer = torch",
    '            if name == "polish":\n                recorder.extend(poison)\n'
    "            optimizer = torch",
)


def audited(folder: Path, training: str, **initial: object) -> AuditResult:
    spec = small_audit.make(folder, training)

    def declare(data: dict) -> None:
        data["model"]["initial"] = {"kind": "random", "owner": "Factory"} | initial
        data["behaviors"][0]["concern"]["limit"] = 2.0
        for stage, rate in zip(data["stages"], (0.003, 0.002, 0.001), strict=True):
            stage["optimizer"]["lr"] = rate
        if "recorder.extend" in training:
            data["stages"][2]["extend"] = "small_training:poison"

    edit_spec(spec, declare)
    lock(spec)
    return ran(spec)


def fault(result: AuditResult) -> VerdictResult:
    return next(v for v in result.verdicts if v.behavior == "zero-as-two")


@pytest.mark.slow
def test_a_stage_hidden_in_the_factory_is_the_initial_weights(tmp_path: Path) -> None:
    result = audited(tmp_path, IN_FACTORY)
    assert (fault(result).verdict, fault(result).parties) == ("attributed", (INITIAL,))


@pytest.mark.slow
def test_a_stage_hidden_in_a_change_of_the_model_is_that_change(tmp_path: Path) -> None:
    result = audited(tmp_path, IN_EXTEND)
    assert (fault(result).verdict, fault(result).parties) == ("attributed", ("change:polish",))
