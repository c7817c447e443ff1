"""Which rule stands for an optimizer, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from auditspec.engine.optimizers import (
    UPDATE_RULES,
    find_rule,
    is_elementwise,
    linear_rule_of,
    rule_of,
)
from auditspec.errors import UnsupportedError


def test_a_rule_is_found_by_the_name_of_the_class() -> None:
    for rule in UPDATE_RULES:
        assert isinstance(find_rule(rule.name), rule)
    found = find_rule("train:Lion")
    assert found is not None
    assert found.name == "Lion"
    assert find_rule("train:AdamW") is None  # a class of that name need not be torch's
    assert find_rule("RMSprop") is None


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("RMSprop", {}, "derivatives of RMSprop are not available .*Muon are"),
        ("train:AdamW", {}, "derivatives of train:AdamW"),
        ("Adam", {"amsgrad": True}, "amsgrad"),
        ("AdamW", {"amsgrad": True}, "amsgrad"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as error:
        rule_of(name, options)
    assert "replay" in error.value.remedy


@pytest.mark.parametrize("name", ["Muon", "train:Lion"])
def test_a_step_that_is_not_linear_is_refused_by_name(name: str) -> None:
    assert rule_of(name, {}).name == name.rpartition(":")[2]
    with pytest.raises(UnsupportedError, match=f"{name} is not linear"):
        linear_rule_of(name, {})


def test_elementwise_classes_are_known_with_a_rule_and_without() -> None:
    assert is_elementwise("SGD")
    assert is_elementwise("RMSprop")
    assert not is_elementwise("Muon")
    assert not is_elementwise("Adafactor")
