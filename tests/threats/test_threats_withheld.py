"""Threats by whoever hands on a packet and withholds from it: anyone can withhold, nobody can swap.

The attacker has the whole packet, every salt of it, and no key.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import world as w
from sample_packet import packet_files, packet_result, trusting, write_packet

from auditspec.report.exports import Source, exports
from auditspec.report.exports.html_page import render_html
from auditspec.report.view import build
from auditspec.sign import keys, redaction, salts
from auditspec.sign.disclosure import FILE, Disclosure, committed, salted
from auditspec.sign.packet import read_results
from auditspec.sign.signer import KeySigner
from auditspec.verification.trust import Trust
from auditspec.verification.verifier import verify, verify_all
from auditspec.withheld import leaves, marker

pytestmark = pytest.mark.threat
SIGNER = KeySigner(keys.generate("ed25519"))
TRUST = trusting(SIGNER)
LAX = replace(TRUST, never_withheld=())
LEVEL = "/paths/0/levels/0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("withheld") / "packet"
    write_packet(folder, SIGNER, result=packet_result())
    (folder / "report.pdf").unlink()  # as whoever withholds may; it takes seconds
    salt = Disclosure.decode((folder / FILE).read_bytes())
    files = {name: value for name, value in salt.files.items() if name != "report.pdf"}
    (folder / FILE).write_bytes(salt.model_copy(update={"files": files}).encode())
    return folder


def document(packet: Path) -> Any:
    return json.loads((packet / "results.json").read_bytes())


def handed_on(
    whole: Path, folder: Path, *pointers: str, tamper: Callable[[Any], None] | None = None
) -> Path:
    """A packet without some leaves, with reports that show what is left; `tamper` changes what is left."""
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    disclosure = Disclosure.decode(files[FILE])
    redacted = redaction.withhold(files, disclosure, pointers, "a trade secret")
    packet = Path(shutil.copytree(whole, folder))
    for name in ("spec.yaml", "spec.lock.json", "spec.resolved.json"):
        if name not in redacted.files:
            (packet / name).unlink()
    left = copy.deepcopy(redacted.document)
    if tamper:
        tamper(left)
    data = redaction.encode_results(left)
    (packet / "results.json").write_bytes(data)
    if "evidence.json" not in redacted.files:
        (packet / "evidence.json").write_bytes(redaction.encode_evidence(left))
    (packet / FILE).write_bytes(redacted.disclosure.encode())
    try:
        source = Source(read_results(left, "results.json"), data)
        (packet / "report.html").write_bytes(source.rendered(exports()["html"]))
    except Exception:
        assert tamper
    return packet


def test_t33_whoever_withholds_needs_no_key_and_is_told_of(whole: Path, tmp_path: Path) -> None:
    packet = handed_on(whole, tmp_path / "less", LEVEL)
    found = verify(packet, TRUST)
    assert found.summary == "valid: signed by Signer 0 (auditor); 1 value and 1 file withheld"
    assert found.withheld == (LEVEL, "report.pdf")
    steps = {step.name: step for step in found.steps}
    assert steps["withheld"].detail == LEVEL
    assert "2 drawn again; not re-derived: " in steps["conclusions"].detail
    unknown = verify_all(packet, None)
    assert unknown.summary.startswith("intact, but the signer is unknown; 1 value")


@pytest.mark.parametrize(
    "pointers",
    [
        ("/verdicts", "/findings", "/gate/reasons"),
        ("/verdicts", "/findings"),
        ("/verdicts", "/findings", "/gate", "/parties"),
        ("/verdicts/0", "/findings"),
    ],
    ids=range(4),
)
def test_s2_an_outcome_that_is_withheld_is_no_other_outcome(
    whole: Path, tmp_path: Path, pointers: tuple[str, ...]
) -> None:
    """Nobody reads "inconclusive", or that there was no verdict, where one was withheld."""
    packet = handed_on(whole, tmp_path / "less", *pointers)
    w.fails(packet, "withheld", TRUST, said="the trust policy does not allow")
    found = verify(packet, LAX)
    assert re.fullmatch(r"valid: signed by .*; [\d,]+ values and \d files? withheld", found.summary)
    before, page = (
        re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (folder / "report.html").read_text()))
        for folder in (whole, packet)
    )
    for phrase in ("No verdict was recorded", "Inconclusive"):
        assert page.count(phrase) <= before.count(phrase), phrase
    assert "withheld" in page.lower()


def put(pointer: str, value: Any) -> Callable[[Any], None]:
    def change(left: Any) -> None:
        *path, last = pointer.split("/")[1:]
        for key in path:
            left = left[int(key)] if isinstance(left, list) else left[key]
        left[int(last) if isinstance(left, list) else last] = value

    return change


def swap(one: str, two: str) -> Callable[[Any], None]:
    def change(left: Any) -> None:
        values = dict(leaves(left))
        first, second = values[one], values[two]
        put(one, second)(left)
        put(two, first)(left)

    return change


def cut(pointer: str) -> Callable[[Any], None]:
    def change(left: Any) -> None:
        for key in pointer.split("/")[1:]:
            left = left[int(key)] if isinstance(left, list) else left[key]
        left.pop()

    return change


@pytest.mark.parametrize(
    ("withheld", "tamper"),
    [
        (LEVEL, put("/paths/0/levels/1", 0.5)),  # another value elsewhere
        (LEVEL, put(LEVEL, 0.5)),  # a second opening of the withheld leaf
        (LEVEL, put(LEVEL, None)),
        (LEVEL, put(LEVEL, marker("0" * 64, "r"))),  # another commitment
        ("/paths/0/levels", swap("/paths/0/levels/0", "/paths/0/levels/1")),  # two withheld leaves
        (LEVEL, swap(LEVEL, "/paths/0/levels/1")),  # a withheld and an open one
        ("/paths/0/levels", cut("/paths/0/levels")),  # a withheld leaf dropped
        (LEVEL, cut("/paths/0/levels")),  # an open leaf dropped
        (LEVEL, cut("/findings")),
        (LEVEL, put("/paths/0/levels", marker("0" * 64, "r"))),  # a list as one leaf
        (LEVEL, put("/behaviors/0/examples", "53")),  # another type
        (LEVEL, put("/behaviors/0/examples", 53.0)),
        (LEVEL, put("/system/extra", marker("0" * 64, "r"))),  # an unknown pointer
        (LEVEL, put("/vocabulary", {"x": "y"})),
        (LEVEL, put("/audit/id", marker("0" * 64, "r"))),  # what names the packet
        (LEVEL, put("/run/created", marker("0" * 64, "r"))),
    ],
)
def test_t34_nobody_can_swap(
    whole: Path, tmp_path: Path, withheld: str, tamper: Callable[[Any], None]
) -> None:
    packet = handed_on(whole, tmp_path / "less", withheld, tamper=tamper)
    w.fails(packet, "results-consistent", LAX)


def test_t34_proofs_for_another_packet(whole: Path, tmp_path: Path) -> None:
    packet = handed_on(whole, tmp_path / "less", LEVEL)
    other = Disclosure.fresh(packet_files(packet_result(), pdf=False))
    salt = Disclosure.decode((packet / FILE).read_bytes())
    foreign = salts.narrowed(other.known(document(whole)), [0])
    for seeds in (
        [part.seed.hex() for part in foreign][: len(salt.seeds)],
        salt.seeds[:-1],
        [*salt.seeds, "0" * 64],
        [],
        salt.seeds[::-1],
    ):
        (packet / FILE).write_bytes(salt.model_copy(update={"seeds": seeds}).encode())
        w.fails(packet, "results-consistent", LAX)


@pytest.mark.parametrize(
    "pointer",
    ["/verdicts", "/verdicts/0/verdict", "/verdicts/2/statement", "/gate/passed", "/gate/reasons"],
)
def test_t35_what_the_policy_wants_to_see(whole: Path, tmp_path: Path, pointer: str) -> None:
    pointers = [pointer]
    if pointer == "/verdicts/0/verdict":
        pointers.append("/findings/0/verdict")
    if pointer == "/verdicts/2/statement":
        pointers = ["/verdicts/2"]
    packet = handed_on(whole, tmp_path / "less", *pointers)
    w.fails(packet, "withheld", TRUST, said="the trust policy does not allow")
    assert verify(packet, LAX).summary.startswith("valid")
    wants = replace(TRUST, never_withheld=("/*/0",))
    w.fails(handed_on(whole, tmp_path / "b", LEVEL), "withheld", wants, said="(/*/0)")


def test_t35_failed_checks(whole: Path, tmp_path: Path) -> None:
    checks = document(whole)["checks"]
    passed = next(i for i, check in enumerate(checks) if check["outcome"] == "pass")
    failed = next(i for i, check in enumerate(checks) if check["outcome"] != "pass")
    verify(handed_on(whole, tmp_path / "a", f"/checks/{passed}/statistic"), TRUST)
    for number, pointer in enumerate((f"/checks/{failed}/statistic", f"/checks/{passed}")):
        packet = handed_on(whole, tmp_path / f"b{number}", pointer)
        w.fails(packet, "withheld", TRUST, said="failed-checks")


def test_t35_a_silent_trust_file_asks_for_the_default(tmp_path: Path) -> None:
    keys.write_public(tmp_path / "a.pub", SIGNER.public_key)
    text = 'auditspec_trust: "1"\nkeys: [{name: A, role: auditor, key: a.pub}]\nrequire: {auditor: 1}\n'
    (tmp_path / "trust.yaml").write_text(text)
    silent = Trust.read(tmp_path / "trust.yaml").never_withheld
    assert silent == ("/verdicts", "/gate", "failed-checks")
    (tmp_path / "trust.yaml").write_text(f"{text}never_withheld: [/evidence/*/state]\n")
    assert Trust.read(tmp_path / "trust.yaml").never_withheld == ("/evidence/*/state",)


def test_t36_a_report_that_tells_something_else(whole: Path, tmp_path: Path) -> None:
    packet = handed_on(whole, tmp_path / "less", "/verdicts", "/findings", "/gate/reasons")
    page = (packet / "report.html").read_text()
    assert "Inconclusive" not in re.sub(
        r"(?s)<section id=\"(reading|checks|glossary).*?</section>", "", page
    )
    assert "3 × " in page and "Withheld" in page and "No verdict was recorded" not in page
    assert verify(packet, LAX).summary.startswith("valid")
    for lie in (("Withheld", "Cleared"), ("</body>", "<p>CLEARED</p></body>"), (" ", "  ")):
        (packet / "report.html").write_text(page.replace(*lie))
        w.fails(packet, "rebuild", LAX)
    (packet / "report.html").write_bytes((whole / "report.html").read_bytes())
    w.fails(packet, "rebuild", LAX)


@pytest.mark.parametrize("name", ["results.json", "evidence.json"])
def test_t36_other_bytes_of_the_same_values(whole: Path, tmp_path: Path, name: str) -> None:
    packet = handed_on(whole, tmp_path / "less", "/evidence/0/path")
    w.edit(packet, name, lambda data: data + b"\n")
    w.fails(packet, "results-consistent", LAX, said=name)


def test_t36_files_of_ones_own(whole: Path, tmp_path: Path) -> None:
    packet = handed_on(whole, tmp_path / "less", "/evidence/0/path")
    (packet / "spec.yaml").write_bytes(b"auditspec: 1\n")
    w.fails(packet, "digests", LAX, said="spec.yaml")


def test_t37_a_withheld_value_cannot_be_guessed(whole: Path, tmp_path: Path) -> None:
    """Who is named: of few values one; none of them gives anything that is in the packet."""
    packet = handed_on(whole, tmp_path / "less", "/verdicts/0")
    there = b"".join(path.read_bytes() for path in packet.iterdir())
    there += w.envelope_of(packet).payload
    salt = Disclosure.decode((packet / FILE).read_bytes())
    known = [part.seed for part in salt.known(document(packet))]
    for value in ("attributed", "shared", "absent", "no-effect", "inconclusive"):
        for key in (b"", *known):
            assert committed(key, value).encode() not in there
    original = (whole / "results.json").read_bytes()
    assert not [s for s in ("", *salt.files.values()) if salted(s, original).encode() in there]


SHAPES = {
    re.sub(r"/\d+", "/*", pointer): pointer
    for pointer, _ in leaves(json.loads(packet_result().model_dump_json()))
}


@pytest.mark.slow
def test_t38_whatever_is_withheld_the_report_says_so() -> None:
    """Every kind of leaf: the page is drawn, says `withheld`, and nothing that is built breaks or reads it as a value."""
    before = json.loads(packet_result().model_dump_json())
    for pointer in SHAPES.values():
        if redaction.is_never_withheld(pointer):
            continue
        left = copy.deepcopy(before)
        put(pointer, marker("0" * 64, "a trade secret"))(left)
        result = read_results(left, "results.json")
        told = [fact for section in build(result).sections for fact in section.withheld]
        assert any(pointer in str(fact.value) for fact in told), pointer


@pytest.mark.parametrize(
    "pointer", ["/behaviors/0/value", "/verdicts/0/confidence", "/effects/0/value"]
)
def test_t38_a_withheld_number_is_no_number(pointer: str) -> None:
    left = json.loads(packet_result().model_dump_json())
    put(pointer, marker("0" * 64, "a trade secret"))(left)
    page = render_html(read_results(left, "results.json"))
    assert f'data-ref="{pointer}"' not in page and "withheld" in page.lower()
