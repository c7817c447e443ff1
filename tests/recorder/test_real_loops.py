"""What loops do beside loss, backward, step: each is recorded so that the re-run lands bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import cross_entropy, table

from auditspec import Dataset, Recorder
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.errors import RecordError
from auditspec.record.format import Autocast
from auditspec.record.generators import go_to
from auditspec.record.trajectory import Trajectory
from auditspec.recorder.torch_hooks import TorchHooks

STEPS = 6


def build() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3))
    return model.append(nn.Linear(8, 3))


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


def load(dataset: Dataset, ids: Any) -> dict[str, Tensor]:
    frame = dataset.frame.iloc[list(ids)]
    x = torch.tensor(frame[["x0", "x1", "x2", "x3"]].to_numpy(np.float32))
    return {"x": x, "y": torch.tensor(frame["y"].to_numpy())}


def load_noisy(dataset: Dataset, ids: Any) -> dict[str, Tensor]:
    batch = load(dataset, ids)
    noise = np.random.standard_normal(batch["x"].shape).astype(np.float32)
    return batch | {"x": batch["x"] + torch.from_numpy(noise) * random.random()}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    table().to_parquet(tmp_path / "data.parquet")
    return Dataset.open(tmp_path / "data.parquet")


Loop = Callable[[TorchHooks, nn.Module, torch.optim.Optimizer, Dataset], None]


def recorded(tmp_path: Path, data: Dataset, loop: Loop, **options: Any) -> Trajectory:
    """Record a loop; see that every window re-runs to the last digit, buffers included."""
    made: Callable[[], nn.Module] = options.pop("factory", build)
    loading = options.pop("load_batch", load)
    kind = options.pop("kind", partial(torch.optim.AdamW, lr=0.05))
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = made()
    optimizer = kind(model.parameters())
    options = {"steps": STEPS, "dataset": data} | options
    objective = options.pop("objective", loss_of)
    with (
        Recorder(tmp_path / "record", model, every=2, factory=made, load_batch=loading) as recorder,
        recorder.stage("only", optimizer, objective, **options) as run,
    ):
        loop(run, model, optimizer, data)
    trajectory = Trajectory.open(tmp_path / "record")
    functions = Functions(
        made, loading, {"only": objective}, lambda m, b: m(b["x"]), {f"{__name__}:Own": Own}
    )
    engine = Rerun(trajectory, functions, {"data": data})
    for stage, start, stop in trajectory.windows():
        reached, wanted = engine.run(stage, stage.state(start), start, stop), stage.state(stop)
        for ours, theirs in (
            (reached.parameters, wanted.parameters),
            (reached.buffers, wanted.buffers),
        ):
            assert ours.keys() == theirs.keys()
            odd = [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)]
            assert not odd, (start, stop, odd)
    return trajectory


def ids_of(step: int, part: int = 0) -> list[int]:
    return [(7 * step + 3 * part + i) % 40 for i in range(8)]


def divided_by_hand(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    for step in run.steps:
        optimizer.zero_grad()
        for part in range(3):
            (run.loss(ids_of(step, part)) / 3).backward()
        optimizer.step()


def test_the_factor_of_a_loss_is_read_off_its_gradient(tmp_path: Path, data: Dataset) -> None:
    steps = recorded(tmp_path, data, divided_by_hand).stages[0].steps
    weights = {batch.weight for step in steps for batch in step.batches}
    assert weights == {float(torch.tensor(1.0) / 3)}


def never_differentiated(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    for step in run.steps:
        optimizer.zero_grad()
        run.loss(ids_of(step, 1))  # looked at, no more; BatchNorm and dropout take part
        run.loss(ids_of(step)).backward()
        optimizer.step()


def test_a_loss_that_is_never_differentiated_has_no_weight(tmp_path: Path, data: Dataset) -> None:
    steps = recorded(tmp_path, data, never_differentiated).stages[0].steps
    assert [batch.weight for batch in steps[0].batches] == [0.0, 1.0]


def by_closure(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    for step in run.steps:

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = run.loss(ids_of(step))
            loss.backward()
            return loss

        value = optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
        assert isinstance(value, Tensor)  # the loop has its loss


def test_a_closure_is_run_before_the_step(tmp_path: Path, data: Dataset) -> None:
    assert len(recorded(tmp_path, data, by_closure).stages[0].steps) == STEPS


class Own(torch.optim.SGD):
    """Of the training code; runs its closure as it says."""

    runs = "once"

    def step(self, closure: Any = None) -> Any:
        if self.runs == "late":
            next(iter(self.param_groups[0]["params"])).data.add_(1.0)
        value = None
        for _ in range({"twice": 2, "never": 0}.get(self.runs, 1) if closure else 0):
            value = closure()
        super().step()
        return value


def test_a_closure_of_an_optimizer_of_the_training_code(tmp_path: Path, data: Dataset) -> None:
    kind = partial(Own, lr=0.1)
    assert len(recorded(tmp_path, data, by_closure, kind=kind).stages[0].steps) == STEPS


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ("twice", "Own runs its closure more than once"),
        ("late", "Own changes weights or gradients before it runs its closure"),
        ("never", "Own does not run its closure"),
    ],
)
def test_a_closure_that_is_not_run_once_and_first_is_refused(
    tmp_path: Path, data: Dataset, runs: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Own, "runs", runs)
    with pytest.raises(RecordError, match=said):
        recorded(tmp_path, data, by_closure, kind=partial(Own, lr=0.1))


def scaled(
    run: Any, model: nn.Module, optimizer: Any, data: Dataset, *, overflow: tuple[int, ...] = ()
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = run.loss(ids_of(step))
        scaler.scale(loss).backward()
        if step in overflow:
            next(model.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_is_recorded_with_its_scale(
    tmp_path: Path, data: Dataset, fused: bool
) -> None:
    kind = partial(torch.optim.AdamW, lr=0.05, fused=fused)
    stage = recorded(tmp_path, data, scaled, kind=kind).stages[0]
    assert [step.batches[0].scale for step in stage.steps] == [
        2.0 ** (10 + k // 2) for k in range(6)
    ]
    assert all(step.batches[0].weight == 1 for step in stage.steps)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_leave_their_passes_to_the_next(
    tmp_path: Path, data: Dataset, fused: bool
) -> None:
    kind = partial(torch.optim.AdamW, lr=0.05, fused=fused)
    loop = partial(scaled, overflow=(0, 2, 3))
    stage = recorded(tmp_path, data, loop, kind=kind).stages[0]
    assert (stage.header.steps, stage.header.skipped) == (3, 3)
    weights = [[batch.weight for batch in step.batches] for step in stage.steps]
    assert weights == [[0.0, 1.0], [0.0, 0.0, 1.0], [1.0]]


def test_a_stage_that_ends_with_a_skipped_step(tmp_path: Path, data: Dataset) -> None:
    with pytest.raises(RecordError, match=r"last step was skipped after its passes changed 1\."):
        recorded(tmp_path, data, partial(scaled, overflow=(5,)))
    with pytest.raises(RecordError, match="every step was skipped"):
        recorded(tmp_path / "none", data, partial(scaled, overflow=tuple(range(6))))


def low_precision(
    run: Any, model: nn.Module, optimizer: Any, data: Dataset, *, cache: bool = True
) -> None:
    for step in run.steps:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            loss = run.loss(ids_of(step))
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("cache", [True, False])
def test_autocast_is_recorded_with_its_cache(tmp_path: Path, data: Dataset, cache: bool) -> None:
    header = recorded(tmp_path, data, partial(low_precision, cache=cache)).stages[0].header
    assert header.autocast == Autocast(dtype="bfloat16", cache=cache)


def patched(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    """As accelerate patches a model's forward."""
    forward = model.forward

    def low(*args: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(*args).float()

    model.forward = low
    try:
        for step in run.steps:
            optimizer.zero_grad()
            run.loss(ids_of(step)).backward()
            optimizer.step()
    finally:
        del model.forward


def test_autocast_inside_the_forward_is_recorded_as_such(tmp_path: Path, data: Dataset) -> None:
    header = recorded(tmp_path, data, patched).stages[0].header
    assert header.autocast == Autocast(dtype="bfloat16", around="forward")


def own_batches(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    for step in run.steps:
        ids = ids_of(step)
        batch = load(data, ids) | {"note": ["a", None], "n": 8}
        run.batch(ids, tensors=batch)
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        run.watch(loss)
        loss.backward()
        optimizer.step()


def test_a_batch_is_recorded_as_it_is_with_the_rows_it_was_made_of(
    tmp_path: Path, data: Dataset
) -> None:
    (batch,) = recorded(tmp_path, data, own_batches).stages[0].steps[1].batches
    assert (batch.dataset, batch.ids, batch.examples) == ("data", tuple(ids_of(1)), 8)
    assert batch.batch.keys() == {"x", "y", "note", "n"}
    assert (batch.batch["note"], batch.batch["n"]) == (["a", None], 8)
    assert torch.equal(batch.batch["x"], load(data, ids_of(1))["x"])


def plainly(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    for step in run.steps:
        optimizer.zero_grad()
        run.loss(ids_of(step)).backward()
        optimizer.step()


def test_what_a_pass_draws_from_numpy_and_random_is_drawn_again(
    tmp_path: Path, data: Dataset
) -> None:
    stage = recorded(tmp_path, data, plainly, load_batch=load_noisy).stages[0]
    (batch,) = stage.steps[0].batches
    assert set(batch.rng) == {"cpu", "numpy", "python"}
    go_to(batch.rng, torch.device("cpu"))
    assert torch.equal(load_noisy(data, ids_of(0))["x"], _noisy(data, batch.rng))


def _noisy(data: Dataset, rng: dict[str, bytes]) -> Tensor:
    go_to(rng, torch.device("cpu"))
    return load_noisy(data, ids_of(0))["x"]


def data_parallel(run: Any, model: nn.Module, optimizer: Any, data: Dataset) -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for step in run.steps:
            optimizer.zero_grad()
            run.batch(ids_of(step))
            loss_of(wrapped, load(data, ids_of(step))).backward()
            optimizer.step()
    finally:
        torch.distributed.destroy_process_group()


def test_a_wrapper_for_data_parallel_training_of_one_process_changes_nothing(
    tmp_path: Path, data: Dataset
) -> None:
    assert len(recorded(tmp_path, data, data_parallel).stages[0].steps) == STEPS


class Wrapper(torch.optim.Optimizer):
    """As accelerate and Lightning wrap an optimizer."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer = inner

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


def test_a_wrapper_around_the_optimizer_is_taken_off(tmp_path: Path, data: Dataset) -> None:
    def kind(parameters: Iterator[nn.Parameter]) -> Wrapper:
        return Wrapper(torch.optim.Adam(parameters, lr=0.05))

    assert recorded(tmp_path, data, plainly, kind=kind).stages[0].header.optimizer == "Adam"


def build_compiled() -> nn.Module:
    model = build()
    model.compile(backend="eager")
    return model


def test_a_model_is_compiled_by_its_factory_or_not_at_all(tmp_path: Path, data: Dataset) -> None:
    recorded(tmp_path / "in", data, plainly, factory=build_compiled)
    compiled = build_compiled()
    with pytest.raises(
        RecordError, match=r"compiled, but not by .*test_real_loops:build\(\)"
    ) as error:
        Recorder(tmp_path / "after", compiled, factory=build)
    assert "model.compile() in the factory" in error.value.remedy
    with pytest.raises(RecordError, match="compiled, but not by"):
        Recorder(tmp_path / "wrapped", torch.compile(build(), backend="eager"), factory=build)  # type: ignore[arg-type]
    model = build()
    recorder = Recorder(tmp_path / "later", model, factory=build)
    model.compile(backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RecordError, match="compiled, but not by"):  # noqa: SIM117
        with recorder.stage("one", optimizer, cross_entropy, steps=1):
            pass


class Wrapped(nn.Module):
    """As peft wraps a model."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(self.base(x))


def wrap(model: nn.Module) -> nn.Module:
    return Wrapped(model)


def test_a_change_may_give_another_model(tmp_path: Path, data: Dataset) -> None:
    torch.manual_seed(0)
    model = build()
    with Recorder(tmp_path / "record", model, every=2, factory=build, load_batch=load) as recorder:
        for stage in ("one", "two"):
            if stage == "two":
                assert recorder.extend(wrap) is recorder.model
                assert isinstance(recorder.model, Wrapped)
            optimizer = torch.optim.SGD(recorder.model.parameters(), lr=0.1)
            with recorder.stage(stage, optimizer, loss_of, dataset=data, steps=3) as run:
                plainly(run, recorder.model, optimizer, data)
    trajectory = Trajectory.open(tmp_path / "record")
    one, two = trajectory.stages
    assert two.header.renamed["base.0.weight"] == "0.weight"
    assert two.header.added == ("adapter.weight", "adapter.bias")
    extend = two.header.extend
    assert extend is not None
    functions = Functions(
        build,
        load,
        {"one": loss_of, "two": loss_of},
        lambda m, b: m(b["x"]),
        extensions={extend.name: wrap},
    )
    engine = Rerun(trajectory, functions, {"data": data})
    reached = engine.run(two, engine.carry_over(1, engine.run(one, one.first)))
    assert all(torch.equal(t, reached.parameters[n]) for n, t in two.last.parameters.items())
