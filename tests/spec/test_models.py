import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import minimal_spec
from pydantic import ValidationError

import auditspec
from auditspec.frozen import Frozen
from auditspec.spec.models import OPTIMIZERS, Artifact, Concern, Spec
from auditspec.spec.rules import broken_rules
from auditspec.spec.schema import document
from auditspec.spec.validation import _SHAPES

ROOT = Path(__file__).parents[2]


def test_a_spec_is_frozen_and_its_defaults_are_the_documented_ones() -> None:
    spec = Spec.model_validate(minimal_spec())
    with pytest.raises(ValidationError, match="frozen"):
        spec.audit = spec.audit  # type: ignore[misc]
    assert spec.estimator.method == "auto"
    assert spec.estimator.budget.gradients is None
    assert spec.policy.fail_on == ("severity>=high",)
    assert spec.policy.inconclusive == "fail"
    assert spec.report.formats is None
    assert spec.checks.sampling.level == 0.95
    assert spec.behaviors[0].concern.severity == "medium"
    assert spec.stages[0].optimizer.course is None
    assert spec.signing is None


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "a/../../b", "a\\b", ""])
def test_paths_that_lead_elsewhere(path: str) -> None:
    with pytest.raises(ValidationError):
        Artifact(path=path)


@pytest.mark.parametrize("path", ["src", "a/b.parquet", "src/", "..a", "a..b"])
def test_paths_that_stay_inside(path: str) -> None:
    assert Artifact(path=path).path == path


def test_rules_hold_for_a_valid_spec_in_both_of_its_forms() -> None:
    spec = Spec.model_validate(minimal_spec())
    assert not list(broken_rules(minimal_spec()))
    assert not list(broken_rules(spec.model_dump(by_alias=True)))


@pytest.mark.parametrize("data", [None, [], {}, {"artifacts": 3, "stages": [3], "behaviors": {}}])
def test_rules_skip_what_has_the_wrong_shape(data: Any) -> None:
    assert not list(broken_rules(data))


# --- the documents ------------------------------------------------------------------------------


def models(kind: Any) -> set[type[Frozen]]:
    """Every type of a spec below one annotation."""
    if isinstance(kind, type) and "home" in vars(kind):  # a metric, a statistic: whichever
        return set().union(*(models(member) for member in kind.classes().values()))
    if isinstance(kind, type) and issubclass(kind, Frozen):
        inner = [models(field.annotation) for field in kind.model_fields.values()]
        return {kind}.union(*inner)
    return set().union(*(models(argument) for argument in getattr(kind, "__args__", ())))


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs/spec.md").read_text()
    code = " ".join(re.findall(r"`([^`\n]+)`", text))
    documented = set(re.findall(r"[a-z_]+(?:-[a-z]+)*", code))
    kinds = models(Spec)
    assert len(kinds) > 25
    keys = {field.alias or name for kind in kinds for name, field in kind.model_fields.items()}
    assert "positive" in keys
    assert not keys - documented


def test_every_code_is_documented_and_every_documented_code_exists() -> None:
    sources = "".join(path.read_text() for path in Path(auditspec.__file__).parent.rglob("*.py"))
    used = set(re.findall(r'"(AS\d{3})"', sources))
    rows = re.findall(r"^\| (AS\d{3}) \|", (ROOT / "docs/spec-errors.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == used


def test_every_pattern_has_words() -> None:
    text = json.dumps([document("auditspec-1"), document("auditspec-lock-1")])
    patterns = {json.loads(f'"{found}"') for found in re.findall(r'"pattern": "([^"]+)"', text)}
    assert patterns
    assert patterns <= _SHAPES.keys()


def test_a_concern_counts_what_is_worse_as_more() -> None:
    up = Concern(direction="increase", tolerance=0.1)
    down = Concern(direction="decrease", tolerance=0.1)
    assert (up.signed(0.3), down.signed(0.3), down.signed(down.signed(0.3))) == (0.3, -0.3, 0.3)
    assert down.signed(np.array([1.0, -2.0])).tolist() == [-1.0, 2.0]


def test_the_optimizers_are_those_of_torch() -> None:
    kinds = {n: k for n, k in vars(torch.optim).items() if isinstance(k, type)}
    names = {n for n, k in kinds.items() if issubclass(k, torch.optim.Optimizer)}
    assert set(OPTIMIZERS) == names - {"Optimizer", "LBFGS"}
