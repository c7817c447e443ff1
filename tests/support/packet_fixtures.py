"""Fixtures around one signed packet."""

from pathlib import Path

import pytest
from sample_packet import trusting, write_packet

from auditspec.sign import keys
from auditspec.sign.signer import KeySigner
from auditspec.verification.trust import Trust


@pytest.fixture(params=["ecdsa-p256-sha256", "ed25519", "rsa-pss-sha256"])
def any_signer(request: pytest.FixtureRequest) -> KeySigner:
    return KeySigner(keys.generate(request.param))


@pytest.fixture
def signer() -> KeySigner:
    return KeySigner(keys.generate("ecdsa-p256-sha256"))


@pytest.fixture
def stranger() -> KeySigner:
    return KeySigner(keys.generate("ecdsa-p256-sha256"))


@pytest.fixture
def packet(tmp_path: Path, signer: KeySigner) -> Path:
    return write_packet(tmp_path / "packet", signer)


@pytest.fixture
def trust(signer: KeySigner) -> Trust:
    return trusting(signer)
