"""The trainer's signature over a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from auditspec.artifacts.manifest import Manifest
from auditspec.errors import SignatureError, UsageError
from auditspec.sign import keys
from auditspec.sign.dsse import Envelope
from auditspec.sign.record import record_signers, sign_record, verify_record
from auditspec.sign.sealing import Sealer, Trainer
from auditspec.sign.signer import KeySigner


@pytest.fixture
def record(tmp_path: Path) -> Path:
    folder = tmp_path / "record"
    (folder / "00-one").mkdir(parents=True)
    (folder / "record.json").write_text("{}")
    (folder / "00-one" / "part").write_bytes(b"bytes")
    (folder / "manifest.json").write_bytes(Manifest.scan(folder).encode())
    return folder


@pytest.mark.parametrize("algorithm", ["ecdsa-p256-sha256", "ed25519", "rsa-pss-sha256"])
def test_a_signed_record_verifies(record: Path, algorithm: str) -> None:
    key = keys.generate(algorithm)  # type: ignore[arg-type]
    signer = KeySigner(key)
    sign_record(record, Sealer(signer))
    verify_record(record, Trainer(key.public_key()))
    assert record_signers(record) == (signer.keyid,)


def test_every_edit_after_signing_is_caught(record: Path) -> None:
    key = keys.generate("ed25519")
    sign_record(record, Sealer(KeySigner(key)))
    part = record / "00-one" / "part"

    def refused(match: str) -> None:
        with pytest.raises(SignatureError, match=match):
            verify_record(record, Trainer(key.public_key()))

    part.write_bytes(b"Bytes")
    refused("changed 00-one/part")
    part.unlink()
    refused("removed 00-one/part")
    part.write_bytes(b"bytes")
    (record / "extra").write_bytes(b"")
    refused("added extra")
    (record / "extra").unlink()
    verify_record(record, Trainer(key.public_key()))


def test_a_manifest_made_again_after_an_edit_is_caught(record: Path) -> None:
    key = keys.generate("ed25519")
    sign_record(record, Sealer(KeySigner(key)))
    (record / "00-one" / "part").write_bytes(b"Bytes")
    found = Manifest.scan(record).without("manifest.json").without("manifest.dsse.json")
    (record / "manifest.json").write_bytes(found.encode())
    with pytest.raises(SignatureError, match=r"manifest\.json is not the one|changed 00-one/part"):
        verify_record(record, Trainer(key.public_key()))


def test_another_key_no_envelope_and_another_type_are_refused(record: Path) -> None:
    key, other = keys.generate("ed25519"), keys.generate("ed25519")
    with pytest.raises(SignatureError, match=r"has no manifest\.dsse\.json"):
        verify_record(record, Trainer(key.public_key()))
    sign_record(record, Sealer(KeySigner(key)))
    with pytest.raises(SignatureError, match="no signature is by the key"):
        verify_record(record, Trainer(other.public_key()))
    wrong = Envelope("text/plain", (record / "manifest.json").read_bytes())
    (record / "manifest.dsse.json").write_bytes(wrong.signed_by(KeySigner(key)).encode())
    with pytest.raises(SignatureError, match="not a manifest"):
        verify_record(record, Trainer(key.public_key()))


def test_an_unfinished_or_edited_record_is_not_signed(record: Path) -> None:
    signer = KeySigner(keys.generate("ed25519"))
    (record / "record.json").write_text(json.dumps({"edited": True}))
    with pytest.raises(UsageError, match=r"changed record\.json since"):
        sign_record(record, Sealer(signer))
    (record / "manifest.json").unlink()
    with pytest.raises(UsageError, match="finish the recording"):
        sign_record(record, Sealer(signer))
