import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_packet import SPEC, packet_files, packet_result, trusting, without_pdf, write_packet

from auditspec.artifacts.digest import digest_bytes
from auditspec.errors import SignatureError, UnknownSignerError
from auditspec.report.exports import Source
from auditspec.results import Signer
from auditspec.sign import keys
from auditspec.sign.disclosure import FILE as DISCLOSURE
from auditspec.sign.disclosure import Disclosure, root_of, salted
from auditspec.sign.dsse import Envelope, Signature
from auditspec.sign.signer import KeySigner
from auditspec.sign.statement import PAYLOAD_TYPE, Statement
from auditspec.verification.steps import STEPS
from auditspec.verification.trust import Trust
from auditspec.verification.verifier import verify, verify_all

FILES = [*packet_files(packet_result()), "packet.dsse.json"]


def failing(packet: Path, trust: Trust | None, step: str) -> SignatureError:
    """The error of a verification that must fail at `step`, with exit code 6."""
    verification = verify_all(packet, trust)
    error, steps = verification.error, verification.steps
    assert error is not None and (error.step, error.exit_code) == (step, 6), error
    number = STEPS.index(step)
    expected = ["pass"] * number + ["fail"] + ["not-run"] * (len(STEPS) - number - 1)
    signed = STEPS.index("signatures")
    if trust is None and signed < number:
        expected[signed] = "fail"
    assert [s.outcome.replace("skipped", "pass") for s in steps] == expected
    assert [(s.number, s.name) for s in steps] == list(enumerate(STEPS, 1))
    assert steps[number].detail and steps[number].detail in error.message
    return error


def envelope_of(packet: Path) -> Envelope:
    return Envelope.decode((packet / "packet.dsse.json").read_bytes())


def put(packet: Path, envelope: Envelope) -> None:
    (packet / "packet.dsse.json").write_bytes(envelope.encode())


def test_a_good_packet(tmp_path: Path, any_signer: KeySigner) -> None:
    packet = write_packet(tmp_path / "packet", any_signer)
    verification = verify(packet, trusting(any_signer))
    skipped = {s.name for s in verification.steps if s.outcome == "skipped"}
    assert skipped == {
        "pdf-signature",
        "expected",
        "withheld",
        "disclosures",
        "timestamps",
        "log-inclusion",
        "log-consistency",
    }
    assert {s.outcome for s in verification.steps if s.name not in skipped} == {"pass"}
    assert [(s.name, s.role, s.keyid) for s in verification.signers] == [
        ("Signer 0", "auditor", any_signer.keyid)
    ]
    assert verification.result == packet_result()
    assert verification.summary == "valid: signed by Signer 0 (auditor)"


def test_without_a_trust_policy_nothing_is_valid(packet: Path, signer: KeySigner) -> None:
    with pytest.raises(UnknownSignerError) as caught:
        verify(packet, None)
    assert caught.value.exit_code == 7
    assert signer.keyid in caught.value.message
    verification = verify_all(packet, None)
    assert verification.summary == "intact, but the signer is unknown"
    assert [s.name for s in verification.steps if s.outcome == "fail"] == ["signatures"]
    assert verification.result is not None


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_in_any_file(packet: Path, trust: Trust, name: str) -> None:
    data = (packet / name).read_bytes()
    for position in sorted({0, len(data) // 2, len(data) - 1}):
        spoiled = bytearray(data)
        spoiled[position] ^= 1
        (packet / name).write_bytes(spoiled)
        if name == "packet.dsse.json":
            with pytest.raises(SignatureError) as caught:
                verify(packet, trust)
            assert caught.value.exit_code == 6
        else:
            assert name in failing(packet, trust, "digests").message
            assert name in failing(packet, None, "digests").message


def test_every_flipped_byte_of_the_envelope(
    tmp_path: Path, trust: Trust, signer: KeySigner
) -> None:
    packet = write_packet(tmp_path / "small", signer, result=packet_result(seed=1))
    data = (packet / "packet.dsse.json").read_bytes()
    for position in range(len(data)):
        spoiled = bytearray(data)
        spoiled[position] ^= 0x20
        (packet / "packet.dsse.json").write_bytes(spoiled)
        error = verify_all(packet, trust).error
        assert error is not None and error.exit_code == 6, position


def test_bytes_after_the_end(packet: Path, trust: Trust) -> None:
    with (packet / "report.pdf").open("ab") as file:
        file.write(b"%%EOF")
    assert "report.pdf" in failing(packet, trust, "digests").message


def test_an_added_file(packet: Path, trust: Trust) -> None:
    (packet / "addendum.pdf").write_bytes(b"")
    assert "addendum.pdf" in failing(packet, trust, "files-listed").message


@pytest.mark.parametrize("name", FILES)
def test_a_removed_file(packet: Path, trust: Trust, name: str) -> None:
    (packet / name).unlink()
    step = "envelope-present" if name == "packet.dsse.json" else "files-present"
    assert name in failing(packet, trust, step).message


def test_a_renamed_file(packet: Path, trust: Trust) -> None:
    (packet / "report.pdf").rename(packet / "report-final.pdf")
    assert "report-final.pdf" in failing(packet, trust, "files-listed").message


def test_an_unsigned_packet(tmp_path: Path, trust: Trust) -> None:
    packet = write_packet(tmp_path / "unsigned", None)
    assert (
        "never signed, or its signature was removed"
        in failing(packet, trust, "envelope-present").message
    )
    failing(packet, None, "envelope-present")


def _link(packet: Path) -> None:
    (packet / "report.pdf").rename(packet.parent / "report.pdf")
    (packet / "report.pdf").symlink_to(packet.parent / "report.pdf")


def _fifo(packet: Path) -> None:
    (packet / "report.pdf").unlink()
    os.mkfifo(packet / "report.pdf")


def _folder(packet: Path) -> None:
    (packet / "report.pdf").unlink()
    (packet / "report.pdf").mkdir()


def _hidden(packet: Path) -> None:
    (packet / ".report.pdf").write_bytes(b"")


def _huge(packet: Path) -> None:
    with (packet / "report.pdf").open("wb") as file:
        file.truncate(2**40)  # sparse


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_link, "report.pdf: is a symbolic link"),
        (_fifo, "report.pdf: not a regular file"),
        (_folder, "report.pdf: a packet has no folders"),
        (_hidden, "hidden"),
        (_huge, "report.pdf: larger"),
    ],
)
def test_only_plain_files(
    packet: Path, trust: Trust, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(packet)
    assert said in failing(packet, trust, "packet-readable").message


def test_the_packet_is_a_folder(packet: Path, trust: Trust, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(packet)
    for place in (tmp_path / "link", tmp_path / "none", packet / "spec.yaml"):
        assert "not a folder" in failing(place, trust, "packet-readable").message


def test_an_altered_payload(packet: Path, trust: Trust, signer: KeySigner) -> None:
    envelope = envelope_of(packet)
    payload = envelope.payload.replace(b'"leaves":2', b'"leaves":1')
    assert payload != envelope.payload
    put(packet, replace(envelope, payload=payload))
    assert "does not verify" in failing(packet, trust, "signatures").message
    put(packet, Envelope(PAYLOAD_TYPE, payload).signed_by(signer))
    assert "the statement's results" in failing(packet, trust, "results-consistent").message
    put(packet, replace(envelope, payload=envelope.payload + b" "))
    assert "does not verify" in failing(packet, trust, "signatures").message


def test_an_altered_payload_type(packet: Path, trust: Trust, signer: KeySigner) -> None:
    envelope = envelope_of(packet)
    put(packet, replace(envelope, payload_type="application/json"))
    failing(packet, trust, "payload-type")
    put(packet, Envelope("application/json", envelope.payload).signed_by(signer))
    failing(packet, trust, "payload-type")


def test_another_predicate_type(packet: Path, trust: Trust, signer: KeySigner) -> None:
    payload = envelope_of(packet).payload.replace(b"urn:auditspec:packet:1", b"urn:auditspec:log:1")
    put(packet, Envelope(PAYLOAD_TYPE, payload).signed_by(signer))
    failing(packet, trust, "statement-wellformed")


def test_non_canonical_base64(packet: Path, trust: Trust) -> None:
    path = packet / "packet.dsse.json"
    stored = json.loads(path.read_bytes())
    stored["signatures"][0]["sig"] += "\n"
    path.write_text(json.dumps(stored))
    failing(packet, trust, "envelope-wellformed")


def test_a_missing_keyid_is_accepted(packet: Path, trust: Trust) -> None:
    envelope = envelope_of(packet)
    put(packet, replace(envelope, signatures=(Signature(envelope.signatures[0].sig),)))
    assert verify(packet, trust).signers == trust.keys
    with pytest.raises(UnknownSignerError, match="no keyid"):
        verify(packet, None)


def test_a_wrong_keyid_is_refused(packet: Path, signer: KeySigner, stranger: KeySigner) -> None:
    envelope = envelope_of(packet)
    put(
        packet,
        replace(envelope, signatures=(replace(envelope.signatures[0], keyid=stranger.keyid),)),
    )
    assert "keyid of another key" in failing(packet, trusting(signer), "signatures").message
    # also where the named key is trusted
    for trust in (trusting(signer, stranger), trusting(stranger, signer)):
        failing(packet, trust, "signatures")


def test_a_bad_signature_by_a_trusted_key(packet: Path, trust: Trust, signer: KeySigner) -> None:
    envelope = envelope_of(packet)
    put(packet, replace(envelope, signatures=(Signature(signer.sign(b"other"), signer.keyid),)))
    assert "does not verify" in failing(packet, trust, "signatures").message


def test_a_signer_outside_the_trust(packet: Path, stranger: KeySigner) -> None:
    with pytest.raises(UnknownSignerError) as caught:
        verify(packet, trusting(stranger))
    assert (caught.value.exit_code, caught.value.step) == (7, "signatures")


def test_an_attacker_who_signs_again_is_unknown(
    tmp_path: Path, trust: Trust, stranger: KeySigner
) -> None:
    packet = write_packet(tmp_path / "forged", stranger, result=packet_result(seed=1))
    with pytest.raises(UnknownSignerError, match=stranger.keyid):
        verify(packet, trust)


def test_an_algorithm_that_is_not_allowed(packet: Path, trust: Trust) -> None:
    error = failing(packet, replace(trust, algorithms=("ed25519",)), "signatures")
    assert "ecdsa-p256-sha256" in error.message


def test_thresholds(packet: Path, signer: KeySigner, stranger: KeySigner) -> None:
    policy = trusting(signer, stranger, need=2)
    assert "1 of 2" in failing(packet, policy, "thresholds").message
    twice = envelope_of(packet).signed_by(signer)
    put(packet, twice)
    assert "1 of 2" in failing(packet, policy, "thresholds").message
    put(packet, twice.signed_by(stranger))
    assert verify(packet, policy).signers == policy.keys
    owner = trusting(stranger, role="owner")
    both = Trust(trusting(signer).keys + owner.keys, {"auditor": 1, "owner": 1})
    assert verify(packet, both).summary == "valid: signed by Signer 0 (auditor), Signer 0 (owner)"
    assert (
        "role 'auditor'"
        in failing(packet, replace(owner, require={"auditor": 1}), "thresholds").message
    )


def test_a_further_unknown_signature_does_no_harm(
    packet: Path, trust: Trust, stranger: KeySigner
) -> None:
    put(packet, envelope_of(packet).signed_by(stranger))
    verification = verify(packet, trust)
    assert verification.unknown == (stranger.keyid,)


def resigned(packet: Path, signer: KeySigner, name: str, data: bytes) -> None:
    """Replace a file and sign the new digests, leaving the rest of the predicate as it was."""
    (packet / name).write_bytes(data)
    document = json.loads(envelope_of(packet).payload)
    disclosure = Disclosure.decode((packet / DISCLOSURE).read_bytes())
    for subject in document["subject"]:
        if subject["name"] == name:
            subject["digest"]["salted_sha256"] = salted(disclosure.files[name], data)
    if name == "results.json" and data.startswith(b"{") and b'"run": 2' not in data:
        root = root_of(json.loads(data), disclosure)
        document["predicate"]["results"] = root.model_dump()
    payload = Statement.decode(json.dumps(document).encode()).encode()
    put(packet, Envelope(PAYLOAD_TYPE, payload).signed_by(signer))


def test_files_of_different_runs(packet: Path, trust: Trust, signer: KeySigner) -> None:
    def results(**changes: Any) -> bytes:
        return Source(packet_result().model_copy(update=changes)).data

    base = packet_result()
    other_audit = base.audit.model_copy(update={"id": "other"})
    other_run = base.run.model_copy(update={"spec_digest": digest_bytes(b"")})
    for data, said in [
        (results(audit=other_audit), "statement's audit is digits-2026-q4, the packet's other"),
        (results(run=other_run), "results.json is about spec"),
        (b"{}", "results.json"),
        (b'{"run": 1, "run": 2}', "stands twice"),
        (b"\xff", "results.json: not strict JSON"),
    ]:
        resigned(packet, signer, "results.json", data)
        assert said in failing(packet, trust, "results-consistent").message
    resigned(packet, signer, "results.json", results())
    verify(packet, trust)
    resigned(packet, signer, "spec.yaml", SPEC + b"# other\n")
    assert "spec.yaml" in failing(packet, trust, "results-consistent").message


def test_a_statement_that_leaves_a_file_out(packet: Path, trust: Trust, signer: KeySigner) -> None:
    document = json.loads(envelope_of(packet).payload)
    document["subject"] = [s for s in document["subject"] if s["name"] != "evidence.json"]
    payload = json.dumps(document).encode()
    put(packet, Envelope(PAYLOAD_TYPE, payload).signed_by(signer))
    failing(packet, trust, "files-listed")
    (packet / "evidence.json").unlink()
    assert "evidence.json" in failing(packet, trust, "files-present").message


def test_the_report_names_its_signer(
    tmp_path: Path, signer: KeySigner, stranger: KeySigner
) -> None:
    named = Signer(keyid=signer.keyid, algorithm=signer.algorithm)
    result = packet_result().model_copy(update={"signer": named})
    packet = write_packet(tmp_path / "packet", signer, result=result)
    assert verify(packet, trusting(signer)).result == without_pdf(result)
    envelope = envelope_of(packet)
    put(packet, replace(envelope, signatures=(Signature(envelope.signatures[0].sig),)))
    verify(packet, trusting(signer))
    put(packet, replace(envelope, signatures=()).signed_by(stranger))
    error = failing(packet, trusting(signer, stranger), "results-consistent")
    assert "no signature is shown to be by that key" in error.message


def test_integers_above_two_to_the_53_survive(
    tmp_path: Path, signer: KeySigner, trust: Trust
) -> None:
    packet = write_packet(tmp_path / "big", signer, result=packet_result(seed=2**63 + 1))
    result = verify(packet, trust).result
    assert result is not None
    assert result.run.seed == 2**63 + 1


def test_public_keys_alone_verify(packet: Path, signer: KeySigner, tmp_path: Path) -> None:
    keys.write_public(tmp_path / "a.pub", signer.public_key)
    (tmp_path / "trust.yaml").write_text(
        'auditspec_trust: "1"\nkeys: [{name: Ada, role: auditor, key: a.pub}]\nrequire: {auditor: 1}\n'
    )
    assert (
        verify(packet, Trust.read(tmp_path / "trust.yaml")).summary
        == "valid: signed by Ada (auditor)"
    )
