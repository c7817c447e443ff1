"""What every export must keep, and a plug-in that adds one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from factories import SPEC_TEXT, write_spec
from packet_fixtures import signer, trust
from plugged import install
from sample_packet import RESOLVED, SPEC, packet_result

from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.manifest import check_name
from auditspec.cli.main import main
from auditspec.errors import NotRebuiltError, UsageError
from auditspec.flow import write_packet
from auditspec.report.exports import EXPORTS, Export, MisreportedError, Source, chosen, exports
from auditspec.report.renderer import renderer
from auditspec.results import AuditResult
from auditspec.sign.contents import accompanying_files
from auditspec.sign.packet import ENVIRONMENT, LOCK, REQUIRED, SIDECARS, PacketWriter, file_names
from auditspec.sign.packet import RESOLVED as RESOLVED_FILE
from auditspec.sign.packet import SPEC as SPEC_FILE
from auditspec.sign.signer import KeySigner
from auditspec.spec.models import Spec
from auditspec.spec.source import load
from auditspec.verification.trust import Trust
from auditspec.verification.verifier import verify_all

__all__ = ["signer", "trust"]

PLUGGED = '''
from auditspec.report.exports import Export


class Csv(Export):
    """Effects as a table."""

    name = "csv"
    file = "effects.csv"
    media_type = "text/csv"

    def render(self, source):
        lines = [f"{e.behavior},{e.stage},{e.value!r}" for e in source.result.effects]
        return "\\n".join(["behavior,stage,effect", *lines, ""]).encode()
'''
NAMES = (*(export.name for export in EXPORTS), "csv")


@pytest.fixture(autouse=True)
def _plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"exports": {"csv": "effects_as_csv:Csv"}}
    install(tmp_path / "site", monkeypatch, {"effects_as_csv": PLUGGED}, points)


@pytest.fixture(scope="module")
def sources() -> tuple[Source, Source]:
    """The same results twice: the second time read from the first one's results.json."""
    first = Source(packet_result())
    return first, Source(AuditResult.model_validate_json(first.data), first.data)


def spec_for(name: str) -> bytes:
    return SPEC + f"report: {{formats: [{name}]}}\n".encode()


def about(source: Source, name: str) -> Source:
    """The results of an audit whose spec asks for one export, where all of these plug-ins are installed."""
    digest = digest_bytes(spec_for(name))
    run = source.result.run.model_copy(update={"spec_digest": digest, "renderer": renderer()})
    return Source(source.result.model_copy(update={"run": run}))


def packet_with(name: str, folder: Path, source: Source, signer: KeySigner) -> Path:
    """A signed packet whose spec asks for one export."""
    with PacketWriter(folder) as packet:
        packet.write(SPEC_FILE, spec_for(name))
        for file, data in accompanying_files(source.result, RESOLVED, [name]).items():
            packet.write(file, data)
        packet.write_exports(source, chosen([name]), None)
        packet.seal(signer, source.result)
    return folder


def test_names_and_files_are_told_apart() -> None:
    every = list(exports().values())
    assert [export.name for export in every] == list(NAMES)
    files = [export.file for export in every]
    assert len(set(files)) == len(files)
    assert set(files) & {*REQUIRED, LOCK, *SIDECARS} == {"results.json"}
    assert {export.name for export in every if export.default} == {"html", "pdf"}
    assert {export.name for export in every if export.pades} == {"pdf"}


@pytest.mark.parametrize("name", NAMES)
def test_an_export_keeps_the_interface(name: str) -> None:
    export = exports()[name]
    assert type(export).__doc__
    check_name(export.file, export.file)
    assert re.fullmatch(r"[a-z]+/[\w.+-]+", export.media_type)
    assert export.file in file_names()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_results_give_the_same_bytes(name: str, sources: tuple[Source, Source]) -> None:
    first, second = (source.rendered(exports()[name]) for source in sources)
    assert first and first == second


@pytest.mark.parametrize("name", NAMES)
def test_the_packet_lists_it_and_verify_reads_it_back(
    name: str, tmp_path: Path, sources: tuple[Source, Source], signer: KeySigner, trust: Trust
) -> None:
    source, file = about(sources[0], name), exports()[name].file
    folder = packet_with(name, tmp_path / "p", source, signer)
    verification = verify_all(folder, trust)
    assert verification.error is None
    (step,) = [step for step in verification.steps if step.name == "rebuild"]
    assert step.outcome == "pass" and file in step.detail
    assert (folder / file).read_bytes() == source.rendered(exports()[name])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "json"])
def test_a_file_about_other_results_is_refused(name: str, sources: tuple[Source, Source]) -> None:
    export = exports()[name]
    result = sources[0].result
    run = result.run.model_copy(update={"gradients": 123456789})
    effects = tuple(e.model_copy(update={"value": e.value + 1}) for e in result.effects)
    other = Source(result.model_copy(update={"run": run, "effects": effects}))
    with pytest.raises(MisreportedError):
        export.read_back(sources[0].rendered(export), other)
    with pytest.raises(MisreportedError):
        export.read_back(b"\xff", sources[0])


@pytest.mark.parametrize("name", NAMES)
def test_render_makes_it(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sources: tuple[Source, Source],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results.json").write_bytes(sources[0].data)
    monkeypatch.delitem(sys.modules, "auditspec.cli.report", raising=False)
    argv = ["auditspec", "render", "results.json", "--out", "out", "--format", name]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        main()
    file = exports()[name].file
    assert (ended.value.code, capsys.readouterr().out) == (0, f"out/{file}\n")
    assert Path("out", file).read_bytes() == sources[0].rendered(exports()[name])


def test_a_verifier_without_the_plug_in_says_what_it_did_not_read(
    tmp_path: Path,
    sources: tuple[Source, Source],
    signer: KeySigner,
    trust: Trust,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = packet_with("csv", tmp_path / "p", about(sources[0], "csv"), signer)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path / "site")])
    verification = verify_all(folder, trust)
    assert isinstance(verification.error, NotRebuiltError)
    (step,) = [step for step in verification.steps if step.name == "rebuild"]
    assert step.outcome == "weaker"
    assert "nothing in effects.csv, which no export here makes" in step.detail


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="no export is named 'htlm'") as caught:
        chosen(["htlm"])
    assert "did you mean 'html'?" in str(caught.value)


class Broken(Export):
    """Fails."""

    name = "broken"
    file = "broken.txt"
    media_type = "text/plain"

    def render(self, source: Source) -> bytes:
        raise ZeroDivisionError("of course")


def test_a_plug_in_that_fails_is_an_error_that_names_it(sources: tuple[Source, Source]) -> None:
    with pytest.raises(UsageError, match=r"plug-in .broken. .*: ZeroDivisionError: of course"):
        sources[0].rendered(Broken())


@pytest.mark.parametrize(
    ("formats", "files"),
    [
        ("", {"report.html", "report.pdf"}),
        ("report:\n  formats: [json]\n", set()),
        ("report:\n  formats: [csv, html]\n", {"report.html", "effects.csv"}),
    ],
)
def test_a_packet_holds_what_the_spec_asks_for(
    formats: str, files: set[str], tmp_path: Path
) -> None:
    loaded = load(write_spec(tmp_path, SPEC_TEXT + formats))
    with PacketWriter(tmp_path / "p") as packet:
        write_packet(packet, packet_result(), loaded)
    present = {path.name for path in (tmp_path / "p").iterdir()}
    assert present == {*REQUIRED, LOCK, ENVIRONMENT, *files}
    resolved = Spec.model_validate_json((tmp_path / "p" / RESOLVED_FILE).read_bytes())
    assert {exports()[name].file for name in resolved.report.formats or ()} - {*REQUIRED} == files
