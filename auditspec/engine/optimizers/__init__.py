"""The optimizers whose steps the estimators know: one rule a class, one file an optimizer or its family."""

from __future__ import annotations

import torch

from auditspec.engine.optimizers.adam import Adam, AdamW
from auditspec.engine.optimizers.interface import LinearRule, Options, UpdateRule
from auditspec.engine.optimizers.lion import Lion
from auditspec.engine.optimizers.muon import Muon
from auditspec.engine.optimizers.sgd import Sgd
from auditspec.errors import UnsupportedError
from auditspec.plugins import available

UPDATE_RULES: tuple[type[UpdateRule], ...] = (Sgd, Adam, AdamW, Lion, Muon)
_ELEMENTWISE = frozenset(
    ("ASGD", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")
)
"""Classes of torch.optim without a rule, of which no more than this is known."""


def _rules() -> dict[str, type[UpdateRule]]:
    """The rules by name, those of plug-ins too."""
    return available("update_rules", UPDATE_RULES, UpdateRule)  # type: ignore[type-abstract]


def find_rule(optimizer: str) -> UpdateRule | None:
    """The rule of an optimizer, by the name of its class as a record has it; None if there is none.

    A class of the training code (`module:Class`) is found by its own name, unless torch.optim has one of
    that name, which it need not be like.
    """
    module, _, name = optimizer.rpartition(":")
    if module and hasattr(torch.optim, name):
        return None
    kind = _rules().get(name)
    return None if kind is None else kind()


def rule_of(optimizer: str, h: Options) -> UpdateRule:
    """The rule of an optimizer, for derivatives of its steps.

    Args:
        optimizer: its class, as a record has it.
        h: hyperparameters of a group.

    Raises:
        UnsupportedError: for an optimizer without a rule, or an option that its rule does not know.
    """
    rule = find_rule(optimizer)
    if rule is None:
        *others, last = _rules()
        raise UnsupportedError(
            f"derivatives of {optimizer} are not available ({', '.join(others)}, and {last} are)",
            "use estimator.method: replay, which takes any optimizer",
        )
    if option := rule.unsupported_option(h):
        raise UnsupportedError(
            f"derivatives of {optimizer} with {option} are not available",
            "use estimator.method: replay, which takes any optimizer",
        )
    return rule


def linear_rule_of(optimizer: str, h: Options) -> LinearRule:
    """The rule of an optimizer whose update is linear under a preconditioner.

    Raises:
        UnsupportedError: as `rule_of`, and for an optimizer whose update is not.
    """
    rule = rule_of(optimizer, h)
    if not isinstance(rule, LinearRule):
        raise UnsupportedError(
            f"a step of {optimizer} is not linear in its gradients, which krylov needs",
            "use estimator.method: replay",
        )
    return rule


def is_elementwise(optimizer: str) -> bool:
    """Whether an optimizer's update of a number is known to depend on that number's own history alone."""
    rule = find_rule(optimizer)
    return optimizer in _ELEMENTWISE if rule is None else rule.elementwise
