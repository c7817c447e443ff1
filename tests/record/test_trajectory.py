"""Reading records: damaged, altered, and unknown ones are told with a place."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from training import SGD3, Recorded, train

from auditspec.artifacts.checkpoints import read_metadata, read_tensors, write_tensors
from auditspec.errors import EvidenceError, RecordError
from auditspec.record.format import STEPS_SCHEMA, RecordHeader
from auditspec.record.trajectory import Trajectory
from auditspec.resources import folder


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    return train(tmp_path, SGD3, every=2)


def test_the_header_meets_its_published_schema(recorded: Recorded) -> None:
    schema = json.loads((folder("schemas") / "auditspec-record-1.schema.json").read_text())
    header = json.loads((recorded.folder / "record" / "record.json").read_text())
    Draft202012Validator(schema).validate(header)
    assert RecordHeader.model_validate(header) == recorded.trajectory.header


def test_steps_files_have_the_documented_columns(recorded: Recorded) -> None:
    part = next((recorded.folder / "record" / "00-one").glob("steps-*.parquet"))
    assert pq.read_schema(part).equals(STEPS_SCHEMA)


def test_a_folder_without_a_record_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"holds no record\.json"):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize(
    "change", [{"auditspec_record": "2"}, {"extra": 1}, {"stages": [{}]}, {"device": None}]
)
def test_other_headers_are_refused_with_the_field(
    recorded: Recorded, change: dict[str, object]
) -> None:
    path = recorded.folder / "record" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=f"version 1: {next(iter(change))}"):
        Trajectory.open(recorded.folder / "record")


def test_a_pinned_record_is_read_from_the_pinned_bytes(recorded: Recorded) -> None:
    from auditspec.artifacts.manifest import digest_path

    place = recorded.folder / "record"
    pinned = Trajectory.open(place, digest_path(place).digest)
    state = place / "01-two" / "state-000002.safetensors"
    tensors = read_tensors(state)
    tensors["param/one.weight"] += 1
    write_tensors(state, tensors, read_metadata(state))
    with pytest.raises(EvidenceError, match="state-000002"):
        pinned.stages[1].state(2)
    pinned.stages[1].state(4)
    with pytest.raises(EvidenceError, match="record"):
        Trajectory.open(place, "sha256:" + "0" * 64)


def test_states_with_other_tensors_nan_or_no_metadata_are_refused(recorded: Recorded) -> None:
    stage = recorded.trajectory.stages[0]
    path = stage.folder / "state-000002.safetensors"
    tensors, metadata = read_tensors(path), read_metadata(path)
    write_tensors(path, tensors)
    with pytest.raises(RecordError, match="no auditspec metadata"):
        stage.state(2)
    write_tensors(path, {**tensors, "param/one.weight": torch.zeros(2, 2)}, metadata)
    with pytest.raises(RecordError, match=r"differ from record\.json: one\.weight"):
        stage.state(2)
    nan = {**tensors, "param/one.bias": tensors["param/one.bias"] * float("nan")}
    write_tensors(path, nan, metadata)
    with pytest.raises(EvidenceError, match=r"one\.bias"):
        stage.state(2)
    write_tensors(path, {**tensors, "odd": torch.zeros(1)}, metadata)
    with pytest.raises(RecordError, match="unknown tensor 'odd'"):
        stage.state(2)
    with pytest.raises(RecordError, match="before step 3 is not in the record"):
        stage.state(3)


def test_a_removed_or_renumbered_step_is_told(recorded: Recorded) -> None:
    part = recorded.folder / "record" / "00-one" / "steps-000000.parquet"
    rows = pq.read_table(part).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows[:-1], schema=STEPS_SCHEMA), part)
    with pytest.raises(RecordError, match="5 of 6 steps"):
        _ = Trajectory.open(recorded.folder / "record").stages[0].steps
    pq.write_table(pa.Table.from_pylist(rows[:2] + rows[3:], schema=STEPS_SCHEMA), part)
    with pytest.raises(RecordError, match="step 3 stands where step 2 belongs"):
        _ = Trajectory.open(recorded.folder / "record").stages[0].steps


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return train(tmp_path_factory.mktemp("short"), SGD3[:1], every=2)


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
def test_no_damage_to_a_part_file_escapes_as_another_error(
    short: Recorded, place: float, flip: int
) -> None:
    """A byte changed (flip > 0) or everything behind it cut off (flip = 0)."""
    part = short.folder / "record" / "00-one" / "steps-000000.parquet"
    whole = part.read_bytes()
    at = int(place * len(whole))
    part.write_bytes(
        whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :] if flip else whole[:at]
    )
    try:
        with contextlib.suppress(EvidenceError):
            _ = Trajectory.open(short.folder / "record").stages[0].steps
    finally:
        part.write_bytes(whole)


@pytest.mark.parametrize("name", ["seconds", "loss", "without_gradient"])
def test_a_part_file_lacks_no_column(tmp_path: Path, name: str) -> None:
    recorded = train(tmp_path, SGD3)
    part = recorded.folder / "record" / "00-one" / "steps-000000.parquet"
    pq.write_table(pq.read_table(part).drop_columns([name]), part)
    with pytest.raises(RecordError, match="cannot be read"):
        _ = Trajectory.open(recorded.folder / "record").stages[0].steps
