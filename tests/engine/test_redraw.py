"""Beginnings drawn again: other random numbers whatever is seeded, and nothing of them left behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from auditspec.beginnings import STARTS
from auditspec.engine.redraw import (
    could_be_drawn,
    drawing_anew,
    drawn_starts,
    identical,
    same_start,
)
from auditspec.record.state import State, capture

CPU = torch.device("cpu")
SEEDS = [1_000_003 + 97 * number for number in range(STARTS)]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 3))


def built(factory: Callable[[], nn.Module], seed: int) -> State:
    torch.manual_seed(seed)
    return capture(factory(), None)


def draws(factory: Callable[[], nn.Module]) -> list[State]:
    return list(drawn_starts(factory, SEEDS, CPU))


def seeding(factory: Callable[[], nn.Module], seed: int = 5) -> Callable[[], nn.Module]:
    """The same, seeding every generator there is first."""

    def seeded() -> nn.Module:
        torch.manual_seed(seed)
        torch.random.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        return factory()

    return seeded


def noisy() -> nn.Module:
    """Draws from numpy and from Python too."""
    model = build()
    with torch.no_grad():
        model[2].bias[0] = float(np.random.normal())  # type: ignore[index]
        model[2].bias[1] = random.gauss(0, 1)  # type: ignore[index]
    return model


def test_a_draw_is_what_the_factory_builds_from_its_seed() -> None:
    for seed, state in zip(SEEDS, draws(build), strict=True):
        expected = built(build, seed)
        for name, tensor in expected.parameters.items():
            assert torch.equal(state.parameters[name], tensor)
        assert state.buffers.keys() == expected.buffers.keys()


@pytest.mark.parametrize("factory", [build, noisy], ids=["torch", "all generators"])
def test_a_factory_that_seeds_itself_draws_other_numbers_all_the_same(
    factory: Callable[[], nn.Module],
) -> None:
    ours, theirs = draws(seeding(factory)), draws(factory)
    assert not identical(ours)
    for left, right in zip(ours, theirs, strict=True):
        assert same_start(left, right.parameters | right.buffers) == ""
    for index in (0, 1):
        assert len({float(s.parameters["2.bias"][index]) for s in ours}) == len(SEEDS)


def test_seeding_works_again_afterwards_and_generators_are_put_back() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = float(torch.rand(())), float(np.random.random()), random.random()
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    draws(seeding(noisy))
    with pytest.raises(KeyError), drawing_anew(1, CPU):
        raise KeyError
    assert (float(torch.rand(())), float(np.random.random()), random.random()) == expected
    torch.manual_seed(3)
    assert float(torch.rand(())) == expected[0]


def test_drawing_anew_follows_its_seed() -> None:
    found = []
    for seed in (1, 1, 2):
        with drawing_anew(seed, CPU):
            found.append((float(torch.rand(())), float(np.random.random()), random.random()))
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_a_factory_that_loads_a_file_draws_nothing(tmp_path: Path) -> None:
    torch.save(build().state_dict(), tmp_path / "weights.pt")

    def loading() -> nn.Module:
        model = build()
        model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        return model

    assert identical(draws(loading))
    assert not identical(draws(build))


# --- what could be a draw -------------------------------------------------------------------------


def many() -> nn.Module:
    """Many small tensors, each of which is another chance to be unlike the others."""
    return nn.ModuleList(nn.Linear(7, 7) for _ in range(100))


@pytest.mark.parametrize("factory", [build, many], ids=["few tensors", "many"])
def test_draws_are_like_draws(factory: Callable[[], nn.Module]) -> None:
    held = draws(factory)
    assert [could_be_drawn(built(factory, seed), held) for seed in range(20)] == [""] * 20


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("0.weight", lambda t: t * 10),
        ("0.weight", lambda t: t + 5),
        ("2.bias", lambda t: torch.cat([t[:2], t[2:] + 10])),
        ("1.weight", lambda t: t + 1e-3),  # always one in a draw
        ("1.running_mean", lambda t: t + 1e-3),  # always zero
        ("0.weight", torch.zeros_like),
        ("2.weight", lambda t: t[:, :4].clone()),
    ],
)
def test_planted_numbers_are_not(name: str, plant: Callable[[torch.Tensor], torch.Tensor]) -> None:
    state = built(build, 100)
    held = state.parameters if name in state.parameters else state.buffers
    held[name] = plant(held[name])
    assert could_be_drawn(state, draws(build)) == name


def test_another_architecture_is_not() -> None:
    other = capture(nn.Sequential(*build(), nn.Linear(3, 3)), None)
    assert could_be_drawn(other, draws(build)) == "3.weight"


def test_the_same_start_is_bitwise_the_same() -> None:
    state = built(build, 1)
    given = {n: t.clone() for n, t in (state.parameters | state.buffers).items()}
    assert same_start(state, given) == ""
    for name in given:
        held = given[name]
        moved = held + 1 if not held.is_floating_point() else held + 1e-6
        assert same_start(state, given | {name: moved}) == name
        assert same_start(state, {n: t for n, t in given.items() if n != name}) == name
        assert same_start(state, given | {name: held[..., None]}) == name
