"""Placebos have a stage's size, and their signs are the stage's own movements'."""

from __future__ import annotations

from itertools import islice, pairwise, product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training import Recorded, StagePlan, train

from auditspec.estimator.counterfactual import norm
from auditspec.estimator.placebo import placebos

PLAN = (StagePlan("one", steps=8), StagePlan("two", steps=3, shift=1))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("run"), PLAN, every=1)


def delta(recorded: Recorded) -> dict[str, Tensor]:
    last = recorded.trajectory.stages[-1].last.parameters
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randn(p.shape, generator=generator).double() for n, p in last.items()}


def test_placebos_are_as_long_as_the_displacement(recorded: Recorded) -> None:
    wanted = delta(recorded)
    found = list(placebos(recorded.rerun(), "one", wanted, range(6), seed=0))
    assert len(found) == 6
    for number, draw in enumerate(found):
        assert draw.keys() == wanted.keys()
        assert norm(draw) == pytest.approx(norm(wanted))
        if number % 2 == 0:
            for name, tensor in draw.items():
                assert float(tensor.norm()) == pytest.approx(float(wanted[name].norm()))


def test_every_other_one_is_the_stages_movements_with_signs(recorded: Recorded) -> None:
    stage = recorded.trajectory.stages[0]
    states = [stage.state(k).parameters for k in stage.state_steps]
    moves = [torch.cat([(b[n] - a[n]).flatten() for n in sorted(a)]) for a, b in pairwise(states)]
    assert len(moves) == 8
    directions = [
        sum(s * m for s, m in zip(signs, moves, strict=True))
        for signs in product((1, -1), repeat=8)
    ]
    wanted = delta(recorded)
    for draw in islice(placebos(recorded.rerun(), "one", wanted, range(20), seed=1), 1, None, 2):
        flat = torch.cat([draw[n].flatten() for n in sorted(draw)])
        cosines = [float(torch.cosine_similarity(flat, d, dim=0)) for d in directions]
        assert max(cosines) == pytest.approx(1.0, abs=1e-12)


def test_of_few_movements_none_has_random_signs(recorded: Recorded) -> None:
    """Of two signs, one in four draws would be the stage itself."""
    wanted = delta(recorded)
    for draw in placebos(recorded.rerun(), "two", wanted, range(4), seed=0):
        for name, tensor in draw.items():
            assert float(tensor.norm()) == pytest.approx(float(wanted[name].norm()))


def test_the_seed_and_nothing_else_decides(recorded: Recorded) -> None:
    wanted = delta(recorded)
    turned = dict(reversed(wanted.items()))

    def flat(given: dict[str, Tensor], seed: int) -> list[float]:
        draws = placebos(recorded.rerun(), "one", given, range(4), seed)
        return [float(d[n].sum()) for d in draws for n in sorted(d)]

    assert flat(wanted, 3) == flat(turned, 3)
    assert flat(wanted, 3) != flat(wanted, 4)


def test_what_a_round_draws_goes_by_its_number(recorded: Recorded) -> None:
    wanted = delta(recorded)
    every = list(placebos(recorded.rerun(), "one", wanted, range(6), 3))
    for n, alone in zip((4, 5), placebos(recorded.rerun(), "one", wanted, (4, 5), 3), strict=True):
        assert all(torch.equal(alone[name], every[n][name]) for name in wanted)


def test_a_stage_before_the_model_was_changed(tmp_path: Path) -> None:
    plan = (PLAN[0], StagePlan("two", steps=3, shift=1, extend="new_head"))
    recorded = train(tmp_path, plan)
    wanted = delta(recorded)
    for draw in placebos(recorded.rerun(), "one", wanted, range(4), seed=0):
        assert {n: d.shape for n, d in draw.items()} == {n: d.shape for n, d in wanted.items()}
        assert norm(draw) == pytest.approx(norm(wanted))


def test_no_displacement_is_no_placebo(recorded: Recorded) -> None:
    nothing = {n: torch.zeros_like(d) for n, d in delta(recorded).items()}
    for draw in placebos(recorded.rerun(), "one", nothing, range(4), seed=0):
        assert norm(draw) == 0.0
