"""What a library changes about a model is told apart from it, taken back, and put on again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from auditspec.integrations.model_attributes import Attributes


class Config(SimpleNamespace):
    def to_diff_dict(self) -> dict[str, Any]:
        return vars(self)


def build() -> Any:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    model.config = Config(tokens=3, inner=Config(pad=0))
    return model


def patched(model: Any) -> Any:
    """As a trainer patches: a method, a hook, dropout, a token, a mode, something new."""
    model.forward = lambda x: x
    model[0].register_forward_hook(lambda *args: None)
    model[1].p = 0.0
    model.config.tokens, model.config.inner.pad = 4, 7
    model.note = "prepared"
    return model.eval()


def facts(model: Any) -> tuple[Any, ...]:
    hooks, config = len(model[0]._forward_hooks), model.config
    return "forward" in vars(model), hooks, model[1].p, config.tokens, config.inner.pad


def test_changes_are_taken_back_and_put_on() -> None:
    model = build()
    attributes = Attributes(model)
    weight = patched(model)[0].weight
    changes = attributes.changes()
    attributes.restore()
    assert facts(model) == (False, 0, 0.1, 3, 0)
    assert not hasattr(model, "note")
    assert model.training
    assert model[0].weight is weight
    with changes.on():
        assert facts(model) == (True, 1, 0.0, 4, 7)
        assert model.note == "prepared"
        assert model.training  # a mode is the caller's
    assert facts(model) == (False, 0, 0.1, 3, 0)


def test_what_stood_there_meanwhile_comes_back() -> None:
    model = build()
    attributes = Attributes(model)
    patched(model)
    changes = attributes.changes()
    attributes.restore()
    model.forward = own = len
    with changes.on():
        assert model.forward is not own
    assert model.forward is own


def test_nothing_changed_is_no_change() -> None:
    model = build()
    attributes = Attributes(model)
    model.eval()
    assert attributes.changes() == type(attributes.changes())(())
