import json
from pathlib import Path

import pytest
from sample_packet import packet_result, trusting, write_packet

from auditspec.errors import SignatureError, UsageError
from auditspec.report.exports.html_page import render_html
from auditspec.report.view import build
from auditspec.sign import redaction
from auditspec.sign.redaction import Disclosures, commit
from auditspec.sign.signer import KeySigner
from auditspec.verification.verifier import VerificationInputs, verify

PATH = "/evidence/0/path"


def test_a_commitment_hides_and_binds() -> None:
    one, two = commit("x", "yes"), commit("x", "yes")
    assert one.commitment != two.commitment  # so that a short value cannot be guessed
    assert one.commitment == one.model_copy().commitment
    for changed in ({"value": "no"}, {"what": "y"}, {"salt": two.salt}):
        assert one.model_copy(update=changed).commitment != one.commitment
    assert commit("x", 2**63 + 1).commitment  # integers that RFC 8785 cannot carry


@pytest.mark.parametrize(
    "pointer",
    [
        PATH,
        "/limitations",
        "/behaviors/0/examples",
        "/evidence",
        "/approver",
        "/effects",
        "/limitations/0/message",
        "/limitations/0/message/values/subject",
        "/checks/0/reasons",
        "/verdicts/1/statement",
    ],
)
def test_withheld_values_are_gone_and_can_be_proved(pointer: str) -> None:
    before = packet_result()
    bare, disclosed = redaction.withhold(before, [pointer])
    result = redaction.record(bare, disclosed, "a trade secret")
    (item,) = result.withheld
    assert redaction.require_proved(result, Disclosures(disclosures=list(disclosed))) == 1
    assert Disclosures.decode(Disclosures(disclosures=list(disclosed)).encode(), "f").disclosures
    forged = disclosed[0].model_copy(update={"value": "other"})
    with pytest.raises(SignatureError, match="does not commit to this value"):
        redaction.require_proved(result, Disclosures(disclosures=[forged]))
    if isinstance(disclosed[0].value, str):
        assert disclosed[0].value not in result.model_dump_json()
    html = render_html(result)
    assert f"Withheld: {pointer}" in html and "a trade secret" in html
    assert item.commitment in html


def test_a_withheld_section_is_not_shown_as_empty() -> None:
    bare, disclosed = redaction.withhold(packet_result(), ["/limitations"])
    result = redaction.record(bare, disclosed, "a trade secret")
    assert [s.id for s in build(result).sections if s.view is None] == ["limitations"]
    assert "No limitation was generated" not in render_html(result)
    assert "No limitation was generated" in render_html(bare)


@pytest.mark.parametrize(
    ("pointer", "said"),
    [
        ("/nowhere", "nothing that can be withheld"),
        ("/evidence/99/path", "nothing that can be withheld"),
        ("evidence", "nothing that can be withheld"),
        ("/signer", "nothing that can be withheld"),
        ("/gate/passed", "cannot do without it"),
        ("/findings/0", "cannot do without it"),
        ("/behaviors/0/id", "the same text stands in /effects/0/behavior"),
        ("/findings/0/statement", "the same text stands in /verdicts/0/statement"),
        ("/verdicts/0/statement/values/value", "cannot do without it"),
    ],
)
def test_what_cannot_be_withheld(pointer: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        redaction.withhold(packet_result(), [pointer])


def test_disclosures_at_their_step(tmp_path: Path, signer: KeySigner) -> None:
    bare, disclosed = redaction.withhold(packet_result(), [PATH, "/limitations"])
    result = redaction.record(bare, disclosed, "a trade secret")
    packet = write_packet(tmp_path / "packet", signer, result=result)
    trust = trusting(signer)
    verify(packet, trust)
    one = VerificationInputs(
        disclosures=Disclosures(disclosures=[disclosed[0]])
    )  # and the other stays secret
    steps = {s.name: s for s in verify(packet, trust, one).steps}
    assert steps["disclosures"].detail == "1 proved"
    forged = disclosed[0].model_copy(update={"value": "elsewhere/"})
    with pytest.raises(SignatureError) as caught:
        verify(packet, trust, VerificationInputs(disclosures=Disclosures(disclosures=[forged])))
    assert (caught.value.step, caught.value.exit_code) == ("disclosures", 6)


def test_a_malformed_disclosure_file() -> None:
    for data in (b"", b"{}", json.dumps({"disclosures": [{"what": "x"}]}).encode()):
        with pytest.raises(UsageError, match="redact"):
            Disclosures.decode(data, "f")
