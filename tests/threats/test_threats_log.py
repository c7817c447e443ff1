"""Threats to the log (T27 to T29, S3), and good packets about something else (T12)."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import world as w
from sample_packet import packet_result, write_packet

from auditspec.artifacts.digest import digest_bytes
from auditspec.sign import keys, log
from auditspec.sign.dsse import Envelope
from auditspec.sign.seen_checkpoints import SeenCheckpoints
from auditspec.sign.signer import KeySigner
from auditspec.sign.statement import PAYLOAD_TYPE
from auditspec.verification.expectation import Expectation
from auditspec.verification.verifier import VerificationInputs

pytestmark = pytest.mark.threat
KEEPER = KeySigner(keys.generate("ecdsa-p256-sha256"))
TRUST = replace(w.TRUST, log=KEEPER.public_key)


def other(number: int) -> Envelope:
    return Envelope(PAYLOAD_TYPE, str(number).encode()).signed_by(w.AUDITOR.signer)


def enter(folder: Path, packet: Path) -> None:
    inclusion = log.append(folder, w.envelope_of(packet), KEEPER)
    (packet / "packet.log.json").write_bytes(inclusion.encode())


@pytest.fixture
def kept(packet: Path, tmp_path: Path) -> tuple[Path, Path, VerificationInputs]:
    """A packet that is the second of three entries, its log, and a verifier who saw all three."""
    folder = tmp_path / "log"
    log.append(folder, other(1), KEEPER)
    enter(folder, packet)
    log.append(folder, other(3), KEEPER)
    against = VerificationInputs(log=folder, memory=SeenCheckpoints(tmp_path / "memory"))
    details = {step.name: step.detail for step in w.holds(packet, TRUST, against).steps}
    assert (details["log-inclusion"], details["log-consistency"]) == ("entry 2", "3 entries")
    return packet, folder, against


def rebuild(folder: Path, entries: list[Envelope]) -> None:
    shutil.rmtree(folder)
    for entry in entries:
        log.append(folder, entry, KEEPER)


def test_a_log_that_grows(kept: tuple[Path, Path, VerificationInputs]) -> None:
    packet, folder, against = kept
    for number in range(4, 9):
        log.append(folder, other(number), KEEPER)
        w.holds(packet, TRUST, against)
    again = log.append(folder, w.envelope_of(packet), KEEPER)
    assert again.index == 1
    w.put(packet, w.envelope_of(packet).signed_by(w.OWNER.signer, [w.OWNER.der]))
    w.holds(packet, TRUST, against)  # a countersignature changes nothing of what was entered
    w.holds(packet, TRUST, VerificationInputs(memory=against.memory))


def test_t27_an_entry_is_replaced(kept: tuple[Path, Path, VerificationInputs]) -> None:
    packet, folder, against = kept
    lines = (folder / "entries").read_text().splitlines()
    (folder / "entries").write_text("\n".join([digest_bytes(b"x"), *lines[1:]]) + "\n")
    w.fails(packet, "log-consistency", TRUST, against, "not those of its checkpoint")


def test_t27_history_is_rewritten_and_signed_again(
    kept: tuple[Path, Path, VerificationInputs],
) -> None:
    packet, folder, against = kept
    rebuild(folder, [other(9), w.envelope_of(packet), other(3), other(4)])
    w.fails(packet, "log-consistency", TRUST, against, "does not extend the packet's checkpoint")
    rebuild(folder, [other(1), w.envelope_of(packet), other(9), other(4)])
    w.fails(packet, "log-consistency", TRUST, against, "does not extend the checkpoint seen before")


def test_t28_truncation(kept: tuple[Path, Path, VerificationInputs]) -> None:
    packet, folder, against = kept
    lines = (folder / "entries").read_text().splitlines()
    (folder / "entries").write_text(lines[0] + "\n")
    w.fails(packet, "log-consistency", TRUST, against, "cut off")


def test_t28_rollback(kept: tuple[Path, Path, VerificationInputs]) -> None:
    packet, folder, against = kept
    rebuild(folder, [other(1), w.envelope_of(packet)])
    w.fails(packet, "log-consistency", TRUST, against, "rolled back")
    rebuild(folder, [other(1)])
    w.fails(packet, "log-consistency", TRUST, replace(against, memory=None), "rolled back")


def test_t29_fork(kept: tuple[Path, Path, VerificationInputs], tmp_path: Path) -> None:
    packet, folder, against = kept
    rebuild(folder, [other(1), w.envelope_of(packet), other(33)])
    w.fails(packet, "log-consistency", TRUST, against, "rewritten")
    fork = tmp_path / "fork"
    for number in (1, 2):
        log.append(fork, other(number), KEEPER)
    enter(fork, packet)  # a second log of three entries, by the same key
    w.fails(packet, "log-consistency", TRUST, replace(against, log=None), "forked")


def test_t29_a_larger_fork_is_not_remembered_unseen(
    kept: tuple[Path, Path, VerificationInputs], tmp_path: Path
) -> None:
    """Verified without the log, a fork's checkpoint must not take the place of the one seen before."""
    packet, _, against = kept
    fork = tmp_path / "fork"
    for number in (11, 12, 13):
        log.append(fork, other(number), KEEPER)
    enter(fork, packet)
    w.fails(packet, "log-consistency", TRUST, replace(against, log=fork))
    found = w.holds(packet, TRUST, replace(against, log=None))
    last = found.steps[-1]
    assert (last.name, last.outcome) == ("log-consistency", "skipped")
    assert "not compared" in last.detail
    w.fails(packet, "log-consistency", TRUST, replace(against, log=fork))


def test_t29_another_keeper(kept: tuple[Path, Path, VerificationInputs]) -> None:
    packet, _, against = kept
    stranger = KeySigner(keys.generate("ed25519"))
    trust = replace(w.TRUST, log=stranger.public_key)
    w.fails(packet, "log-inclusion", trust, against, "not signed by the log's key")


def test_t28_a_packet_that_was_never_entered(packet: Path) -> None:
    w.fails(packet, "log-inclusion", TRUST, said="never entered")


def test_t27_a_proof_for_another_packet(
    kept: tuple[Path, Path, VerificationInputs], tmp_path: Path
) -> None:
    packet, _, against = kept
    stranger = write_packet(tmp_path / "other", w.AUDITOR.signer, result=packet_result(seed=1))
    w.sign_again(stranger, w.envelope_of(stranger).payload)
    shutil.copy(packet / "packet.log.json", stranger)
    w.fails(stranger, "log-inclusion", TRUST, against, "does not lead to")
    w.fails(
        stranger, "log-inclusion", w.TRUST, against, "does not lead to"
    )  # also where no log is named
    (stranger / "packet.log.json").write_text("{}")
    w.fails(stranger, "log-inclusion", w.TRUST, said="cannot be read")


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (Expectation(spec=digest_bytes(b"another spec")), "about spec"),
        (Expectation(version="4.3.0"), "about version 4.2.0"),
        (Expectation(artifacts={"record": digest_bytes(b"other")}), "about record sha256:"),
        (Expectation(artifacts={"none": digest_bytes(b"")}), "without a verified digest"),
    ],
    ids=["spec", "version", "artifact", "unknown-artifact"],
)
def test_t12_a_good_packet_about_something_else(
    packet: Path, expected: Expectation, said: str
) -> None:
    w.fails(packet, "expected", against=VerificationInputs(expected=expected), said=said)


def test_t12_a_good_packet_about_the_right_thing(packet: Path) -> None:
    result = packet_result()
    record = next(item for item in result.evidence if item.state == "verified")
    expected = Expectation(result.run.spec_digest, {record.name: record.found}, "4.2.0")
    found = w.holds(packet, against=VerificationInputs(expected=expected))
    assert next(s for s in found.steps if s.name == "expected").detail == "3 compared"
