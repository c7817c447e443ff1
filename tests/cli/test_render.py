"""`auditspec render`: reports from results.json, and every way in which it refuses."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pypdf
import pytest
from sample_results import sample_result, signed_result

from auditspec.artifacts.digest import digest_bytes
from auditspec.cli.main import main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """Run `auditspec render` in a folder that holds results.json; gives code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.json").write_text(signed_result().model_dump_json(indent=1))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["auditspec", "render", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(str(caught.value.code)), captured.out, captured.err

    return run


def test_both_reports_are_written_and_named(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("results.json", "-o", "new/folder")
    assert code == 0
    assert out.splitlines() == ["new/folder/report.html", "new/folder/report.pdf"]
    reader = pypdf.PdfReader(tmp_path / "new/folder/report.pdf")
    assert reader.attachments["results.json"] == [(tmp_path / "results.json").read_bytes()]
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == [
        "report.html",
        "report.pdf",
    ]


def test_a_copy_is_unsigned_even_where_the_packet_was_signed(call: Call, tmp_path: Path) -> None:
    assert call("results.json", "-o", ".", "--format", "html")[0] == 0
    assert "UNSIGNED" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "report.pdf").exists()


def test_a_signed_packet_is_never_changed(call: Call, tmp_path: Path) -> None:
    (tmp_path / "packet.dsse.json").write_text("{}")
    code, out, err = call("results.json", "-o", ".", "--force")
    assert (code, out) == (2, "")
    assert "holds a signed packet" in err
    assert not (tmp_path / "report.html").exists()


def test_nothing_is_overwritten_without_force(call: Call, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    code, _, err = call("results.json", "-o", ".")
    assert code == 2 and "report.html: exists already" in err and "--force" in err
    assert (tmp_path / "report.html").read_text() == "mine"
    assert not (tmp_path / "report.pdf").exists()
    assert call("results.json", "-o", ".", "--format", "html", "--force")[0] == 0
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"run":\n  nonsense}', "bad.json:2:3: not JSON"),
        (b"", "bad.json:1:1: not JSON"),
        (b"\xff\xfe\x00", "bad.json: not JSON"),
        (b"[" * 100_000, "bad.json"),
        (b"{}", "bad.json: run: Field required"),
        (b"[]", "bad.json"),
        (b'{"auditspec_results": "1", "auditspec_results": "1"}', "stands twice"),
        (b'{"auditspec_results": "1"}', "bad.json is of format auditspec-results-1"),
    ],
)
def test_bad_results_are_refused_with_their_place(
    call: Call, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    code, out, err = call("bad.json", "-o", "out")
    assert (code, out) == (2, "")
    assert message in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_is_named(call: Call, tmp_path: Path) -> None:
    text = sample_result().model_dump_json().replace('"seed":', '"sead":1,"seed":')
    (tmp_path / "bad.json").write_text(text)
    code, _, err = call("bad.json", "-o", "out")
    assert code == 2 and "run.sead" in err


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_what_is_no_file_is_refused(call: Call, name: str) -> None:
    assert call(name, "-o", "out")[0] == 2


def test_a_file_is_no_folder(call: Call, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    code, _, err = call("results.json", "-o", "taken")
    assert code == 2 and "is not a folder" in err


def test_progress_goes_to_stderr_or_nowhere(call: Call) -> None:
    code, out, err = call("results.json", "-o", "out", "--format", "html", "-q")
    assert (code, err) == (0, "")
    assert out == "out/report.html\n"


def test_the_page_is_what_the_library_renders(call: Call, tmp_path: Path) -> None:
    from auditspec.report.exports.html_page import render_html

    data = sample_result().model_dump_json()
    (tmp_path / "results.json").write_text(data)
    call("results.json", "-o", "out", "--format", "html")
    made = io.BytesIO((tmp_path / "out/report.html").read_bytes()).getvalue().decode()
    assert made == render_html(sample_result(), digest_bytes(data.encode()))
    assert digest_bytes(data.encode()) in made
