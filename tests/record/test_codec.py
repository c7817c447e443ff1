"""States as named tensors and back."""

from __future__ import annotations

import pytest
import torch

from auditspec.errors import EvidenceError
from auditspec.record.codec import decoded, encoded, from_bytes, to_parts
from auditspec.record.state import State

STATE = State(
    {"b.weight": torch.ones(2), "a.weight": torch.zeros(3)},
    {"b.mean": torch.ones(1)},
    {"b.weight": {"step": torch.tensor(3.0), "used": 4, "exp_avg": torch.ones(2)}},
    {"cpu": torch.zeros(4, dtype=torch.uint8)},
    {"numpy": torch.zeros(5, dtype=torch.uint8)},
)


@pytest.mark.parametrize("prefix", ["", "end of one|"])
def test_a_state_comes_back(prefix: str) -> None:
    tensors, scalars = encoded(STATE, prefix)
    assert scalars == {"b.weight/used": 4}
    assert set(tensors) == {
        f"{prefix}{name}"
        for name in (
            "param/b.weight",
            "param/a.weight",
            "buffer/b.mean",
            "optim/b.weight/step",
            "optim/b.weight/exp_avg",
            "rng/cpu",
            "generator/numpy",
        )
    }
    back = decoded(
        {**tensors, "another|param/c": torch.ones(1)} if prefix else tensors, scalars, prefix
    )
    assert list(back.parameters) == ["b.weight", "a.weight"]
    assert back.parameters["b.weight"] is STATE.parameters["b.weight"]
    assert back.buffers == STATE.buffers
    assert back.optimizer_state == STATE.optimizer_state
    assert (back.rng, back.generators) == (STATE.rng, STATE.generators)


@pytest.mark.parametrize("name", ["weights/a", "param/", "param"])
def test_a_tensor_without_a_place_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown tensor"):
        decoded({name: torch.ones(1)}, {})


FACTS = {"position": 3, "text": "ü"}


@pytest.mark.parametrize("sealed", [True, False])
def test_tensors_come_back_in_their_order_and_shared_ones_once(sealed: bool) -> None:
    shared = torch.arange(1000.0)
    tensors = {"z": shared, "a": torch.ones(2, dtype=torch.int64), "m": shared}
    data = b"".join(to_parts(tensors, FACTS, sealed=sealed))
    assert len(data) < 8 * 1000
    back, facts = from_bytes(data, sealed=sealed)
    assert list(back) == ["z", "a", "m"]
    assert back["z"] is back["m"]
    assert all(torch.equal(t, tensors[n]) for n, t in back.items())
    assert facts == FACTS


def test_sealed_bytes_that_were_changed_are_refused() -> None:
    data = b"".join(to_parts({"w": torch.zeros(3)}, FACTS, sealed=True))
    changed = data[:-1] + b"\x01"
    with pytest.raises(EvidenceError, match="not what their digest says"):
        from_bytes(changed, sealed=True)
    with pytest.raises(EvidenceError, match="not what their digest says"):
        from_bytes(b"".join(to_parts({"w": torch.zeros(3)}, FACTS)), sealed=True)
