"""The recorded signal as control variate of an arm's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from said import said
from torch import Tensor

from auditspec.engine.clipping import clip
from auditspec.estimator.interventions import Arm
from auditspec.estimator.step_signals import Signal
from auditspec.estimator.subbatch.combined import Control, clipped, unclipped, unreliable


def signal(*gradients: Tensor, **statistics: Tensor) -> Signal:
    return Signal({str(i): g for i, g in enumerate(gradients)}, statistics, {})


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_over_parts_it_is_the_arm_on_all_rows_whatever_the_coefficient(seed: int, c: float) -> None:
    torch.manual_seed(seed)
    ours, theirs = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    control = Control(c=c)
    parts = [[0, 1], [2, 3], [4, 5]]
    found = [
        control.combined(
            signal(theirs.mean(0)), signal(ours[rows].mean(0)), signal(theirs[rows].mean(0))
        ).gradients["0"]
        for rows in parts
    ]
    assert torch.allclose(torch.stack(found).mean(0), ours.mean(0), rtol=0, atol=1e-12)


def test_an_arm_like_the_recorded_run_gets_its_gradient() -> None:
    whole, part = torch.randn(4), torch.randn(4)
    control = Control()
    control.fit(signal(part), signal(part))
    assert control.c == pytest.approx(1)
    found = control.combined(signal(whole), signal(part), signal(part))
    assert torch.allclose(found.gradients["0"], whole)
    assert control.diagnostics("tune")["tune: missed"] == pytest.approx(0, abs=1e-12)


def test_the_coefficient_is_that_of_least_squares() -> None:
    torch.manual_seed(0)
    g = torch.randn(5, 2000).double()
    h = 0.4 * g + 0.1 * torch.randn(5, 2000).double()
    control = Control()
    for ours, theirs in zip(h, g, strict=True):
        control.fit(signal(ours), signal(theirs))
    assert control.c == pytest.approx(0.4, abs=0.02)
    said = control.diagnostics("tune")
    assert said["tune: missed"] == pytest.approx(0.01 / (0.16 + 0.01), rel=0.2)
    assert said["tune: size"] == pytest.approx(0.17, rel=0.1)


def test_what_has_no_counterpart_is_the_recorded_run_s() -> None:
    recorded = signal(torch.ones(2), torch.ones(3))
    found = Control().combined(recorded, signal(torch.zeros(2)), signal(torch.zeros(2)))
    assert torch.equal(found.gradients["1"], torch.ones(3))


def test_variances_stay_variances() -> None:
    running = {"norm.running_var": torch.tensor([0.1]), "norm.running_mean": torch.tensor([0.1])}
    less = {name: value - 1 for name, value in running.items()}
    found = Control().combined(
        Signal({}, running, {}), Signal({}, less, {}), Signal({}, running, {})
    )
    assert float(found.statistics["norm.running_var"]) == 0
    assert float(found.statistics["norm.running_mean"]) == pytest.approx(-0.9)


@given(st.integers(0, 10**6), st.floats(0.1, 5))
def test_clipping_is_undone_along_the_part(seed: int, limit: float) -> None:
    """Exactly where the part is the whole; on average where it is one of several."""
    torch.manual_seed(seed)
    rows = torch.randn(4, 50).double() + 1
    raw = signal(rows.mean(0))
    short = Signal(clip(raw.gradients, limit), {}, {})
    assert torch.allclose(
        unclipped(short, raw, limit).gradients["0"], raw.gradients["0"], rtol=1e-4
    )
    found = [unclipped(short, signal(row), limit).gradients["0"] for row in rows]
    if float(raw.gradients["0"].norm()) > 1.5 * limit:
        assert torch.allclose(torch.stack(found).mean(0), raw.gradients["0"], rtol=0.05)


def test_what_was_not_clipped_stays() -> None:
    raw, part = signal(torch.tensor([3.0, 4.0])), signal(torch.tensor([30.0, 40.0]))
    assert unclipped(raw, part, None) is raw
    assert unclipped(raw, part, 6.0) is raw
    assert torch.allclose(clipped(part, 5.0).gradients["0"], torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize(
    ("missed", "told"), [(0.1, True), (0.5, True), (0.51, False), (1.2, False)]
)
def test_a_twin_knows_nothing_where_rows_foretell_little(missed: float, told: bool) -> None:
    found = {"two: c": 0.9, "two: missed": 0.1, "three: missed": missed, "three: size": 2.0}
    reason = unreliable(Arm.without("one"), found)
    assert (reason is None) == told
    assert reason is None or "in three was foretold wrongly" in said(reason)
