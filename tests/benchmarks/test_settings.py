from pathlib import Path

import numpy as np
import pytest
import torch

from auditspec.estimator.counterfactual import difference
from auditspec.record.state import State, deviation
from benchmarks.estimators import ESTIMATORS, Job, exact_replay
from benchmarks.metrics import relative_error
from benchmarks.readings import Evaluator
from benchmarks.settings import SETTINGS, Run
from benchmarks.settings.digits import tables
from benchmarks.settings.verses import ALPHABET, CONTEXT, build_gpt, long_s, windows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    return SETTINGS["digits-adamw-cnn"].shortened(6).make(3, folder)


@pytest.fixture(scope="module")
def job(run: Run) -> Job:
    rerun, reader = run.rerun(), Evaluator(run)
    exact = exact_replay(run, rerun, reader)
    return Job(run, rerun, reader, exact.gradients)


def test_every_setting_has_five_stages_and_its_fault_in_a_middle_one() -> None:
    for setting in SETTINGS.values():
        ids = [stage.id for stage in setting.stages]
        assert len(ids) >= 5
        assert setting.fault in ids[1:-1]
        assert all(stage.steps > setting.warmup for stage in setting.stages)


@pytest.mark.parametrize("name", [n for n in SETTINGS if n.startswith("digits")])
def test_rates_rise_for_the_warm_up_and_fall_by_a_cosine(name: str) -> None:
    setting = SETTINGS[name]
    for stage in setting.stages:
        rates = [setting.rate(stage, step) for step in range(stage.steps)]
        assert max(rates) == rates[max(setting.warmup - 1, 0)] == stage.lr
        middle = setting.warmup + (stage.steps - setting.warmup) / 2
        assert setting.rate(stage, middle) == pytest.approx(stage.lr / 2)
        assert 0 < rates[-1] < 0.02 * stage.lr


def test_the_fault_of_digits_relabels_every_three_and_nothing_else() -> None:
    (x, y), (poisoned_x, poisoned_y) = tables()["all"], tables()["relabelled"]
    assert torch.equal(x, poisoned_x)
    assert torch.equal(y != poisoned_y, y == 3)
    assert set(poisoned_y[y == 3].tolist()) == {8}


def test_a_recorded_run_is_dense_and_lands_where_it_says(run: Run) -> None:
    assert run.trajectory.grade == "dense"
    assert all(stage.header.boundary == "reset" for stage in run.trajectory.stages)
    assert run.stages == tuple(stage.id for stage in run.trajectory.stages)
    third = run.trajectory.stages[2]
    assert deviation(run.rerun().run(third, third.first), third.last) == 0


def test_a_whole_record_is_used_again_and_one_of_another_pipeline_is_not(tmp_path: Path) -> None:
    setting = SETTINGS["digits-sgd-gentle"].shortened(3)
    first = setting.make(0, tmp_path)
    written = (tmp_path / "record" / "record.json").read_bytes()
    setting.make(0, tmp_path)
    assert (tmp_path / "record" / "record.json").read_bytes() == written
    longer = SETTINGS["digits-sgd-gentle"].shortened(4).make(0, tmp_path)
    assert [s.header.steps for s in longer.trajectory.stages] == [4] * 5
    assert [s.header.steps for s in first.trajectory.stages] == [3] * 5


def test_the_linear_reading_is_the_slope_of_the_plug_in_reading(job: Job) -> None:
    deltas = {
        s.id: difference(s.first.parameters, s.last.parameters)
        for s in job.run.trajectory.stages[:-1]
    }
    small = 1e-2
    states = {
        stage: State({n: p + small * delta[n] for n, p in job.final.parameters.items()}, {})
        for stage, delta in deltas.items()
    }
    slope, step = job.reader.linear(deltas), job.reader.plug_in(states)
    for linear, plug_in in zip(
        [slope.examples, *slope.behaviours], [step.examples, *step.behaviours], strict=True
    ):
        assert relative_error(plug_in / small, linear) < 0.05


def test_gradient_dot_products_add_up_the_change_of_gentle_training(tmp_path: Path) -> None:
    setting = SETTINGS["digits-sgd-gentle"]
    plain = {"momentum": 0.0, "weight_decay": 0.0}
    gentle = setting.__class__(**(vars(setting) | {"options": plain})).shortened(5)
    run = gentle.make(0, tmp_path)
    rerun, reader = run.rerun(), Evaluator(run)
    found = ESTIMATORS["gradient-dot-products"](Job(run, rerun, reader, 1))
    states = {s.id: s for s in run.trajectory.stages[:-1]}
    change = np.stack(
        [
            (reader.run.evaluation.behaviours[0].scores(b, run.evaluation.y)
             - reader.run.evaluation.behaviours[0].scores(a, run.evaluation.y)).numpy()
            for a, b in ((reader.read(s.first), reader.read(s.last)) for s in states.values())
        ]
    )  # fmt: skip
    concern = run.evaluation.behaviours[0].concern
    assert relative_error(found.effects.behaviours[0], concern * change) < 0.02


def test_predicting_nothing_scores_one_and_costs_nothing(job: Job) -> None:
    exact = exact_replay(job.run, job.rerun, job.reader)
    found = ESTIMATORS["zero"](job)
    assert relative_error(found.effects.examples, exact.effects.examples) == 1
    assert found.gradients == 0
    assert exact.gradients == 6 * (4 + 3 + 2 + 1)


def test_a_scan_reads_every_s_but_a_last_one_as_f() -> None:
    assert long_s("as it is said, sins") == "as it is faid, fins"
    x, y = windows("in the beginning god created the heaven and the earth", stride=1)
    assert x.shape == y.shape == (21, CONTEXT)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert "".join(ALPHABET[c] for c in x[0]) == "in the beginning god created the"


def test_the_language_model_looks_only_backwards() -> None:
    torch.manual_seed(0)
    model = build_gpt()
    x = torch.randint(len(ALPHABET), (2, CONTEXT))
    other = x.clone()
    other[:, -1] = (other[:, -1] + 1) % len(ALPHABET)
    with torch.no_grad():
        assert torch.allclose(model(x)[:, :-1], model(other)[:, :-1])
    assert model.head.weight is model.embed.weight
