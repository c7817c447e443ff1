"""Threats to what is said of the software that an audit ran with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_packet import packet_files, packet_result, trusting, without_pdf

from auditspec.artifacts.digest import digest_bytes
from auditspec.bill_of_materials import environment
from auditspec.errors import SignatureError
from auditspec.sign import keys
from auditspec.sign.packet import ENVIRONMENT, PacketWriter
from auditspec.sign.signer import KeySigner
from auditspec.verification.verifier import verify

pytestmark = pytest.mark.threat
SIGNER = KeySigner(keys.generate("ed25519"))


def sealed(place: Path, bill: bytes | None, named: bytes | None) -> Path:
    """A packet by the auditor's own key, with one bill in it and another named in its results."""
    digest = digest_bytes(named) if named is not None else None
    result = without_pdf(packet_result())
    run = result.run.model_copy(update={"environment": digest})
    result = result.model_copy(update={"run": run})
    with PacketWriter(place) as packet:
        for name, data in packet_files(result).items():
            packet.write(name, data)
        if bill is not None:
            packet.write(ENVIRONMENT, bill)
        packet.seal(SIGNER, result)
    return place


def test_s13_a_packet_with_its_bill_of_materials(tmp_path: Path) -> None:
    packet = sealed(tmp_path / "packet", environment(), environment())
    assert verify(packet, trusting(SIGNER)).error is None
    (packet / ENVIRONMENT).write_bytes(environment() + b"\n")
    with pytest.raises(SignatureError) as caught:
        verify(packet, trusting(SIGNER))
    assert caught.value.step == "digests"


@pytest.mark.parametrize(
    "edit",
    [
        lambda bill: None,
        lambda bill: bill.replace(b'"torch"', b'"t0rch"'),
    ],
)
def test_s13_a_bill_that_the_results_do_not_name(
    tmp_path: Path, edit: Callable[[bytes], bytes | None]
) -> None:
    packet = sealed(tmp_path / "packet", edit(environment()), environment())
    with pytest.raises(SignatureError, match=ENVIRONMENT) as caught:
        verify(packet, trusting(SIGNER))
    assert caught.value.step == "results-consistent"


def test_s13_a_bill_where_none_is_named(tmp_path: Path) -> None:
    packet = sealed(tmp_path / "packet", environment(), None)
    with pytest.raises(SignatureError, match=ENVIRONMENT) as caught:
        verify(packet, trusting(SIGNER))
    assert caught.value.step == "results-consistent"
