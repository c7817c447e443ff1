"""Logs of other tools, whole and hostile, become the table that an audit reads."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from auditspec.cli.main import cli
from auditspec.errors import AuditspecError, EvidenceError
from auditspec.score_logs import READERS, inspect_log, lm_eval, rows
from auditspec.score_logs.rows import Scored, Wanted

MODEL = "sha256:" + "a" * 64
BOMB = 2**27
"""Bytes of zeros that pack into next to nothing."""


def sample(example: Any, value: Any, epoch: int = 1, **more: Any) -> dict[str, Any]:
    """One of Inspect's."""
    scores = {"match": {"value": value, "answer": "x", "explanation": None}}
    return {"id": example, "epoch": epoch, "input": "?", "scores": scores} | more


def archive(path: Path, samples: list[dict[str, Any]]) -> Path:
    """A log as Inspect writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("_journal/start.json", "{}")
        for s in samples:
            file.writestr(f"samples/{s['id']}_epoch_{s['epoch']}.json", json.dumps(s))
        file.writestr("header.json", '{"version": 2, "status": "success"}')
    return path


def packed_by_zstandard(path: Path, name: str, data: bytes, said: int | None = None) -> Path:
    """A zip archive with one member by method 93, written by hand (APPNOTE 6.3.10, 4.3)."""
    packed = pa.compress(data, "zstd", asbytes=True)
    size = len(data) if said is None else said
    crc = zlib.crc32(data).to_bytes(4, "little")
    common = b"\0\0" + (93).to_bytes(2, "little") + b"\0\0\0\0" + crc
    common += len(packed).to_bytes(4, "little") + size.to_bytes(4, "little")
    common += len(name).to_bytes(2, "little") + b"\0\0"
    local = b"PK\3\4" + b"\x3f\0" + common + name.encode() + packed
    central = b"PK\1\2" + b"\x3f\0\x3f\0" + common + b"\0" * 14 + name.encode()
    end = b"PK\5\6\0\0\0\0\1\0\1\0" + len(central).to_bytes(4, "little")
    path.write_bytes(local + central + end + len(local).to_bytes(4, "little") + b"\0\0")
    return path


def line(doc: int, acc: Any, **more: Any) -> dict[str, Any]:
    """One of lm-eval's."""
    return {"doc_id": doc, "doc": {}, "filter": "none", "metrics": ["acc"], "acc": acc} | more


def lines(path: Path, samples: list[dict[str, Any]]) -> Path:
    """A file as lm-eval writes it."""
    path.write_text("".join(json.dumps(s) + "\n" for s in samples))
    return path


def test_inspect_logs_are_read_in_every_form(tmp_path: Path) -> None:
    values = {0: "C", 1: "I", 2: "P", 3: "N", 4: 0.25, 5: True, 6: "yes"}
    samples = [sample(k, v) for k, v in values.items()] + [sample(0, "I", 2)]
    expected = [(k, 0, s) for k, s in enumerate((1, 0, 0.5, 0, 0.25, 1, 1))] + [(0, 1, 0)]

    assert [*inspect_log.read(archive(tmp_path / "a.eval", samples), Wanted())] == expected
    (tmp_path / "a.json").write_text(json.dumps({"version": 2, "samples": samples}))
    assert [*inspect_log.read(tmp_path / "a.json", Wanted())] == expected
    data = json.dumps(sample("7", "C")).encode()
    packed = packed_by_zstandard(tmp_path / "z.eval", "samples/7_epoch_1.json", data)
    assert [*inspect_log.read(packed, Wanted(first=1))] == [Scored(6, 0, 1.0)]


def test_lm_eval_lines_are_read_by_metric_and_filter(tmp_path: Path) -> None:
    two = {"metrics": ["acc", "acc_norm"], "acc_norm": 0.0}
    path = lines(tmp_path / "s.jsonl", [line(0, 1.0, **two), line(1, 0.0, **two)])
    assert [*lm_eval.read(path, Wanted("acc"))] == [(0, 0, 1.0), (1, 0, 0.0)]
    with pytest.raises(EvidenceError, match=r"line 1: which score is meant.*acc, acc_norm"):
        [*lm_eval.read(path, Wanted())]
    with pytest.raises(EvidenceError, match="there is no score 'em'"):
        [*lm_eval.read(path, Wanted("em"))]
    filtered = [line(0, 1, filter="strict"), line(0, 0, filter="loose")]
    path = lines(tmp_path / "f.jsonl", filtered)
    assert [*lm_eval.read(path, Wanted(filter="loose"))] == [(0, 0, 0.0)]
    with pytest.raises(EvidenceError, match="line 2: which filter is meant"):
        [*lm_eval.read(path, Wanted())]


def test_the_command_makes_one_table_of_several_models(tmp_path: Path) -> None:
    out, runs = tmp_path / "scores.parquet", []
    for run in range(2):
        runs.append(str(lines(tmp_path / f"{run}.jsonl", [line(1, run), line(0, 1)])))

    def imported(model: str, *more: str) -> Any:
        words = ["scores", "import", "--from", "lm-eval", *runs, "--model", model, "-o", str(out)]
        return CliRunner().invoke(cli, [*words, *more])

    assert imported(MODEL).exit_code == 0
    frame = pd.read_parquet(out)
    assert frame.to_dict("list") == {
        "model": [MODEL] * 4,
        "example": [0, 1, 0, 1],
        "repetition": [0, 0, 1, 1],
        "score": [1.0, 0.0, 1.0, 1.0],
    }
    assert "is there already" in str(imported(MODEL).exception)
    assert "has scores of" in str(imported(MODEL, "--add").exception)
    assert imported("sha256:" + "b" * 64, "--add").exit_code == 0
    assert len(pd.read_parquet(out)) == 8
    assert "no digest" in str(imported("deployed").exception)
    runs.append(str(lines(tmp_path / "t.jsonl", [line(0, 1), line(0, 1)])))
    assert "stands twice" in str(imported("sha256:" + "c" * 64, "--add").exception)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (sample(0, float("nan")), "is no score"),
        (sample(0, "maybe"), "is no score"),
        (sample(0, {"a": 1}), "is no score"),
        (sample(0, None), "is no score"),
        (sample("a", "C"), "is no number of a row"),
        (sample(True, "C"), "is no number of a row"),
        (sample(0, "C", epoch=0), "no number from 1"),
        (sample(0, "C", error={"message": "boom"}), "ended with an error"),
        (sample(0, "C", scores=None), "has no scores"),
    ],
)
def test_samples_without_a_score_are_refused_by_name(
    tmp_path: Path, found: dict[str, Any], told: str
) -> None:
    with pytest.raises(EvidenceError, match=rf"samples/.*{told}"):
        [*inspect_log.read(archive(tmp_path / "a.eval", [found]), Wanted())]


@pytest.mark.parametrize("method", ["deflate", "zstandard", "lying"])
def test_bombs_are_not_unpacked(tmp_path: Path, method: str) -> None:
    path, name = tmp_path / "bomb.eval", "samples/0_epoch_1.json"
    if method == "deflate":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, b" " * BOMB)
    else:
        packed_by_zstandard(path, name, b" " * BOMB, 10 if method == "lying" else None)
    assert path.stat().st_size < 2**20
    with pytest.raises(EvidenceError, match="larger than"):
        [*inspect_log.read(path, Wanted())]


def test_many_small_bombs_are_refused_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "a.eval", [sample(k, "C", input="?" * 1000) for k in range(20)])
    monkeypatch.setattr(inspect_log, "MAX_FILE", path.stat().st_size)
    with pytest.raises(EvidenceError, match="unpacks to more than"):
        next(inspect_log.read(path, Wanted()))


def test_long_lines_and_deep_nests_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"a":' * 100_000)
    with pytest.raises(EvidenceError, match="line 1: not JSON"):
        [*lm_eval.read(path, Wanted())]
    monkeypatch.setattr(lm_eval, "MAX_SAMPLE", 10)
    with pytest.raises(EvidenceError, match="line 1: longer than"):
        [*lm_eval.read(path, Wanted())]
    assert rows.MAX_SAMPLE > 10


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_log_breaks_a_reader(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    tool = data.draw(st.sampled_from(sorted(READERS)))
    good = line(1, 1.0) if tool == "lm-eval" else sample(1, "C")
    keys = data.draw(st.lists(st.sampled_from(sorted(good)), max_size=3))
    broken = good | {key: data.draw(JSON) for key in keys}
    name = "s.jsonl" if tool == "lm-eval" else data.draw(st.sampled_from(["s.json", "s.eval"]))
    buffer = io.BytesIO()
    if name == "s.eval":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("samples/1_epoch_1.json", json.dumps(broken))
    else:
        text = json.dumps(broken) if name == "s.jsonl" else json.dumps({"samples": [broken]})
        buffer.write(text.encode())
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / name
    path.write_bytes(bytes(content))
    try:
        read = [*READERS[tool](path, Wanted())]
    except AuditspecError as error:
        assert error.exit_code == 3
        return
    assert all(scored.example >= 0 and abs(scored.score) < 1e300 for scored in read)
