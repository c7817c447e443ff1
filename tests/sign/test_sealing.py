"""A trainer's seal: the earliest moment by a trusted authority, and a place in the log, or an error that says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pki
import pytest

from auditspec.errors import EvidenceError, SignatureError
from auditspec.sign import keys
from auditspec.sign.certificates import Authorities
from auditspec.sign.dsse import Envelope
from auditspec.sign.sealing import DatedBy, Sealer, Trainer, read_commitment, seal_of
from auditspec.sign.signer import KeySigner
from auditspec.sign.timestamps import TimestampAuthority

ROOT, OTHER = pki.root(), pki.root("Another Root")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Trainer]]:
    folder = tmp_path_factory.mktemp("sealed")
    trainer, keeper = keys.generate("ed25519"), keys.generate("ed25519")
    with pki.serving(pki.timestamping(ROOT), folder / "tsa") as url:
        sealer = Sealer(
            KeySigner(trainer), TimestampAuthority(url), folder / "log", KeySigner(keeper)
        )
        sealer.seal("text/plain", b"a plan", folder / "plan", folder / "plan.log")
    yield folder, Trainer(trainer.public_key(), DatedBy(None, keeper.public_key()))


def authorities(root: pki.Holder) -> Authorities:
    return Authorities((root.der,), (), "not-checked")


def envelope(folder: Path) -> Envelope:
    return Envelope.decode((folder / "plan").read_bytes())


def test_a_seal_says_when_and_where(sealed: tuple[Path, Trainer]) -> None:
    folder, trainer = sealed
    dated = DatedBy(authorities(ROOT), trainer.dated.log)
    seal = seal_of(envelope(folder), Trainer(trainer.key, dated), folder / "plan.log")
    assert seal.moment is not None and abs(seal.moment - pki.NOW) < pki.DAY
    assert seal.entry == 0
    undated = seal_of(envelope(folder), Trainer(trainer.key), folder / "plan.log")
    assert (undated.moment, undated.entry) == (None, None)


@pytest.mark.parametrize(
    ("dated", "place", "words"),
    [
        (DatedBy(authorities(OTHER)), "plan.log", "its authority is not trusted"),
        (DatedBy(None, pki.root().key.public_key()), "plan.log", "plan.log: "),
        (DatedBy(None, pki.root().key.public_key()), "none.log", "never entered into the log"),
    ],
)
def test_what_dates_it_and_does_not_hold_is_told(
    sealed: tuple[Path, Trainer], dated: DatedBy, place: str, words: str
) -> None:
    folder, trainer = sealed
    with pytest.raises(SignatureError, match=words):
        seal_of(envelope(folder), Trainer(trainer.key, dated), folder / place)


def test_a_signature_without_a_timestamp_has_no_moment(sealed: tuple[Path, Trainer]) -> None:
    folder, _ = sealed
    key = keys.generate("ed25519")
    plain = Envelope("text/plain", b"a plan").signed_by(KeySigner(key))
    with pytest.raises(SignatureError, match="there is none"):
        seal_of(plain, Trainer(key.public_key(), DatedBy(authorities(ROOT))), folder / "plan.log")


def test_the_timestamp_of_another_plan_does_not_count(sealed: tuple[Path, Trainer]) -> None:
    folder, _ = sealed
    key, token = keys.generate("ed25519"), envelope(folder).signatures[0].timestamps[0]
    other = Envelope("text/plain", b"another").signed_by(KeySigner(key), stamp=lambda _: token)
    with pytest.raises(SignatureError, match="over other data"):
        seal_of(other, Trainer(key.public_key(), DatedBy(authorities(ROOT))), folder / "plan.log")


def test_another_payload_is_no_commitment(sealed: tuple[Path, Trainer]) -> None:
    folder, trainer = sealed
    with pytest.raises(SignatureError, match="no commitment"):
        read_commitment(folder / "plan", (folder / "plan").read_bytes(), trainer)
    odd = Envelope("application/vnd.auditspec.commitment.v1+json", b'{"stage": 1, "stage": 2}')
    signed = odd.signed_by(KeySigner(keys.generate("ed25519"))).encode()
    with pytest.raises(EvidenceError, match="stands twice"):
        read_commitment(folder / "plan", signed, None)
