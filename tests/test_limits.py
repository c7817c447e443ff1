"""Proposed limits against levels that plain torch reads off the models itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_audit import edit_spec, lock
from torch import Tensor, nn

from auditspec.artifacts.checkpoints import read_tensors, write_tensors
from auditspec.errors import EvidenceError
from auditspec.limits import Proposal, propose
from auditspec.spec.source import load

BEHAVIORS = ("zero-as-two", "control")


def proposed(spec: Path, clean: Mapping[str, Path] | None = None) -> dict[str, Proposal]:
    found = propose(load(spec), clean or {})
    assert tuple(p.behavior for p in found) == BEHAVIORS
    return {p.behavior: p for p in found}


def levels(weights: Mapping[str, Tensor], folder: Path) -> dict[str, float]:
    """Both behaviours of a model by its weights, on the held-out zeros."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    model.load_state_dict(dict(weights))
    frame = pd.read_parquet(folder / "holdout.parquet")
    zeros = frame[frame["y"] == 0]
    x = torch.tensor(zeros[["x0", "x1", "x2"]].to_numpy(copy=True)).float()
    with torch.no_grad():
        logits = model(x).double()
    return {
        "zero-as-two": float((logits[:, 2] - logits[:, 0]).mean()),
        "control": float((logits.argmax(1) == 1).double().mean()),
    }


def trained(folder: Path, data: str, steps: int, seed: int) -> dict[str, Tensor]:
    """A model trained once more by a plain loop, on one table alone."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    frame = pd.read_parquet(folder / f"{data}.parquet")
    x = torch.tensor(frame[["x0", "x1", "x2"]].to_numpy(copy=True)).float()
    y = torch.tensor(frame["y"].to_numpy(copy=True)).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


@pytest.fixture
def clean(audit_spec: Path) -> dict[str, Path]:
    found = {}
    for seed in (1, 2, 3):
        path = audit_spec.parent / f"clean-{seed}.safetensors"
        write_tensors(path, trained(audit_spec.parent, "clean", 20, seed))
        found[f"seed {seed}"] = path
    return found


# --- clean models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["increase", "decrease"])
@pytest.mark.parametrize("tolerance", [0.001, 5.0])
def test_a_limit_from_clean_models_is_their_mean_and_what_they_scatter(
    audit_spec: Path, clean: dict[str, Path], direction: str, tolerance: float
) -> None:
    """Beyond the mean, towards the concern: the tolerance or two standard deviations, whichever is more."""

    def change(data: dict[str, Any]) -> None:
        data["behaviors"][0]["concern"] |= {"direction": direction, "tolerance": tolerance}

    edit_spec(audit_spec, change)
    found = proposed(audit_spec, clean)["zero-as-two"]
    truth = [
        levels(read_tensors(path), audit_spec.parent)["zero-as-two"] for path in clean.values()
    ]
    assert found.source == "clean models"
    assert [level.name for level in found.levels] == list(clean)
    assert [level.level for level in found.levels] == pytest.approx(truth, abs=1e-5)
    deployed = read_tensors(audit_spec.parent / "model.safetensors")
    assert found.deployed == pytest.approx(
        levels(deployed, audit_spec.parent)["zero-as-two"], abs=1e-5
    )
    mean, spread = float(np.mean(truth)), float(np.std(truth, ddof=1))
    assert found.mean == pytest.approx(mean, abs=1e-5)
    assert found.spread == pytest.approx(spread, abs=1e-5)
    assert (2 * spread > tolerance) is (tolerance == 0.001)  # both cases are met
    sign = 1 if direction == "increase" else -1
    assert found.limit == pytest.approx(mean + sign * max(tolerance, 2 * spread), abs=1e-4)


def test_a_single_clean_model_has_no_spread(audit_spec: Path, clean: dict[str, Path]) -> None:
    name, path = next(iter(clean.items()))
    for id_, found in proposed(audit_spec, {name: path}).items():
        (level,) = found.levels
        assert found.spread is None
        assert found.limit == pytest.approx(level.level + found.tolerance)
        assert found.tolerance == {"zero-as-two": 0.5, "control": 0.9}[id_]


def test_a_tolerance_in_shares_is_one_of_the_clean_level(
    audit_spec: Path, clean: dict[str, Path]
) -> None:
    def change(data: dict[str, Any]) -> None:
        concern = data["behaviors"][0]["concern"]
        del concern["tolerance"]
        concern |= {"limit": 1.0, "tolerance_share": 0.2}

    edit_spec(audit_spec, change)
    name, path = next(iter(clean.items()))
    found = proposed(audit_spec, {name: path})["zero-as-two"]
    assert found.tolerance == pytest.approx(0.2 * abs(found.mean))


def test_a_planted_fault_is_beyond_the_limit_of_clean_models(
    audit_spec: Path, clean: dict[str, Path]
) -> None:
    found = proposed(audit_spec, clean)
    assert found["zero-as-two"].deployed > found["zero-as-two"].limit
    assert found["control"].deployed <= found["control"].limit


@pytest.mark.parametrize("odd", ["missing", "shape", "bytes"])
def test_weights_of_another_model_are_refused_by_name(
    audit_spec: Path, clean: dict[str, Path], odd: str
) -> None:
    path = next(iter(clean.values()))
    held = read_tensors(path)
    if odd == "missing":
        del held["2.bias"]
    elif odd == "shape":
        held["2.bias"] = torch.zeros(4)
    write_tensors(path, held)
    if odd == "bytes":
        path.write_bytes(b"no weights")
    with pytest.raises(EvidenceError, match=path.name) as error:
        proposed(audit_spec, clean)
    assert odd == "bytes" or "2.bias" in error.value.message


# --- without clean models -------------------------------------------------------------------------


def by_state(found: Proposal) -> dict[str, float]:
    return {level.name: level.level for level in found.levels}


def test_without_anything_the_best_able_state_of_the_run_stands_in(audit_spec: Path) -> None:
    """The stage that plants the fault is left out: that run's end is the best that there is."""
    found = proposed(audit_spec)
    for proposal in found.values():
        assert proposal.source == "the run itself"
        assert len(proposal.levels) == 1
        assert proposal.limit == pytest.approx(proposal.levels[0].level + proposal.tolerance)
    fault = found["zero-as-two"]
    assert fault.levels[0].level < fault.deployed - fault.tolerance
    (name,) = by_state(fault)
    assert name.startswith(("without labels", "as recorded, at the end of base"))


def test_where_all_that_is_suspect_has_a_reference_the_limit_is_of_that_run(
    audit_spec: Path,
) -> None:
    def change(data: dict[str, Any]) -> None:
        data["artifacts"]["fresh"] = {"path": "fresh.parquet"}
        data["stages"][1]["reference"] = "fresh"

    clean = pd.read_parquet(audit_spec.parent / "clean.parquet")
    shuffled = clean.sample(frac=1, random_state=1, ignore_index=True)
    shuffled.to_parquet(audit_spec.parent / "fresh.parquet")
    edit_spec(audit_spec, change)
    lock(audit_spec)
    found = proposed(audit_spec)
    assert {p.source for p in found.values()} == {"reference"}
    fault = found["zero-as-two"]
    names = set(by_state(fault))
    assert names <= {f"with references, at the end of {stage}" for stage in ("labels", "polish")}
    assert names
    assert fault.deployed > fault.limit
    assert fault.limit == pytest.approx(
        fault.mean + max(fault.tolerance, 2 * (fault.spread or 0.0))
    )


def test_code_is_announced_before_it_runs_and_bad_evidence_runs_none(audit_spec: Path) -> None:
    lines: list[str] = []
    propose(load(audit_spec), {}, lines.append)
    assert [line.split()[:2] for line in lines] == [["executing", "small_training.py"]]
    (audit_spec.parent / "clean.parquet").write_bytes(b"other")
    lines.clear()
    with pytest.raises(EvidenceError, match="clean"):
        propose(load(audit_spec), {}, lines.append)
    assert lines == []
