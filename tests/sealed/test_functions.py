"""Sealed functions give what the same functions give in this process, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.datasets import Dataset
from auditspec.engine.batched_gradient import NotVectorizedError, batched_gradient
from auditspec.engine.loading import expect
from auditspec.engine.model_output import through_output
from auditspec.engine.widening import widened
from auditspec.errors import EvidenceError
from auditspec.record.extension import apply, make
from auditspec.record.state import capture, named_parameters, restore, ties
from auditspec.sealed.start import SealedCode

Both = Callable[[str], tuple[Any, Any]]


@pytest.fixture
def both(sealed: SealedCode, here: CodeBundle) -> Both:
    """A function sealed, and in this process."""

    def load(name: str) -> tuple[Any, Any]:
        return sealed.load(f"sealed_sample:{name}"), here.load(f"sample_here:{name}")

    return load


@pytest.fixture
def models(both: Both) -> tuple[nn.Module, nn.Module]:
    """Two models with the same numbers."""
    far, near = both("build")
    torch.manual_seed(1)
    left = far()
    torch.manual_seed(1)
    right = near()
    return left, right


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(8, 6), torch.randint(0, 3, (8,))


def same(left: Any, right: Any) -> bool:
    return (left is None and right is None) or torch.equal(left, right)


def test_a_factory_builds_the_same_model(models: tuple[nn.Module, nn.Module]) -> None:
    left, right = models
    assert [*left.state_dict()] == [*right.state_dict()]
    assert all(
        same(a, b)
        for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    )
    assert [n for n, _ in left.named_modules()] == [n for n, _ in right.named_modules()]
    assert isinstance(left.get_submodule("1"), nn.modules.batchnorm._BatchNorm)


def test_shared_tensors_and_modules_stay_shared(both: Both) -> None:
    far, near = both("tied")
    assert ties(far()) == ties(near()) != {}


@pytest.mark.parametrize("name", ["objective", "drawing", "valued"])
def test_gradients_buffers_and_random_numbers(
    both: Both, models: Any, batch: Any, name: str
) -> None:
    outcomes = []
    for function, model in zip(both(name), models, strict=True):
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        steps = []
        for weight in (1.0, 0.3, 0.3):  # the third is expected, and comes with its call
            share = function(model, batch) * weight
            steps.append((share.detach(), *torch.autograd.grad(share, list(model.parameters()))))
        drawn = torch.rand(1), np.random.rand(), random.random()
        outcomes.append((steps, [b.clone() for b in model.buffers()], drawn))
    (left, left_buffers, left_drawn), (right, right_buffers, right_drawn) = outcomes
    assert all(
        same(a, b) for s, t in zip(left, right, strict=True) for a, b in zip(s, t, strict=True)
    )
    assert all(same(a, b) for a, b in zip(left_buffers, right_buffers, strict=True))
    assert left_drawn == right_drawn


def test_a_batch_that_lies_across_memory(both: Both, models: Any) -> None:
    """As the columns of a table do: kernels round by strides."""
    torch.manual_seed(2)
    columns, y = torch.randn(6, 67), torch.randint(0, 3, (67,))
    gradients = []
    for function, echo, model in zip(both("objective"), both("echo"), models, strict=True):
        x = echo(columns.T)
        assert x.stride() == (1, 67)
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(function(model, (x, y)), list(model.parameters())))
    assert all(same(a, b) for a, b in zip(*gradients, strict=True))


def test_second_derivatives(both: Both, models: Any, batch: Any) -> None:
    products = []
    for function, model in zip(both("objective"), models, strict=True):
        model.eval()
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(function(model, batch), parameters, create_graph=True)
        probe = [torch.ones_like(p) for p in parameters]
        products.append(torch.autograd.grad(gradients, parameters, probe, allow_unused=True))
    assert all(same(a, b) for a, b in zip(*products, strict=True))


def test_a_slope_by_the_cotangent(both: Both, models: Any, batch: Any) -> None:
    slopes = []
    for function, model in zip(both("predict"), models, strict=True):
        model.eval()
        gamma = function(model, batch[0]).sum(1)
        probe = torch.zeros_like(gamma, requires_grad=True)
        pulled = torch.autograd.grad(gamma, list(model.parameters()), probe, create_graph=True)
        (slope,) = torch.autograd.grad(pulled, probe, [torch.ones_like(g) for g in pulled])
        slopes.append(slope)
    assert same(*slopes)


def test_through_the_output(both: Both, models: Any, batch: Any) -> None:
    outcomes = []
    for function, model in zip(both("objective"), models, strict=True):
        model.eval()
        loss, z, e = through_output(function, model, batch)
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        (bjv,) = torch.autograd.grad(gradients, e, [torch.ones_like(g) for g in gradients])
        outcomes.append((z.detach(), bjv, *torch.autograd.grad(z, parameters, torch.ones_like(z))))
    assert all(same(a, b) for a, b in zip(*outcomes, strict=True))


def test_batched_gradients(both: Both, models: Any, batch: Any) -> None:
    outcomes = []
    for function, model in zip(both("objective"), models, strict=True):
        model.eval()
        torch.manual_seed(5)
        theta = {
            n: torch.stack([p.detach(), p.detach() + 0.1])
            for n, p in named_parameters(model).items()
        }
        taken = batched_gradient(function, model, [*theta], [])
        outcomes.append([taken(theta, {}, 0.5, batch) for _ in range(2)])
    for left, right in zip(*outcomes, strict=True):
        assert all(same(left.gradients[n], g) for n, g in right.gradients.items())
        assert (left.first_use, left.overhead_bound) == (right.first_use, right.overhead_bound)


def test_what_vmap_cannot_take_says_so(both: Both, models: Any, batch: Any) -> None:
    for function, model in zip(both("valued"), models, strict=True):
        model.eval()
        theta = {n: torch.stack([p.detach()] * 2) for n, p in named_parameters(model).items()}
        with pytest.raises(NotVectorizedError) as caught:
            batched_gradient(function, model, [*theta], [])(theta, {}, 1.0, batch)
        assert caught.value.reason.code == "vmap-refuses"


def test_in_another_precision(both: Both, models: Any, batch: Any) -> None:
    losses = []
    for function, model in zip(both("drawing"), models, strict=True):
        model.to(torch.float64)
        torch.manual_seed(4)
        random.seed(0)
        np.random.seed(0)
        wide = widened(function, torch.float32, torch.float64)
        losses.append(wide(model, (batch[0].double(), batch[1])).detach())
    assert losses[0].dtype == torch.float64
    assert same(*losses)


@pytest.mark.parametrize("count", [1, 3])
def test_several_outputs_at_once(sealed: SealedCode, models: Any, batch: Any, count: int) -> None:
    predict, model = sealed.load("sealed_sample:predict"), models[0]
    model.eval()
    states = []
    for _ in range(count):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.add_(0.1)
        states.append(capture(model, None))
    with torch.no_grad():
        together = predict.outputs(model, states, [batch[0], batch[0] + 1])
        for state, (first, second) in zip(states, together, strict=True):
            restore(state, model)
            assert same(first, predict(model, batch[0]))
            assert same(second, predict(model, batch[0] + 1))
        assert count == 1 or not same(together[0][0], together[1][0])


def test_each_of_several_states_begins_alike(sealed: SealedCode, models: Any, batch: Any) -> None:
    drawing, model = sealed.load("sealed_sample:drawing"), models[0]
    torch.manual_seed(3)
    with torch.no_grad():
        one, other = drawing.outputs(model, [capture(model, None)] * 2, [batch, batch])
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert not same(one[0], one[1])


def test_batches_that_are_expected_come_ahead(both: Both, folder: Path) -> None:
    dataset = Dataset.open(folder / "rows.csv", "rows")
    far, near = both("load_batch")
    order = [[0, 1], [2], [1, 2], [0]]
    far.expect((dataset, ids) for ids in order)
    before = far.code.client._asked
    for ids in order:
        left, right = far(dataset, ids), near(dataset, ids)
        assert all(same(left[k], right[k]) for k in right)
    assert far.code.client._asked == before + 1


def test_an_order_of_batches_opens_no_data_set(sealed: SealedCode, folder: Path) -> None:
    functions: Any = SimpleNamespace(load_batch=sealed.load("sealed_sample:load_batch"))
    table, other = Dataset.open(folder / "rows.csv"), Dataset.open(folder / "sealed_sample.py")
    batches = [
        SimpleNamespace(source=source, dataset=name, batch=batch, ids=(number,))
        for number, (source, name, batch) in enumerate(
            [(None, "d", None), (table, "d", [1]), (None, "d", [1]), (None, "lost", None)]
        )
    ]
    stage: Any = SimpleNamespace(steps=[SimpleNamespace(batches=batches)])
    with pytest.raises(EvidenceError, match="table"):
        len(other)
    expect(functions, {"d": other}, stage)
    number = functions.load_batch.number
    assert sealed.loads._followed[number, other, (0,)] == (number, table, (1,))
    assert (number, table, (1,)) not in sealed.loads._followed


@pytest.mark.parametrize("name", ["grow", "wrap", "shift"])
def test_a_change_of_the_model(both: Both, models: Any, name: str) -> None:
    changed = []
    for function, model in zip(both(name), models, strict=True):
        before = dict(named_parameters(model))
        torch.manual_seed(9)
        after, change = apply(model, function)
        survivors = {n: p for n, p in named_parameters(after).items() if change.before(n)}
        assert all(p is before[str(change.before(n))] for n, p in survivors.items())
        changed.append((change, capture(after, None)))
    assert changed[0][0] == changed[1][0]
    assert all(same(changed[0][1].parameters[n], t) for n, t in changed[1][1].parameters.items())


def test_what_a_change_holds_besides(both: Both, models: Any) -> None:
    far, near = (make(model, change) for model, change in zip(models, both("grow"), strict=True))
    assert far.unregistered.keys() == near.unregistered.keys()


def test_a_state_goes_in(sealed: SealedCode, models: Any, batch: Any) -> None:
    predict, (left, right) = sealed.load("sealed_sample:predict"), models
    with torch.no_grad():
        for p in right.parameters():
            p.add_(0.25)
        restore(capture(right, None), left)
        left.eval()
        right.eval()
        assert same(predict(left, batch[0]), right(batch[0]))


def test_an_optimizer_of_the_code(both: Both, models: Any, batch: Any) -> None:
    objective, kinds = both("objective"), both("Signed")
    ends = []
    for function, kind, model in zip(objective, kinds, models, strict=True):
        optimizer = kind([{"params": list(model.parameters()), "lr": 0.2}], decay=0.01)
        assert isinstance(optimizer, torch.optim.Optimizer)
        for rate in (0.2, 0.1):
            optimizer.param_groups[0]["lr"] = rate
            torch.manual_seed(0)
            function(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        slots = optimizer.state[next(model.parameters())]
        ends.append(([p.detach() for p in model.parameters()], slots["seen"], slots["sum"]))
    assert all(same(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))
    assert ends[0][1] == ends[1][1] == 2
    assert same(ends[0][2], ends[1][2])


def test_data_sets_and_their_disguises(both: Both, folder: Path) -> None:
    dataset = Dataset.open(folder / "rows.csv", "rows")
    other = dataset.disguised(name="other", frame=dataset.frame.assign(p=7.0))
    far, near = both("load_batch")
    for given in (dataset, other, dataset.disguised(name="third")):
        left, right = far(given, [2, 0]), near(given, [2, 0])
        assert left.keys() == right.keys()
        assert all(same(left[k], right[k]) for k in right)


def test_batches_of_every_kind(sealed: SealedCode) -> None:
    pair = sealed.load("sealed_sample:pair")(torch.ones(2))
    assert pair.x.tolist() == [1, 1]
    assert pair.y == {"n": 3, "f": float("inf"), "t": (1, None, "a")}
    box = sealed.load("sealed_sample:boxed")(torch.zeros(2))
    unboxed = sealed.load("sealed_sample:unboxed")
    assert [unboxed(box).tolist() for _ in range(2)] == [[1, 1], [1, 1]]  # a copy at each use


def test_errors_come_as_they_were_raised(sealed: SealedCode) -> None:
    with pytest.raises(ValueError, match="good") as caught:
        sealed.load("sealed_sample:fail")(None)
    assert "\x1b" not in str(caught.value)
    assert caught.value.place.startswith("sealed_sample.py:")  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="gone") as left:
        sealed.load("sealed_sample:leave")(None)
    assert type(left.value).__name__ == "SystemExit"


# --- batches asked for ahead --------------------------------------------------------------------------


def asked(sealed: SealedCode) -> int:
    """How many questions the process was asked so far."""
    return sealed.client._asked


@pytest.mark.parametrize("name", ["load_batch", "load_drawing"])
def test_batches_that_followed_before_come_along(
    both: Both, sealed: SealedCode, folder: Path, name: str
) -> None:
    rows = Dataset.open(folder / "rows.csv", "rows", None)
    passes = [[0], [1], [0, 1], [2], [1, 0], [0, 2], [2, 2]]
    outcomes, questions = [], []
    for load in both(name):
        for generator in (torch.manual_seed, np.random.seed, random.seed):
            generator(7)
        given = []
        for _ in range(3):
            begun = asked(sealed)
            for ids in passes:
                batch = load(rows, ids)
                given.append((batch["x"].clone(), batch["y"].clone()))
                batch["x"] += 1  # whoever gets a batch may change it
            questions.append(asked(sealed) - begun)
        outcomes.append((given, torch.rand(1), random.random(), np.random.rand()))
    (left, *left_drawn), (right, *right_drawn) = outcomes
    assert all(
        same(a, b) for pair in zip(left, right, strict=True) for a, b in zip(*pair, strict=True)
    )
    assert left_drawn == right_drawn
    assert questions[0] >= 7
    assert questions[2] == (1 if name == "load_batch" else 5)


def test_a_batch_that_is_refused_is_refused_when_it_is_asked_for(
    both: Both, sealed: SealedCode, folder: Path
) -> None:
    rows = Dataset.open(folder / "rows.csv", "rows", None)
    load, _ = both("load_refusing")
    for _ in range(3):
        assert load(rows, [0])["y"].tolist() == [0]
        assert load(rows, [1])["y"].tolist() == [1]
        with pytest.raises(ValueError, match="row 2"):
            load(rows, [2])


def test_another_order_is_answered_as_asked(both: Both, sealed: SealedCode, folder: Path) -> None:
    rows = Dataset.open(folder / "rows.csv", "rows", None)
    load, _ = both("load_batch")
    for order in ([0, 1, 2], [0, 2, 1], [0, 1, 2, 2], [1, 1, 0]):
        assert [load(rows, [n])["y"].item() for n in order] == [min(n, 2) for n in order]
