"""`auditspec limit`: what is printed is what was proposed; wrong input is one clear error."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from small_audit import edit_code, edit_spec

from auditspec.cli.main import main
from auditspec.report.numbers import level, unit_of
from auditspec.report.words import plain


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Ran]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], audit_spec: Path
) -> Call:
    monkeypatch.chdir(audit_spec.parent)

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["auditspec", "limit", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        text, progress = capsys.readouterr()
        return Ran(int(caught.value.code or 0), text, progress)

    return run


def test_text_and_json_say_the_same(call: Call, audit_spec: Path) -> None:
    shutil.copy(audit_spec.parent / "model.safetensors", audit_spec.parent / "one.safetensors")
    shutil.copy(audit_spec.parent / "model.safetensors", audit_spec.parent / "two.safetensors")
    clean = ["--clean", "one.safetensors", "--clean", "two.safetensors"]
    text, data = call("audit.yaml", *clean), call("audit.yaml", *clean, "--format", "json")
    assert (text.code, data.code) == (0, 0)
    found = json.loads(data.out)
    assert [f["behavior"] for f in found] == ["zero-as-two", "control"]
    for fact in found:
        assert f"{fact['behavior']}: limit {fact['limit']:.4g}" in text.out
        assert plain(level(fact["deployed"], "", unit_of(fact["unit"]))) in text.out
        assert fact["source"] == "clean models"
        assert [level["name"] for level in fact["levels"]] == ["one.safetensors", "two.safetensors"]
        assert fact["mean"] == pytest.approx(fact["deployed"])
        assert fact["spread"] == pytest.approx(0)
        assert fact["limit"] == pytest.approx(fact["mean"] + fact["tolerance"])
    assert "executing small_training.py" in text.err
    assert "executing" not in text.out


def test_a_limit_of_the_run_itself_says_what_it_cannot_tell(call: Call) -> None:
    ran = call("audit.yaml")
    assert ran.code == 0
    assert ran.out.count("from the run itself: 1 level,") == 2
    assert (
        ran.out.count("a fault in the initial weights or the first stage would be in it too") == 2
    )
    assert "standard deviation" not in ran.out


def test_a_proposed_limit_can_be_stated_as_it_is(call: Call, audit_spec: Path) -> None:
    from auditspec.spec.source import load

    (fault, _) = json.loads(call("audit.yaml", "--format", "json").out)
    edit_spec(audit_spec, lambda data: data["behaviors"][0]["concern"].update(limit=fault["limit"]))
    assert load(audit_spec).spec.behaviors[0].concern.limit == fault["limit"]


def test_errors_have_their_exit_code_and_no_traceback(call: Call, audit_spec: Path) -> None:
    folder = audit_spec.parent
    (folder / "bad.safetensors").write_bytes(b"no weights")
    for arguments, code, said in (
        (("none.yaml",), 2, "none.yaml"),
        (("audit.yaml", "--clean", "none.safetensors"), 2, "none.safetensors"),
        (("audit.yaml", "--clean", "bad.safetensors"), 3, "bad.safetensors"),
    ):
        ran = call(*arguments)
        assert (ran.code, ran.out) == (code, "")
        assert said in ran.err
        assert "Traceback" not in ran.err
    edit_code(audit_spec, "    return model(batch[0])", "    return model(batch[7])")
    ran = call("audit.yaml")
    assert ran.code == 4
    assert "small_training.py" in ran.err
    assert "Traceback" not in ran.err
    (folder / "vendor.parquet").unlink()
    assert call("audit.yaml").code == 3
