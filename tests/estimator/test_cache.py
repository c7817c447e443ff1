"""The cache: equal dependencies are found again, damaged entries are not, journals go on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from auditspec.errors import UsageError
from auditspec.estimator.cache import Cache, Dependencies, FileJournal
from auditspec.estimator.counterfactual import Counterfactual
from auditspec.estimator.interventions import Arm
from auditspec.messages import message
from auditspec.record.codec import from_bytes
from auditspec.record.state import State

DEPENDENCIES = Dependencies(
    record="sha256:1",
    code="sha256:2",
    datasets={"train": "sha256:3"},
    dtype="float32",
    device="cpu",
    threads=1,
    deterministic=False,
    repeat=False,
    engine="rerun",
    plugins=(),
)

FINAL = {"w": torch.randn(3, 2), "b": torch.randn(2).double()}
"""theta_K"""


def state() -> State:
    return State(
        {"w": torch.randn(3, 2), "b": torch.randn(2).double()},
        {"seen": torch.tensor(7), "flag": torch.tensor([True, False])},
        {"w": {"exp_avg": torch.randn(3, 2), "step": torch.tensor(4.0), "mu": 0.5}, "b": {}},
    )


def estimate(size: int = 2) -> Counterfactual:
    return Counterfactual(
        arm=Arm.without("one"),
        method="replay",
        exact=True,
        state=replace(state(), optimizer_state={}),
        delta={"w": torch.randn(3, size)},
        gradients=12.0,
        seconds=0.5,
        notes=(message("single-arm"),),
        diagnostics={"growth": 1.5},
    )


def same(left: State, right: State) -> None:
    for ours, theirs in ((left.parameters, right.parameters), (left.buffers, right.buffers)):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype
            assert torch.equal(ours[name], tensor)
    wanted = {name: slots for name, slots in right.optimizer_state.items() if slots}
    assert left.optimizer_state.keys() == wanted.keys()
    for name, slots in wanted.items():
        for slot, value in slots.items():
            assert torch.equal(
                torch.as_tensor(left.optimizer_state[name][slot]), torch.as_tensor(value)
            )


@pytest.mark.parametrize(
    "change",
    [
        {"record": "sha256:9"},
        {"code": "sha256:9"},
        {"datasets": {"train": "sha256:9"}},
        {"dtype": "float64"},
        {"device": "cuda"},
        {"threads": 2},
        {"deterministic": True},
        {"repeat": True},
        {"torch": "0"},
        {"algorithms": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_dependency_names_another_entry(change: dict[str, Any]) -> None:
    key = DEPENDENCIES.key(stage="one", method="replay")
    assert replace(DEPENDENCIES).key(method="replay", stage="one") == key
    assert replace(DEPENDENCIES, **change).key(stage="one", method="replay") != key
    assert DEPENDENCIES.key(stage="two", method="replay") != key


def test_an_estimate_comes_back_as_it_was(tmp_path: Path) -> None:
    cache, kept = Cache(tmp_path / "cache"), estimate()
    assert cache.get("k", FINAL) is None
    cache.put("k", kept, FINAL)
    found = cache.get("k", FINAL)
    assert found is not None
    same(found.state, kept.state)
    assert torch.equal(found.delta["w"], kept.delta["w"])
    assert (found.cached, kept.cached) == (True, False)
    facts = ("arm", "method", "exact", "gradients", "seconds", "notes", "diagnostics")
    assert [getattr(found, f) for f in facts] == [getattr(kept, f) for f in facts]
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_the_interior_comes_back_and_the_end_is_stored_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    large = torch.randn(10_000)
    final = {"w": torch.zeros(10_000)}
    inside, end = State({"w": large + 1}, {"n": torch.tensor(2)}), State({"w": large}, {})
    arm = Arm(frozenset({"one", "three"}), frozenset({"weights:initial"}))
    kept = replace(estimate(), arm=arm, state=end, path={"two": inside, "four": end})
    cache.put("k", kept, final)
    assert (tmp_path / "k.safetensors").stat().st_size < 2.2 * 4 * 10_000
    found = cache.get("k", final)
    assert found is not None
    assert found.arm == arm
    assert list(found.path) == ["two", "four"]
    assert found.path["four"] is found.state
    same(found.path["two"], inside)
    same(found.state, end)
    short = replace(estimate(), path={"two": inside})  # a stage left out follows
    cache.put("short", short, FINAL)
    found = cache.get("short", FINAL)
    assert found is not None
    same(found.path["two"], inside)
    same(found.state, short.state)
    with pytest.raises(ValueError, match="omit one, omit three, replace weights:initial"):
        _ = kept.stage


def test_a_displacement_that_is_a_difference_is_not_stored(tmp_path: Path) -> None:
    """It comes back as it was; one of another making is stored."""
    cache, large = Cache(tmp_path), 10_000
    final, end = {"w": torch.randn(large)}, State({"w": torch.randn(large)}, {})
    for other, size in ((0.0, 1.1), (1e-3, 2.1)):
        kept = replace(estimate(), state=end, delta={"w": end.parameters["w"] - final["w"] + other})
        cache.put("k", kept, final)
        assert (
            (size - 0.2) * 4 * large
            < (tmp_path / "k.safetensors").stat().st_size
            < size * 4 * large
        )
        found = cache.get("k", final)
        assert found is not None
        assert torch.equal(found.delta["w"], kept.delta["w"])


@pytest.mark.parametrize("place", [20, -1], ids=["header", "tensors"])
def test_a_damaged_entry_is_no_entry(tmp_path: Path, place: int) -> None:
    cache = Cache(tmp_path)
    cache.put("k", estimate(), FINAL)
    path = tmp_path / "k.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert cache.get("k", FINAL) is None
    cache.put("k", estimate(), FINAL)
    assert cache.get("k", FINAL) is not None


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    Cache(tmp_path).put("probe", estimate(1000), FINAL)
    size = (tmp_path / "probe.safetensors").stat().st_size
    (tmp_path / "probe.safetensors").unlink()
    cache = Cache(tmp_path, largest=2 * size + 100)
    for age, key in ((300, "a"), (200, "b")):
        cache.put(key, estimate(1000), FINAL)
        old = (tmp_path / f"{key}.safetensors").stat().st_mtime - age
        os.utime(tmp_path / f"{key}.safetensors", (old, old))
    assert cache.get("a", FINAL) is not None  # used again, hence the youngest now
    cache.put("c", estimate(1000), FINAL)
    assert cache.get("b", FINAL) is None
    assert cache.get("a", FINAL) is not None


def test_a_journal_gives_back_what_it_noted_last(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "j.safetensors", share=0.0)
    assert journal.load() is None
    first, second = state(), state()
    journal.save({"stage": 1, "step": 4}, {"one": first, "two": second})
    journal.save({"stage": 1, "step": 8}, {"one": second})
    found = FileJournal(tmp_path / "j.safetensors").load()
    assert found is not None
    position, states = found
    assert position == {"stage": 1, "step": 8}
    assert list(states) == ["one"]
    same(states["one"], second)
    journal.clear()
    assert journal.load() is None


def test_a_journal_takes_little_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each note takes one second of a made-up clock; with a share of a tenth, nine must lie between."""
    now = [0.0]
    monkeypatch.setattr("auditspec.estimator.cache.time.monotonic", lambda: now[0])

    def write(path: Path, data: tuple[bytes, memoryview], *, durable: bool) -> None:
        now[0] += 1.0
        noted.append(from_bytes(b"".join(data))[1]["position"]["step"])

    noted: list[int] = []
    monkeypatch.setattr("auditspec.estimator.cache.write_atomically", write)
    journal = FileJournal(tmp_path / "j.safetensors", share=0.1)
    for step in range(40):
        journal.save({"step": step}, {})
        now[0] += 1.0
    assert noted[0] == 0
    assert len(noted) / now[0] <= 0.12


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made") as error:
        Cache(tmp_path / "file" / "cache")
    assert "--no-cache" in error.value.remedy
