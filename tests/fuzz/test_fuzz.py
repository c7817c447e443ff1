"""Hostile bytes at every door: the reader gives a value or one deliberate error, soon, and in little memory.

By default 300 cases a door. `make fuzz` runs 50,000 a door, 250,000 and more in all (AUDITSPEC_FUZZ=50000).
Inputs are valid ones with a few edits, so that most get past the first check.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pki
import pytest
import torch
from factories import SPEC_TEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_packet import packet_files, packet_result
from training import train

from auditspec.artifacts.checkpoints import read_tensors, write_tensors
from auditspec.errors import AuditspecError
from auditspec.record.outline import read_header
from auditspec.record.trajectory import Trajectory
from auditspec.report.exports.pdf_text import PdfText, UnreadablePdfError
from auditspec.report.exports.readback import MisreportedError, check_numbers, shown_in_html
from auditspec.sign import certificates, keys, log, timestamps
from auditspec.sign.certificates import Authorities
from auditspec.sign.checkpoint import RefusedLogError
from auditspec.sign.disclosure import Disclosure
from auditspec.sign.dsse import Envelope
from auditspec.sign.floor import RefusedCertificateError
from auditspec.sign.log import Inclusion
from auditspec.sign.pdf import RefusedPdfError, read_signature
from auditspec.sign.signer import KeySigner
from auditspec.sign.statement import PAYLOAD_TYPE, Statement
from auditspec.sign.timestamps import RefusedTimestampError, TimestampAuthority
from auditspec.spec.source import parse

CASES = int(os.environ.get("AUDITSPEC_FUZZ", "300"))
PDF = Path(__file__).parents[1] / "fixtures" / "packets" / "0.1" / "packet" / "report.pdf"
SECONDS = 5
"""Most processor time for one case; a busy machine stops the clock on the wall, not this one."""
MEMORY = 512 * 2**20
"""Most memory that the whole run may add, in bytes."""

fuzzing = settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PIECES = [b"", b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"-", b"0", b"9" * 30, b"1e999", b"NaN", b"null",
          b"\\u0000", b"\xff", b"\0", b"\x80\x04", b"&a ", b"*a", b"!!x ", b"<<: ", b"../", b"=" , b"A" * 200]  # fmt: skip
edits = st.lists(
    st.tuples(
        st.integers(0, 2**20), st.integers(0, 12), st.sampled_from(PIECES) | st.binary(max_size=6)
    ),
    min_size=1,
    max_size=4,
)
Edits = list[tuple[int, int, bytes]]


def edited(data: bytes, made: Edits) -> bytes:
    """`data` with some bytes replaced at some places."""
    for at, length, piece in made:
        place = at % (len(data) + 1)
        data = data[:place] + piece + data[place + length :]
    return data


@pytest.fixture(scope="module", autouse=True)
def _in_little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    added = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert added < MEMORY, f"{added} bytes more than before"


def survives(read: Callable[[], object], *expected: type[Exception]) -> None:
    begun = time.process_time()
    try:
        read()
    except (AuditspecError, *expected):
        pass
    assert time.process_time() - begun < SECONDS


@fuzzing
@given(edits)
def test_the_spec_loader(made: Edits) -> None:
    survives(lambda: parse(edited(SPEC_TEXT.encode(), made), Path("audit.yaml")))


SIGNER = KeySigner(keys.generate("ed25519"))
FILES = packet_files(packet_result(), pdf=False)
STATEMENT = Statement.of(packet_result(), FILES, Disclosure.fresh(FILES)).encode()
SIGNED = Envelope(PAYLOAD_TYPE, STATEMENT).signed_by(SIGNER, [b"certificate"], lambda data: b"time")
ENVELOPE = SIGNED.encode()


@fuzzing
@given(edits)
def test_the_envelope_reader(made: Edits) -> None:
    survives(lambda: Envelope.decode(edited(ENVELOPE, made)))
    survives(lambda: Statement.decode(edited(STATEMENT, made)))


@fuzzing
@given(edits)
def test_the_proof_reader(inclusion: bytes, made: Edits) -> None:
    survives(
        lambda: Inclusion.decode(edited(inclusion, made)).check(log.entry_of(SIGNED), None),
        RefusedLogError,
    )


@pytest.fixture(scope="module")
def inclusion(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return log.append(tmp_path_factory.mktemp("log") / "log", SIGNED, SIGNER).encode()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    write_tensors(path, {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, {"step": "7"})
    return path.read_bytes()


@fuzzing
@given(edits)
def test_the_checkpoint_header(checkpoint: bytes, made: Edits) -> None:
    survives(lambda: read_tensors(edited(checkpoint, made)))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("recorded")).folder / "record"


@fuzzing
@given(edits)
def test_the_record_header(recorded: Path, made: Edits) -> None:
    shutil.copy(recorded / "record.json", recorded / "good")
    try:
        (recorded / "record.json").write_bytes(edited((recorded / "good").read_bytes(), made))
        survives(lambda: read_header(recorded))
    finally:
        shutil.move(recorded / "good", recorded / "record.json")


@settings(fuzzing, max_examples=max(1, CASES // 100))
@given(edits, st.data())
def test_any_file_of_a_record(recorded: Path, made: Edits, data: st.DataObject) -> None:
    """Steps, states, and manifest too; slower, since the whole record is read each time."""
    files = sorted(p for p in recorded.rglob("*") if p.is_file())
    path = data.draw(st.sampled_from(files))
    good = path.read_bytes()

    def everything() -> None:
        for stage in Trajectory.open(recorded).stages:
            assert stage.steps is not None
            assert stage.first is not None and stage.last is not None

    try:
        path.write_bytes(edited(good, made))
        survives(everything)
    finally:
        path.write_bytes(good)


ROOT = pki.root()
CERTIFICATE = ROOT.issue("Lead auditor").der
TRUSTED = Authorities((ROOT.der,), (ROOT.crl(),))


@fuzzing
@given(edits)
def test_the_certificate_reader(made: Edits) -> None:
    def judged() -> None:
        chain = certificates.load_der([edited(CERTIFICATE, made)])
        certificates.subject(chain[0])
        certificates.judge(chain, TRUSTED, pki.NOW)

    survives(judged, RefusedCertificateError)


REPORT, RESULTS = PDF.with_name("report.html"), PDF.with_name("results.json")


@fuzzing
@given(edits, st.integers(0, 2**20))
def test_the_numbers_of_a_report(made: Edits, start: int) -> None:
    """A part of a report at a time: any stranger's bytes are read before a signature is looked at."""
    html, results = REPORT.read_text(encoding="utf-8"), json.loads(RESULTS.read_bytes())
    start %= len(html)
    part = edited(html[start : start + 4000].encode(), made).decode("utf-8", "replace")
    survives(lambda: check_numbers(shown_in_html(part), results), MisreportedError)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tsa") / "tsa"
    with pki.serving(pki.timestamping(ROOT), folder) as url:
        return TimestampAuthority(url).stamp(b"data")


@fuzzing
@given(edits)
def test_the_timestamp_reader(token: bytes, made: Edits) -> None:
    survives(lambda: timestamps.check(edited(token, made), b"data", TRUSTED), RefusedTimestampError)


@settings(fuzzing, max_examples=max(1, CASES // 20))
@given(edits)
def test_the_pdf_reader(made: Edits) -> None:
    pdf = edited(PDF.read_bytes(), made)
    survives(lambda: read_signature(pdf), RefusedPdfError)
    survives(lambda: PdfText(pdf).runs(), UnreadablePdfError)


def test_the_seeds_are_sound(checkpoint: bytes, inclusion: bytes, recorded: Path) -> None:
    """Else every case would end at the first check."""
    assert parse(SPEC_TEXT.encode(), Path("audit.yaml"))
    assert Envelope.decode(ENVELOPE).signatures and Statement.decode(STATEMENT).subject
    assert Inclusion.decode(inclusion).check(log.entry_of(SIGNED), SIGNER.public_key).size == 1
    assert read_tensors(checkpoint).keys() == {"weight", "bias"}
    assert read_header(recorded).stages and json.loads((recorded / "record.json").read_bytes())
