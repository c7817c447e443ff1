"""Threats to the report (T1 to T8) and to its timestamps (T30)."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pki
import pypdf
import pytest
import world as w
from cryptography import x509
from pypdf.generic import DecodedStreamObject, NameObject
from sample_packet import packet_files, packet_result, trusting, write_packet
from world import World

from auditspec.sign.dsse import Envelope, Signature
from auditspec.sign.signer import KeySigner
from auditspec.sign.statement import PAYLOAD_TYPE
from auditspec.verification.trust import Identity
from auditspec.verification.verifier import VerificationInputs

pytestmark = pytest.mark.threat
PDF, HTML = "report.pdf", "report.html"


def test_the_good_packet(packet: Path) -> None:
    found = w.holds(packet)
    assert found.summary == "valid: signed by Lead auditor (auditor)"
    details = {step.name: step.detail for step in found.steps}
    assert details["pdf-signature"] == "PAdES B-T"
    assert details["timestamps"].startswith("earliest 20")


@pytest.mark.parametrize("name", ["spec.yaml", "results.json", HTML, PDF])
def test_t1_one_byte_flipped(packet: Path, name: str) -> None:
    w.edit(packet, name, lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    w.fails(packet, "digests", said=name)


def test_t1_one_byte_flipped_in_the_signed_pdf(packet: Path) -> None:
    w.edit(packet, PDF, lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    w.reseal(packet)
    w.fails(packet, "pdf-signature")


def test_t2_bytes_after_the_end(packet: Path) -> None:
    w.edit(packet, PDF, lambda data: data + b"\n% more\n%%EOF\n")
    w.fails(packet, "digests", said=PDF)
    w.reseal(packet)
    w.fails(packet, "pdf-signature", said=PDF)


def test_t3_bytes_in_the_padding_of_the_signature(packet: Path) -> None:
    def pad(data: bytes) -> bytes:
        end = data.rindex(b"00>")
        return data[:end] + b"41" + data[end + 2 :]

    w.edit(packet, PDF, pad)
    w.fails(packet, "digests", said=PDF)
    w.reseal(packet)
    w.fails(packet, "pdf-signature", said="bytes that nothing covers")


def update(pdf: bytes, *, contents: bool) -> bytes:
    """An incremental update that draws another first page, or carries other results."""
    writer = pypdf.PdfWriter(io.BytesIO(pdf), incremental=True)
    if contents:
        drawn = DecodedStreamObject()
        drawn.set_data(b"BT ET")
        writer.pages[1][NameObject("/Contents")] = writer._add_object(drawn)
    else:
        names = writer.root_object["/Names"]["/EmbeddedFiles"]["/Names"]
        stream = names[1].get_object()["/EF"]["/F"].get_object()
        stream.set_data(b"{}")
    out = io.BytesIO()
    writer.write(out)
    assert out.getvalue().startswith(pdf) and len(out.getvalue()) > len(pdf)
    return out.getvalue()


def test_t4_an_update_swaps_the_page(packet: Path) -> None:
    w.edit(packet, PDF, lambda data: update(data, contents=True))
    w.fails(packet, "digests")
    w.reseal(packet)
    w.fails(packet, "pdf-signature", said="not cover")


def test_t4_an_update_that_shows_the_same_numbers(packet: Path) -> None:
    def harmless(data: bytes) -> bytes:
        writer = pypdf.PdfWriter(io.BytesIO(data), incremental=True)
        writer.add_metadata({"/Title": "Passed"})
        out = io.BytesIO()
        writer.write(out)
        return out.getvalue()

    w.edit(packet, PDF, harmless)
    w.fails(packet, "digests")
    w.reseal(packet)
    w.fails(packet, "pdf-signature")


def test_t4_an_update_swaps_the_results(packet: Path) -> None:
    w.edit(packet, PDF, lambda data: update(data, contents=False))
    w.reseal(packet)
    w.fails(packet, "pdf-signature", said="not cover")


def test_t5_the_signature_is_stripped(packet: Path) -> None:
    w.edit(
        packet, PDF, lambda data: data[: data.rindex(b"%%EOF", 0, data.rindex(b"/ByteRange")) + 6]
    )
    w.fails(packet, "digests")
    w.reseal(packet)
    w.fails(packet, "pdf-signature", said="holds 0 signatures")
    (packet / "packet.dsse.json").unlink()
    w.fails(packet, "envelope-present")


def test_t5_a_rogue_authority_of_the_same_name(packet: Path) -> None:
    rogue = pki.root().issue("Lead auditor")
    assert rogue.certificate.issuer == w.AUDITOR.certificate.issuer
    w.sign_again(packet, w.envelope_of(packet).payload, rogue)
    results = json.loads((packet / "results.json").read_bytes())
    assert results["signer"]["keyid"] == w.AUDITOR.signer.keyid
    w.fails(packet, "validity", said="the certificate of Lead auditor does not stand")
    w.put(packet, w.envelope_of(packet).signed_by(w.AUDITOR.signer, [w.AUDITOR.der]))
    w.fails(packet, "validity", said="the certificate of Lead auditor does not stand")


def test_t6_expired(packet: Path) -> None:
    without_time = replace(w.TRUST, timestamps=None)
    late = VerificationInputs(at=pki.NOW + 2 * pki.YEAR)
    w.fails(packet, "validity", without_time, late, said="does not stand")
    w.holds(packet, w.TRUST, late)  # the timestamp proves that it was good when it signed


def test_t6_revoked(packet: Path) -> None:
    w.fails(packet, "validity", w.trusting_list([w.ROOT.crl(w.AUDITOR)]), said="revoked")
    w.holds(packet, w.trusting_list([w.ROOT.crl(w.OWNER)]))
    tomorrow = w.ROOT.crl(w.AUDITOR, at=pki.NOW + pki.DAY)
    w.holds(packet, w.trusting_list([tomorrow]), VerificationInputs(at=pki.NOW + 2 * pki.DAY))


def test_t6_no_revocation_list(packet: Path) -> None:
    w.fails(packet, "validity", w.trusting_list([]), said="does not stand")
    stale = w.ROOT.crl(start=pki.NOW - 3 * pki.DAY, end=pki.NOW - 2 * pki.DAY)
    w.fails(packet, "validity", w.trusting_list([stale]))
    another = pki.root("Example Root").crl()
    w.fails(packet, "validity", w.trusting_list([another]))


def test_t7_a_certificate_for_timestamps(packet: Path) -> None:
    tsa = pki.timestamping(w.ROOT)
    trust = replace(w.TRUST, identities=(Identity("Lead auditor", "auditor", "CN=Example TSA"),))
    signed = w.envelope_of(packet).signed_by(tsa.signer, [tsa.der])
    w.put(packet, signed)
    w.fails(packet, "validity", trust, said="made for timestamps")


def test_t7_the_right_authority_but_the_wrong_role(packet: Path) -> None:
    w.sign_again(packet, w.envelope_of(packet).payload, w.OWNER)
    claimed = Signature(b"no signature", w.AUDITOR.signer.keyid)
    envelope = w.envelope_of(packet)
    w.put(packet, replace(envelope, signatures=(*envelope.signatures, claimed)))
    w.fails(packet, "thresholds", said="0 of 1 required signatures in role 'auditor'")
    w.put(packet, replace(envelope, signatures=(*envelope.signatures, replace(claimed, sig=b"x"))))
    owners = replace(w.TRUST, require={"owner": 1})  # whom the forger alone would satisfy
    w.fails(packet, "results-consistent", owners, said="no signature is shown to be by that key")


def test_t7_a_role_that_nobody_signed_in(packet: Path) -> None:
    needed = replace(w.TRUST, require={"auditor": 1, "owner": 1})
    w.fails(packet, "thresholds", needed, said="0 of 1 required signatures in role 'owner'")


def test_t8_reports_of_different_runs(packet: Path) -> None:
    effects = list(packet_result().effects)
    effects[0] = effects[0].model_copy(update={"value": 9.25})
    other = packet_files(packet_result().model_copy(update={"effects": tuple(effects)}))
    good = (packet / HTML).read_bytes()
    (packet / HTML).write_bytes(other[HTML])
    w.fails(packet, "digests")
    w.reseal(packet)
    w.fails(packet, "rebuild", said="report.html is not what results and spec give")
    (packet / HTML).write_bytes(good)
    (packet / PDF).write_bytes(packet_files(packet_result())[PDF])
    w.reseal(packet)
    w.fails(packet, "pdf-signature", said="holds 0 signatures")


def test_t8_a_pdf_whose_text_or_results_are_those_of_another_run(tmp_path: Path) -> None:
    packet = write_packet(tmp_path / "packet", w.AUDITOR.signer)
    assert b"/ByteRange" not in (packet / PDF).read_bytes()
    good = (packet / PDF).read_bytes()
    for contents in (True, False):
        (packet / PDF).write_bytes(update(good, contents=contents))
        w.fails(packet, "digests")
        w.reseal(packet)
        said = "report.pdf is not what results and spec give"
        inside = "report.pdf: the results.json inside it is another one"
        w.fails(packet, "rebuild", said=said if contents else inside)


def stamped(packet: Path, token: bytes) -> None:
    envelope = w.envelope_of(packet)
    (signature,) = envelope.signatures
    w.put(packet, replace(envelope, signatures=(replace(signature, timestamps=(token,)),)))


def test_t30_a_timestamp_by_an_untrusted_authority(packet: Path, tmp_path: Path) -> None:
    rogue = pki.timestamping(pki.root("Example TSA Root"))
    with pki.serving(rogue, tmp_path / "tsa") as url:
        token = (
            World(packet, url)
            .credentials()
            .authority.stamp(w.envelope_of(packet).signatures[0].sig)
        )
    stamped(packet, token)
    w.fails(packet, "timestamps", said="its authority is not trusted")


def test_t30_a_timestamp_over_other_data(packet: Path, world: World) -> None:
    stamped(packet, world.credentials().authority.stamp(b"other"))
    w.fails(packet, "timestamps", said="over other data")
    stamped(packet, b"\x30\x03\x02\x01\x01")
    w.fails(packet, "timestamps", said="cannot be read")


def test_t30_a_timestamp_after_revocation(packet: Path) -> None:
    before = w.trusting_list([w.ROOT.crl(w.AUDITOR, at=pki.NOW - pki.DAY)])
    w.fails(packet, "validity", before, said="revoked")
    tsa_revoked = replace(w.TRUST.timestamps, crls=(w.TSA_ROOT.crl(w.TSA, at=pki.NOW - pki.DAY),))
    w.fails(packet, "timestamps", replace(w.TRUST, timestamps=tsa_revoked), said="revoked")


@pytest.mark.parametrize(
    ("reason", "stands"),
    [
        (None, False),
        (x509.ReasonFlags.key_compromise, False),
        (x509.ReasonFlags.ca_compromise, False),
        (x509.ReasonFlags.superseded, True),
        (x509.ReasonFlags.cessation_of_operation, True),
    ],
)
def test_t30_a_timestamp_by_a_key_that_leaked_later(
    packet: Path, reason: x509.ReasonFlags | None, stands: bool
) -> None:
    """Whoever has a leaked key writes any moment into a token (RFC 3161, section 4)."""
    later = w.TSA_ROOT.crl(w.TSA, at=pki.NOW + pki.DAY, reason=reason)
    trust = replace(w.TRUST, timestamps=replace(w.TRUST.timestamps, crls=(later,)))
    if stands:
        w.holds(packet, trust)
    else:
        w.fails(packet, "timestamps", trust, said="may have been in other hands")


def test_t13_a_missing_keyid_is_accepted(packet: Path) -> None:
    envelope = w.envelope_of(packet)
    (signature,) = envelope.signatures
    w.put(packet, replace(envelope, signatures=(replace(signature, keyid=None),)))
    w.holds(packet)


def test_t9_payload_or_type_altered(packet: Path) -> None:
    envelope = w.envelope_of(packet)
    payload = envelope.payload.replace(b'"leaves":2', b'"leaves":1')
    w.put(packet, replace(envelope, payload=payload))
    w.fails(packet, "signatures", said="does not verify")
    w.sign_again(packet, payload)
    w.fails(packet, "results-consistent", said="results")
    w.put(packet, replace(envelope, payload=envelope.payload + b" "))
    w.fails(packet, "signatures", said="does not verify")
    w.put(packet, replace(envelope, payload_type="application/json"))
    w.fails(packet, "payload-type")


def test_t10_wrong_predicate_type(packet: Path) -> None:
    payload = w.envelope_of(packet).payload.replace(
        b"urn:auditspec:packet:1", b"urn:auditspec:log:1"
    )
    w.sign_again(packet, payload)
    w.fails(packet, "statement-wellformed")


def test_t11_an_algorithm_that_is_not_allowed(packet: Path) -> None:
    w.fails(packet, "signatures", replace(w.TRUST, algorithms=("ed25519",)), said="does not allow")
    weak = Envelope(PAYLOAD_TYPE, w.envelope_of(packet).payload)
    w.put(
        packet,
        replace(
            weak, signatures=(Signature(b"\0" * 64, w.AUDITOR.signer.keyid, (w.AUDITOR.der,)),)
        ),
    )
    w.fails(packet, "signatures", said="does not verify")


def test_t11_one_signer_counted_twice(packet: Path) -> None:
    two = replace(w.TRUST, require={"auditor": 2})
    w.fails(packet, "thresholds", two, said="1 of 2")
    w.put(packet, w.envelope_of(packet).signed_by(w.AUDITOR.signer, [w.AUDITOR.der]))
    w.fails(packet, "thresholds", two, said="1 of 2")
    renewed = w.ROOT.issue("Lead auditor")
    w.put(packet, w.envelope_of(packet).signed_by(renewed.signer, [renewed.der]))
    w.fails(packet, "thresholds", two, said="1 of 2")


def test_t11_a_threshold_is_unmet_until_the_owner_signs(packet: Path) -> None:
    both = replace(w.TRUST, require={"auditor": 1, "owner": 1})
    w.fails(packet, "thresholds", both, said="role 'owner'")
    w.put(packet, w.envelope_of(packet).signed_by(w.OWNER.signer, [w.OWNER.der]))
    w.holds(packet, both)


def test_t14_integers_above_two_to_the_53_survive(tmp_path: Path) -> None:
    trust = trusting(KeySigner(w.AUDITOR.key))
    big = packet_result(seed=2**63 + 1)
    packet = write_packet(tmp_path / "packet", w.AUDITOR.signer, result=big)
    found = w.holds(packet, trust).result
    assert found is not None and found.run.seed == 2**63 + 1
    near = (b"9223372036854775809", b"9223372036854775808")  # equal as floating-point numbers
    assert float(near[0]) == float(near[1])
    w.edit(packet, "results.json", lambda data: data.replace(*near))
    w.reseal(packet)
    w.fails(packet, "rebuild", trust, said="report.html is not what results and spec give")


def test_t32_conclusions_that_do_not_follow(packet: Path) -> None:
    """Whoever holds the auditor's key can sign any verdict, but not make it follow from the levels."""

    def acquit(data: bytes) -> bytes:
        document = json.loads(data)
        verdict = document["verdicts"][0]
        assert verdict["verdict"] == "attributed"
        verdict |= {"verdict": "no-effect", "ending": "within", "parties": [], "confidence": None}
        document["findings"] = []
        document["gate"] |= {"passed": True, "exit_code": 0, "reasons": []}
        return json.dumps(document).encode()

    w.edit(packet, "results.json", acquit)
    w.fails(packet, "digests", said="results.json")
    w.reseal(packet)
    w.fails(packet, "conclusions", said="lead to attributed ['relabel']")


def test_t26_the_spec_is_not_the_signed_one(packet: Path) -> None:
    w.edit(packet, "spec.yaml", lambda data: data + b"# other\n")
    w.fails(packet, "digests", said="spec.yaml")
    w.reseal(packet)
    w.fails(packet, "results-consistent", said="results.json is about spec")
