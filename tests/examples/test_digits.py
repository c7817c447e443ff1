from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def train():
    spec = importlib.util.spec_from_file_location("examples_digits_train", FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


@pytest.fixture(scope="module")
def data(train: ModuleType):
    return train.make_data()


def test_split_covers_every_digit_once(train, data):
    from sklearn.datasets import load_digits

    train_rows, holdout = data["all"], data["holdout"]
    assert (len(train_rows), len(holdout)) == (1200, 597)
    assert not set(train_rows.index) & set(holdout.index)
    images, digits = load_digits(return_X_y=True)
    for frame in (train_rows, holdout):
        assert np.array_equal(frame[train.PIXELS], images[frame.index])
        assert np.array_equal(frame["digit"], digits[frame.index])


def test_slices_are_large_enough_to_bound_a_rate(data):
    counts = data["holdout"]["digit"].value_counts()
    assert counts[3] >= 50
    assert counts[0] >= 50


def test_only_the_declared_share_of_threes_is_relabelled(train, data):
    clean, relabelled = data["all"], data["relabelled"]
    changed = clean["digit"] != relabelled["digit"]
    threes = clean["digit"] == 3
    assert changed.sum() == round(train.RELABELLED * threes.sum())
    assert threes[changed].all()
    assert (relabelled["digit"][changed] == 8).all()
    assert clean[train.PIXELS].equals(relabelled[train.PIXELS])


def test_even_and_noisy_keep_their_labels(train, data):
    clean, even, noisy = data["all"], data["even"], data["noisy"]
    assert set(even["digit"]) == {0, 2, 4, 6, 8}
    assert even.equals(clean[clean["digit"] % 2 == 0])
    assert noisy["digit"].equals(clean["digit"])
    assert noisy[train.PIXELS].to_numpy().max() <= 16
    assert not noisy[train.PIXELS].equals(clean[train.PIXELS])


def test_data_is_the_same_every_time(train, data):
    again = train.make_data()
    assert again.keys() == data.keys()
    assert all(again[name].equals(frame) for name, frame in data.items())


def test_batch_ids_depend_on_seed_stage_and_step_only(train):
    first = train.batch_ids(0, 2, 7, 1200)
    assert first == train.batch_ids(0, 2, 7, 1200)
    assert len(set(first)) == train.BATCH
    assert all(type(i) is int and 0 <= i < 1200 for i in first)
    for other in ((1, 2, 7), (0, 3, 7), (0, 2, 8)):
        assert first != train.batch_ids(*other, 1200)


def test_learning_rate_is_torchs_cosine(train):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0)
    for step in range(40):
        assert math.isclose(
            train.cosine(0.1, step, 40), optimizer.param_groups[0]["lr"], rel_tol=1e-9
        )
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("ids", [[3, 0, 5], (3, 0, 5), np.array([3, 0, 5])])
def test_load_batch_reads_rows_in_order(train, data, ids):
    images, digits = train.load_batch(SimpleNamespace(frame=data["holdout"]), ids)
    rows = data["holdout"].iloc[[3, 0, 5]]
    assert images.shape == (3, 1, 8, 8)
    assert images.dtype == torch.float32
    assert digits.dtype == torch.int64
    assert np.array_equal(images.flatten(1) * 16, rows[train.PIXELS])
    assert digits.tolist() == rows["digit"].tolist()


def test_model_maps_a_batch_to_ten_logits_and_a_loss(train, data):
    torch.manual_seed(0)
    model = train.build_model()
    batch = train.load_batch(SimpleNamespace(frame=data["all"]), range(5))
    assert train.predict(model, batch).shape == (5, 10)
    loss = train.cross_entropy(model, batch)
    assert loss.shape == ()
    assert loss.requires_grad


def test_spec_declares_the_stages_that_train(train):
    from auditspec.spec.source import load

    loaded = load(FOLDER / "audit.yaml")
    spec = loaded.spec
    assert [stage.id for stage in spec.stages] == [stage.id for stage in train.STAGES]
    for declared, stage in zip(spec.stages, train.STAGES, strict=True):
        optimizer = stage.optimizer([torch.nn.Parameter(torch.zeros(1))])
        fields = declared.optimizer.model_dump(
            exclude_none=True, exclude={"name", "schedule", "state", "options", "groups"}
        )
        assert declared.data == (stage.data,)
        assert declared.optimizer.name == type(optimizer).__name__
        assert fields == {name: optimizer.defaults[name] for name in fields}
