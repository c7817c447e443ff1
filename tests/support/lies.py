"""Liars: each changes one thing in the folder of a small audit that was honestly trained.

A liar may also make the later steps again from what it changed, so that nothing but the one place
is off, and may write the manifest anew. `docs/checks.md` says what is caught, and how.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from small_audit import CODE, edit_spec
from tampering import Rows, renumber_state, rewrite_header, rewrite_state, rewrite_steps
from torch import Tensor

from auditspec import Dataset
from auditspec.artifacts.checkpoints import write_tensors
from auditspec.artifacts.inspect import ITS_SIGNATURE
from auditspec.engine.interface import StepGradient
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.record.state import State
from auditspec.record.trajectory import Trajectory
from auditspec.recorder.writer import finish_manifest
from auditspec.sign import keys
from auditspec.sign.record import sign_record
from auditspec.sign.sealing import Sealer
from auditspec.sign.signer import KeySigner

STAGES = ("base", "labels", "polish")


DECLARED = "declared"
"""In place of a check: spec and record contradict each other, and nobody can say yet who is right."""


@dataclass(frozen=True)
class Lie:
    """What is changed, and what the audit must say: the check, and the places in its words."""

    name: str
    tell: Callable[[Path], None]
    places: tuple[str, ...]
    check: str = "record-fidelity"
    in_record: bool = True
    """It changes the record, so that the trainer's signature no longer holds."""


# --- tools of the trade -------------------------------------------------------------------------


def forge_manifest(record: Path) -> None:
    """Make the record agree with its own manifest again; the trainer's signature is gone."""
    (record / ITS_SIGNATURE).unlink(missing_ok=True)
    finish_manifest(record)


def sign(record: Path, key: Path) -> None:
    """Sign the manifest."""
    sign_record(record, Sealer(KeySigner(keys.load_private(key))))


def rerun_of(folder: Path) -> Rerun:
    """Re-runs the record with the training code under another module name."""
    found = importlib.util.spec_from_file_location("forger", folder / CODE)
    assert found is not None
    assert found.loader is not None
    code = importlib.util.module_from_spec(found)
    sys.modules.pop("forger", None)
    found.loader.exec_module(code)
    objectives = dict.fromkeys(STAGES, code.objective)
    functions = Functions(code.build_model, code.load_batch, objectives, code.predict)
    data = {name: Dataset.open(folder / f"{name}.parquet") for name in ("clean", "vendor")}
    return Rerun(Trajectory.open(folder / "record"), functions, data)


def go_on(folder: Path, stage: str, step: int, state: State) -> None:
    """Put a state into the record, and make everything after it again: states, losses, the model."""
    rerun, record = rerun_of(folder), folder / "record"
    losses: dict[int, float] = {}

    def note(moment: StepGradient) -> None:
        losses[moment.step.index] = moment.loss

    def relate(rows: Rows) -> None:
        for k, loss in losses.items():
            rows[k]["loss"] = loss

    stages = rerun.trajectory.stages
    for index in range(rerun.trajectory.index(stage), len(stages)):
        later = stages[index]
        if later.id != stage:
            step, state = 0, rerun.carry_over(index, state)
        rewrite_state(record, later.id, step, state)
        for start, stop in itertools.pairwise(k for k in later.state_steps if k >= step):
            state = rerun.run(later, state, start, stop, note)
            rewrite_state(record, later.id, stop, state)
        rewrite_steps(record, later.id, relate)
        losses.clear()
    write_tensors(folder / "model.safetensors", state.parameters)


def planted(state: State, size: float) -> State:
    """The state with an edit of relative norm `size`, in one direction over all weights."""
    generator = torch.Generator().manual_seed(0)
    noise = {
        n: torch.randn(t.shape, generator=generator, dtype=torch.float64)
        for n, t in state.parameters.items()
    }
    scale = size * _norm(state.parameters) / _norm(noise)
    edited = {n: (t.double() + scale * noise[n]).to(t.dtype) for n, t in state.parameters.items()}
    return replace(state, parameters=edited)


def one_ulp(state: State) -> State:
    """The state with one weight moved to the next number that its precision has."""
    edited = {n: t.clone() for n, t in state.parameters.items()}
    weight = edited[min(edited)].view(-1)[:1]
    weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))
    return replace(state, parameters=edited)


def _norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.cat([t.double().flatten() for t in tensors.values()]).norm())


def state_of(folder: Path, stage: str, step: int) -> State:
    trajectory = Trajectory.open(folder / "record")
    return trajectory.stages[trajectory.index(stage)].state(step)


# --- the lies -----------------------------------------------------------------------------------


def swapped_states(folder: Path) -> None:
    early, late = state_of(folder, "labels", 4), state_of(folder, "labels", 6)
    rewrite_state(folder / "record", "labels", 4, late)
    rewrite_state(folder / "record", "labels", 6, early)


def state_of_another_run(folder: Path) -> None:
    """The same training from other initial weights."""
    rerun = rerun_of(folder)
    base, labels, _ = rerun.trajectory.stages
    torch.manual_seed(1)
    fresh = {n: p.detach().clone() for n, p in rerun.functions.factory().named_parameters()}
    other = rerun.carry_over(1, rerun.run(base, State(fresh, {})))
    rewrite_state(folder / "record", "labels", 4, rerun.run(labels, other, 0, 4))


def step_removed(folder: Path) -> None:
    """Step 5 of `labels` is gone, and what came after it moves up; the states stay."""

    def remove(rows: Rows) -> Rows:
        return [row | {"step": k} for k, row in enumerate(rows[:5] + rows[6:])]

    def shorten(header: dict[str, Any]) -> None:
        header["stages"][1]["steps"] = 7

    renumber_state(folder / "record", "labels", 8, 7)
    rewrite_steps(folder / "record", "labels", remove)
    rewrite_header(folder / "record", shorten)


def batches_reordered(folder: Path) -> None:
    def swap(rows: Rows) -> None:
        rows[4]["batches"], rows[5]["batches"] = rows[5]["batches"], rows[4]["batches"]

    rewrite_steps(folder / "record", "labels", swap)


def hyperparameter(**options: float) -> Callable[[Path], None]:
    """Another hyperparameter than `labels` was trained with, in header, steps, and declaration."""

    def tell(folder: Path) -> None:
        def in_header(header: dict[str, Any]) -> None:
            for group in header["stages"][1]["groups"]:
                assert all(group["options"][key] != value for key, value in options.items())
                group["options"] |= options

        def in_steps(rows: Rows) -> None:
            for row in rows:
                groups = [group | options for group in json.loads(row["groups"])]
                row["groups"] = json.dumps(groups)

        def in_spec(spec: dict[str, Any]) -> None:
            spec["stages"][1]["optimizer"] |= options

        rewrite_header(folder / "record", in_header)
        rewrite_steps(folder / "record", "labels", in_steps)
        edit_spec(folder / "audit.yaml", in_spec)

    return tell


def apart(folder: Path) -> None:
    """Another weight decay, and clipping that never clips: no other stage's steps are made so."""
    hyperparameter(weight_decay=1e-6)(folder)
    rewrite_header(folder / "record", lambda header: header["stages"][1].update(clip_norm=1e9))


def undeclared_rate(folder: Path) -> None:
    """The record tells a rate that the spec does not declare."""
    declared = (folder / "audit.yaml").read_text()
    hyperparameter(lr=0.21)(folder)
    (folder / "audit.yaml").write_text(declared)


def optimizer_class(folder: Path) -> None:
    """`labels` is said to have been trained by RMSprop, whose options are added."""
    added = {"alpha": 0.99, "eps": 1e-8, "centered": False, "capturable": False}

    def in_header(header: dict[str, Any]) -> None:
        header["stages"][1]["optimizer"] = "RMSprop"
        for group in header["stages"][1]["groups"]:
            group["options"] |= added

    def in_steps(rows: Rows) -> None:
        for row in rows:
            row["groups"] = json.dumps([group | added for group in json.loads(row["groups"])])

    def in_spec(spec: dict[str, Any]) -> None:
        spec["stages"][1]["optimizer"]["name"] = "RMSprop"

    rewrite_header(folder / "record", in_header)
    rewrite_steps(folder / "record", "labels", in_steps)
    edit_spec(folder / "audit.yaml", in_spec)


def hidden_training(folder: Path) -> None:
    """One more step inside `labels` than the record tells; everything after it is made again."""
    rerun = rerun_of(folder)
    labels = rerun.trajectory.stages[1]
    longer = rerun.run(labels, rerun.run(labels, labels.state(2), 2, 4), 3, 4)
    go_on(folder, "labels", 4, longer)


def planted_inside(size: float) -> Callable[[Path], None]:
    """Weights edited in the middle of `labels`; everything after it is made again."""
    return lambda folder: go_on(folder, "labels", 4, planted(state_of(folder, "labels", 4), size))


def planted_at_the_end(size: float) -> Callable[[Path], None]:
    """Weights edited where `labels` ended; everything after it is made again."""
    return lambda folder: go_on(folder, "labels", 8, planted(state_of(folder, "labels", 8), size))


def planted_and_left(folder: Path) -> None:
    """Weights edited in one kept state, and nothing else."""
    edited = planted(state_of(folder, "labels", 4), 1e-6)
    rewrite_state(folder / "record", "labels", 4, edited)


def last_place_of_one_weight(folder: Path) -> None:
    go_on(folder, "labels", 4, one_ulp(state_of(folder, "labels", 4)))


def deployed_edit(folder: Path) -> None:
    """The smallest change of one weight, after the record was finished."""
    edited = one_ulp(state_of(folder, "polish", 4))
    write_tensors(folder / "model.safetensors", edited.parameters)


def deployed_state_of_another_step(folder: Path) -> None:
    write_tensors(folder / "model.safetensors", state_of(folder, "polish", 2).parameters)


def relabelled(folder: Path) -> None:
    """One label of eighty: the data are not those that were trained on, their digest is forged."""
    frame = pd.read_parquet(folder / "vendor.parquet")
    frame.loc[ROW, "y"] = (frame.loc[ROW, "y"] + 1) % 3
    frame.to_parquet(folder / "vendor.parquet")

    def forge(header: dict[str, Any]) -> None:
        digest = Dataset.open(folder / "vendor.parquet").digest
        header["stages"][1]["datasets"] = {"vendor": digest}

    rewrite_header(folder / "record", forge)


def honest_about_other_data(folder: Path) -> None:
    """The data are changed, the record still has their digest."""
    frame = pd.read_parquet(folder / "vendor.parquet")
    frame.loc[ROW, "y"] = (frame.loc[ROW, "y"] + 1) % 3
    frame.to_parquet(folder / "vendor.parquet")


def stages_swapped(folder: Path) -> None:
    """`polish` is said to have come before `labels`, in the record only."""

    def swap(header: dict[str, Any]) -> None:
        base, labels, polish = header["stages"]
        header["stages"] = [base, polish, labels]

    record = folder / "record"
    rewrite_header(record, swap)
    (record / "01-labels").rename(record / "02-labels")
    (record / "02-polish").rename(record / "01-polish")


def stages_swapped_everywhere(folder: Path) -> None:
    """And in the declaration."""

    def swap(spec: dict[str, Any]) -> None:
        base, labels, polish = spec["stages"]
        spec["stages"] = [base, polish, labels]

    stages_swapped(folder)
    edit_spec(folder / "audit.yaml", swap)


def prettier_loss(folder: Path) -> None:
    """The course of the loss, as the report draws it."""

    def change(rows: Rows) -> None:
        rows[5]["loss"] *= 0.999

    rewrite_steps(folder / "record", "labels", change)


def looser_precision(folder: Path) -> None:
    """Another precision in the header would be held to another threshold."""

    def change(header: dict[str, Any]) -> None:
        for info in header["parameters"]:
            info["dtype"] = "float16"

    rewrite_header(folder / "record", change)


ROW = 19
"""Rows of `labels` are (11 step + 7 + 5 i) mod 80, i < 16."""
ALL = ("labels 0-2", "labels 2-4", "labels 4-6", "labels 6-8")
READS_ROW = tuple(
    f"labels {k}-{k + 2}"
    for k in (0, 2, 4, 6)
    if any((11 * step + 7 + 5 * i) % 80 == ROW for step in (k, k + 1) for i in range(16))
)
EVERYWHERE = (
    "deployed checkpoint",
    *("start of base", "base to labels", "labels to polish"),
    *(f"base {k}-{k + 2}" for k in range(0, 12, 2)),
    *ALL,
    *("polish 0-2", "polish 2-4"),
)

LIES = (
    Lie("a step's state exchanged for another's", swapped_states, ALL[1:]),
    Lie("a state of another run", state_of_another_run, ALL[1:3]),
    Lie("a step removed", step_removed, ("labels 4-6", "labels 6-7")),
    Lie("batches reordered", batches_reordered, ALL[2:3]),
    Lie("another rate, by 0.5 %", hyperparameter(lr=0.201), ALL),
    Lie("another weight decay, by 1e-6", hyperparameter(weight_decay=1e-6), ALL),
    Lie("another momentum, by 0.001", hyperparameter(momentum=0.901), ALL),
    Lie("a rate that is not declared", undeclared_rate, ("stage 'labels': largest lr",), DECLARED),
    Lie("another optimizer", optimizer_class, ALL),
    Lie("a hidden step", hidden_training, ALL[1:2]),
    Lie("a small edit inside", planted_inside(1e-6), ALL[1:2]),
    Lie("the last place of one weight", last_place_of_one_weight, ALL[1:2]),
    Lie("a small edit at the end", planted_at_the_end(1e-6), ALL[3:]),
    Lie("a small edit left alone", planted_and_left, ALL[1:3]),
    Lie("a label in eighty, forged", relabelled, READS_ROW),
    Lie("a label in eighty", honest_about_other_data, ("data set vendor",), in_record=False),
    Lie("stages swapped", stages_swapped, ("stage 'labels' stands here",), DECLARED),
    Lie(
        "stages swapped everywhere",
        stages_swapped_everywhere,
        ("deployed checkpoint", "base to polish", "polish to labels"),
    ),
    Lie("the deployed model edited", deployed_edit, ("deployed checkpoint",), in_record=False),
    Lie(
        "another state deployed",
        deployed_state_of_another_step,
        ("deployed checkpoint",),
        in_record=False,
    ),
    Lie("a prettier loss", prettier_loss, ALL[2:3]),
    Lie("a looser precision", looser_precision, EVERYWHERE),
)
