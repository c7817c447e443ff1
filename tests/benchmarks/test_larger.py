"""The larger settings' data, and the figures that are drawn from estimates on them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.larger_models import Trained, cases_of, summary
from benchmarks.settings.larger import LARGER, Larger
from benchmarks.settings.larger_tables import HELD, long_s, thorns
from benchmarks.settings.pipeline import HOLDOUT, Tables


def made_up() -> Tables:
    """Images of noise, by the names of the images' settings."""
    draw = torch.Generator().manual_seed(0)

    def rows(count: int) -> tuple[Tensor, Tensor]:
        return torch.rand(count, 1, 28, 28, generator=draw), torch.randint(10, (count,), generator=draw)  # fmt: skip

    names = ("all", "mistaken", "patched", "rest", "given")
    return {name: rows(64) for name in names} | {HOLDOUT: rows(3 * HELD)}


@pytest.fixture
def setting() -> Larger:
    return replace(LARGER["cnn-batchnorm-given"], tables=made_up, steps=3, batch=8, given=2)


def test_old_prints_have_a_long_s_inside_a_word_and_a_thorn_for_th() -> None:
    assert long_s("his sins, so vast") == "his ſins, ſo vaſt"
    assert thorns("the eighth hath the hat") == "þe eighþ haþ þe hat"


def test_a_plain_loop_leaves_out_what_replaying_the_record_leaves_out(setting, tmp_path) -> None:
    torch.set_num_threads(1)
    trained = Trained(setting, 5, tmp_path / "run")
    engine, stages = trained.engine(), trained.trajectory.stages
    for omitted in range(3):
        state = stages[omitted].first
        for index in range(omitted + 1, 4):
            state = engine.run(stages[index], engine.carry_over(index, state))
        again = trained.without(omitted)
        for name, tensor in trained.model.state_dict().items():
            known = state.parameters | state.buffers
            assert torch.equal(known[name], tensor)
        assert np.abs(trained.final() - again).max() > 0


def test_slices_divide_the_held_out_rows(setting: Larger) -> None:
    rows = [i for part in setting.slices.values() for i in range(part.start, part.stop)]
    assert rows == list(range(len(setting.tables()[HOLDOUT][0])))


def test_errors_are_relative_to_the_effects_beyond_the_tolerance(setting: Larger) -> None:
    exact = np.zeros((3, 3 * HELD))
    exact[0, :HELD], exact[1, HELD : 2 * HELD], exact[2, 2 * HELD :] = 3.0, -4.0, 0.005
    off = np.zeros_like(exact)
    off[1, HELD : 2 * HELD] = np.tile([1.0, 0.0], HELD // 2)
    off[2] = 7.0  # not beyond the tolerance on any slice
    stated = {(s, n): 0.6 for s in range(3) for n in setting.slices}
    cases = cases_of(setting, exact, exact + off, stated)
    assert [(c["stage"], c["slice"]) for c in cases] == [(0, "plain"), (1, "threes")]
    assert cases[1]["error"] == pytest.approx(0.5)
    assert cases[1]["error_rows"] == pytest.approx(math.sqrt(0.5))
    found = summary(
        cases,
        exact=[{"plain": 3.0, "threes": 0.0}, {"plain": 0.5, "threes": -4.0}],
        effects=[{"plain": 0.1, "threes": 2.0}, {"plain": 0.2, "threes": 1.0}],
        concerns={"plain": 1, "threes": -1},
    )
    assert found["slice_error"] == pytest.approx(0.5 / 5)
    assert found["slice_error_middle"] == pytest.approx(0.5 / 4)
    assert found["row_error"] == pytest.approx(math.sqrt(0.5) / 5)
    assert found["leading"] == {"plain": False, "threes": True}
