"""Hostile bytes that cost a verifier time, memory, or a screen full of them (S4, S5), or that nothing covers (S8)."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_packet import packet_files, packet_result, trusting

from auditspec.artifacts.tensor_header import read_entries
from auditspec.errors import EvidenceError, RecordError, SignatureError
from auditspec.record.trajectory import _read_part
from auditspec.report.exports.pdf_text import _TOKEN, _characters
from auditspec.report.exports.readback import MisreportedError, shown_in_html
from auditspec.sign import keys
from auditspec.sign.disclosure import Disclosure
from auditspec.sign.dsse import Envelope
from auditspec.sign.signer import KeySigner
from auditspec.sign.statement import PAYLOAD_TYPE, Statement
from auditspec.verification.verifier import verify_all

pytestmark = pytest.mark.threat
SIGNER = KeySigner(keys.generate("ed25519"))


@contextmanager
def soon(seconds: float = 2) -> Iterator[None]:
    """Of processor time."""
    begun = time.process_time()
    yield
    assert time.process_time() - begun < seconds


def packet_of(folder: Path, payload: bytes) -> Path:
    """A packet with this statement; a file more or less is found out later than it."""
    folder.mkdir()
    for name, data in packet_files(packet_result(), pdf=False).items():
        (folder / name).write_bytes(data)
    sealed = Envelope(PAYLOAD_TYPE, payload).signed_by(SIGNER).encode()
    (folder / "packet.dsse.json").write_bytes(sealed)
    return folder


def statement() -> bytes:
    files = packet_files(packet_result(), pdf=False)
    return Statement.of(packet_result(), files, Disclosure.fresh(files)).encode()


@pytest.mark.parametrize(
    "html", ["<a ", "<!--", "<data ", '<data a="', "<", "<![", "<data value=1 <", "</data "]
)
def test_s4_markup_that_does_not_end(html: str) -> None:
    with soon(), pytest.raises(MisreportedError):
        shown_in_html(html * 300_000)


@pytest.mark.parametrize("content", [b"BT ", b"[", b"<", b"/", b"[<00> ", b"/F 1 Tf ", b"BT [ <00"])
def test_s4_page_content_that_does_not_end(content: bytes) -> None:
    with soon(3):
        assert sum(1 for _ in _TOKEN.finditer(content * 300_000))


@pytest.mark.parametrize("cmap", [b"<0001><00> ", b"<", b"<0001><0041>" + b" " * 99, b"<0001> "])
def test_s4_a_character_map_that_does_not_end(cmap: bytes) -> None:
    with soon(), suppress(MisreportedError, ValueError):
        _characters(b"endcodespacerange" + cmap * 100_000)


@pytest.mark.parametrize("many", [300, 40_000])
def test_s4_a_statement_of_many_subjects(tmp_path: Path, many: int) -> None:
    document = json.loads(statement())
    document["subject"] += [{**document["subject"][0], "name": f"f{n}"} for n in range(many)]
    packet = packet_of(tmp_path / "packet", json.dumps(document).encode())
    with soon():
        error = verify_all(packet, None).error
    assert isinstance(error, SignatureError) and error.exit_code == 6
    assert error.step in ("envelope-wellformed", "statement-wellformed")


@pytest.mark.parametrize("key", ["k" * 200_000, "\\u0041" * 30_000, "\x7f" * 200_000])
def test_s4_a_long_key_twice_is_not_quoted(tmp_path: Path, key: str) -> None:
    payload = f'{{"{key}": 1, "{key}": 2}}'.encode()
    with soon():
        error = verify_all(packet_of(tmp_path / "packet", payload), None).error
    assert error is not None and error.exit_code == 6 and len(str(error)) < 1000
    payload = f'{{"{key}": 1}}'.encode()
    (tmp_path / "packet" / "packet.dsse.json").write_bytes(payload)
    error = verify_all(tmp_path / "packet", None).error
    assert error is not None and error.exit_code == 6 and len(str(error)) < 1500


def test_s5_steps_that_declare_millions_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "steps-000000.parquet"
    rows = pa.array([[0] * 10_000_000], pa.list_(pa.int64()))
    pq.write_table(pa.table({"ids": rows}), path, compression="zstd")
    assert path.stat().st_size < 5000
    with soon(), pytest.raises(RecordError, match="claims to hold"):
        _read_part(path, None)


def test_s5_a_header_of_a_million_empty_tensors(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{n}":{entry}' for n in range(200_000)) + "}").encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with soon(), pytest.raises(EvidenceError, match="more than 100000 tensors"):
        read_entries(path)


def test_s8_any_bit_of_the_envelope(tmp_path: Path) -> None:
    """Of certificates and timestamps too, which no signature covers."""
    packet = packet_of(tmp_path / "packet", statement())
    signed = Envelope(PAYLOAD_TYPE, statement()).signed_by(SIGNER, [b"cert"], lambda _: b"time")
    good, rng = signed.encode(), random.Random(8)
    for _ in range(300):
        data = bytearray(good)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (packet / "packet.dsse.json").write_bytes(data)
        error = verify_all(packet, trusting(SIGNER)).error
        assert error is not None and error.exit_code == 6
