"""S6 and S7: reports that show something else than was signed, sealed with the auditor's own key."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import world as w
from hostile_pdf import (
    Writer,
    opens_a_script,
    second_results,
    signing_with,
    stamp_over_the_page,
)
from sample_packet import (
    certified,
    packet_files,
    packet_result,
    trusting,
    without_pdf,
    write_packet,
)
from weasyprint import HTML

from auditspec.artifacts.digest import digest_bytes
from auditspec.errors import NotRebuiltError
from auditspec.report.exports import Source
from auditspec.sign.pdf import sign_pdf
from auditspec.sign.signer import KeySigner
from auditspec.verification.verifier import verify_all

pytestmark = pytest.mark.threat
PAGE, PDF = "report.html", "report.pdf"
TRUST = trusting(KeySigner(w.AUDITOR.key))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A packet without a PDF."""
    return write_packet(tmp_path / "packet", w.AUDITOR.signer, result=packet_result(seed=1))


def replacing(old: str, new: str) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old.encode(), new.encode())


PAGES = {
    "a style that hides": replacing(
        "</style>", "main{display:none}body::before{content:'CLEARED'}</style>"
    ),
    "stage names swapped in prose": lambda data: (
        data.replace(b"relabel", b"\0").replace(b"refresh", b"relabel").replace(b"\0", b"refresh")
    ),
    "a number hidden, another beside": replacing("<data ", "0.00 <data hidden "),
    "a script": replacing("</body>", "<script>document.body.textContent='CLEARED'</script></body>"),
    "a remote image": replacing("<main>", '<main><img src="https://example.org/x.png" alt="">'),
    "a style on an element": replacing(
        '<section id="opinion">', '<section id="opinion" style="opacity:0">'
    ),
    "a comment": replacing("<main>", "<main><!-- cleared -->"),
    "another chart": replacing("<path ", '<path opacity="0" '),
    "another policy of contents": replacing("default-src", "default-src *; x"),
    "white space at the end": lambda data: data + b"\n",
    "another page": lambda data: b"<!doctype html><title>CLEARED</title>",
}


@pytest.mark.parametrize("name", PAGES)
def test_s6_a_page_that_hides_what_was_signed(page: Path, name: str) -> None:
    w.edit(page, PAGE, PAGES[name])
    w.reseal(page)
    w.fails(page, "rebuild", TRUST, said="report.html is not what results and spec give")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("evidence.json", lambda data: b"[]\n"),
        ("evidence.json", lambda data: data.replace(b"declared", b"verified")),
        ("spec.lock.json", lambda data: data.replace(b"sha256:", b"sha256:00", 1)),
        ("results.json", lambda data: data.replace(b"{", b"{ ", 1)),
        ("results.json", lambda data: json.dumps(json.loads(data)).encode()),
        ("spec.resolved.json", lambda data: data.replace(b"reading digits", b"reading words")),
        ("spec.resolved.json", lambda data: data + b" "),
    ],
)
def test_s6_files_beside_the_reports(
    page: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    w.edit(page, name, change)
    w.reseal(page)
    w.fails(page, "rebuild", TRUST, said=f"{name} is not what results and spec give")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Report.html",
            "report.pdf.exe",
            "REPORT.HTML",
            "results.json ",
            "report.html.",
            "\uff52eport.html",
        ),
        *(
            "r\u0435port.html",
            "re\u0301port.html",
            "r\u00e9port.html",
            "report\u2024html",
            "desktop",
            "a b.html",
        ),
        *("results.json.bak", "\u017fpec.yaml", "Spec.yaml", "report.htm\u2113"),
    ],
)
def test_s6_a_name_that_reads_like_another(page: Path, name: str) -> None:
    (page / name).write_bytes(b"<p>CLEARED</p>")
    w.reseal(page)
    w.fails(page, "files-listed", TRUST)


@pytest.mark.parametrize("name", ["report2.html", "readme.txt", "report.pdf", "notes.exe"])
def test_s6_a_file_that_nothing_asks_for(page: Path, name: str) -> None:
    (page / name).write_bytes(b"%PDF-1.7 CLEARED")
    w.reseal(page)
    w.fails(page, "rebuild", TRUST, said=f"{name} does not follow from results and spec")


def test_s6_another_renderer_is_never_valid(page: Path) -> None:
    """Whoever lies about what drew the page gets its numbers compared, and no more."""
    result = without_pdf(packet_result(seed=1))
    other = result.run.renderer | {"jinja2": "2.0"}
    result = result.model_copy(update={"run": result.run.model_copy(update={"renderer": other})})
    (page / "results.json").write_bytes(Source(result).data)
    w.edit(page, PAGE, PAGES["a style that hides"])
    w.reseal(page)
    found = verify_all(page, TRUST)
    assert isinstance(found.error, NotRebuiltError) and found.error.exit_code == 8
    assert found.summary.startswith("not rebuilt") and "valid" not in found.summary
    (step,) = (step for step in found.steps if step.name == "rebuild")
    assert step.outcome == "weaker" and "jinja2 2.0 there" in step.detail
    w.edit(page, PAGE, replacing('data-ref="', 'data-ref="/run'))
    w.reseal(page)
    w.fails(page, "rebuild", TRUST, said="report.html")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"train:cross_entropy"', b'"train:other"'),
        (b'"discloses": false', b'"discloses": true'),
        (b'"resampling": false', b'"resampling": true'),
    ],
    ids=["an objective", "a check's role", "a check's kind"],
)
def test_s6_a_page_is_of_these_results_and_no_others(page: Path, old: bytes, new: bytes) -> None:
    """Results hold more than any section shows; the page names their digest."""
    w.edit(page, "results.json", lambda data: data.replace(old, new, 1))
    w.reseal(page)
    w.fails(page, "rebuild", TRUST, said="report.html")


def test_s6_a_spec_that_is_none(page: Path) -> None:
    result = without_pdf(packet_result(seed=1))
    (page / "spec.yaml").write_bytes(spec := b"cleared: true\n")
    run = result.run.model_copy(update={"spec_digest": digest_bytes(spec)})
    (page / "results.json").write_bytes(Source(result.model_copy(update={"run": run})).data)
    w.reseal(page)
    w.fails(page, "rebuild", TRUST, said="spec.yaml is not a spec")


@pytest.mark.parametrize("hostile", [opens_a_script, stamp_over_the_page, second_results])
def test_s7_more_than_a_signature_in_the_pdf(
    world: w.World,
    packet: Path,
    monkeypatch: pytest.MonkeyPatch,
    hostile: Callable[[Writer], None],
) -> None:
    """The other kinds, one by one: tests/sign/test_pdf_changes.py."""
    credentials = world.credentials()
    rendered = packet_files(certified(credentials), pdf=True)[PDF]
    signing_with(monkeypatch, hostile)
    (packet / PDF).write_bytes(sign_pdf(rendered, credentials))
    w.reseal(packet)
    w.fails(packet, "pdf-signature", said="there is more than a signature")


def test_s7_another_pdf_under_a_good_signature(world: w.World, packet: Path) -> None:
    other = HTML(string="<title>t</title><p>CLEARED</p>").write_pdf()
    (packet / PDF).write_bytes(sign_pdf(other, world.credentials()))
    w.reseal(packet)
    w.fails(packet, "rebuild", said="report.pdf: its attachments cannot be read")
