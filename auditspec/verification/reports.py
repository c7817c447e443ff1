"""Whether the reports in a packet say what results.json says, and the PDF carries its signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from auditspec.errors import SignatureError
from auditspec.report.exports import readback
from auditspec.report.exports.pdf_text import ATTACHMENT, NUMBERS, PdfText, UnreadablePdfError
from auditspec.report.exports.readback import MisreportedError
from auditspec.results import AuditResult
from auditspec.sign import certificates, keys
from auditspec.sign.certificates import RefusedCertificateError
from auditspec.sign.packet import HTML, PDF, RESULTS
from auditspec.sign.pdf import PdfSignature, RefusedPdfError, is_signed, read_signature


def require_same_numbers(files: Mapping[str, bytes], results: Any) -> str:
    """Every number that the reports refer to is the one in results.json; gives how many there are.

    Args:
        files: the packet's files.
        results: results.json, as parsed.

    Raises:
        SignatureError: at step `report-numbers`, naming the report and the number.
    """
    counted = []
    for name in (HTML, PDF):
        if name in files:
            try:
                count = (_html if name == HTML else _pdf)(files, results)
            except (MisreportedError, UnreadablePdfError, UnicodeDecodeError) as error:
                raise SignatureError("report-numbers", f"{name}: {error}") from None
            counted.append(f"{count} in {name}")
    return ", ".join(counted)


def pdf_signature(files: Mapping[str, bytes], result: AuditResult) -> PdfSignature | None:
    """The PDF's signature, which must be the one that results.json announces; None where it announces none.

    Raises:
        SignatureError: at step `pdf-signature`, if it is missing, does not hold, or is another one.
    """
    step, signer = "pdf-signature", result.signer
    level = signer.pdf if signer else None
    if PDF not in files or signer is None or level is None:
        if level is not None:
            raise SignatureError(step, f"{RESULTS} announces a signed {PDF}, which is not there")
        if is_signed(files.get(PDF, b"")):
            raise SignatureError(
                step, f"{PDF} carries a signature that {RESULTS} does not announce"
            )
        return None
    try:
        found = read_signature(files[PDF])
        leaf = certificates.load_der(found.chain)[0]
        keyid = keys.keyid(certificates.public_key(leaf))
    except RefusedPdfError as error:
        raise SignatureError(step, f"{PDF}: {error}", "get the packet from the auditor") from None
    except RefusedCertificateError as error:
        raise SignatureError(step, f"{PDF}: its certificate: {error}") from None
    claimed = (signer.keyid, signer.certificate, level)
    actual = (keyid, certificates.fingerprint(leaf), found.level)
    for what, says, has in zip(("key", "certificate", "level"), claimed, actual, strict=True):
        if says != has:
            raise SignatureError(
                step, f"{PDF} is signed with {what} {has}, {RESULTS} announces {says}"
            )
    return found


def _html(files: Mapping[str, bytes], results: Any) -> int:
    shown = readback.shown_in_html(files[HTML].decode("utf-8"))
    readback.check_numbers(shown, results)
    return len(shown)


def _pdf(files: Mapping[str, bytes], results: Any) -> int:
    pdf = PdfText(files[PDF])
    if pdf.attachment(ATTACHMENT) != files[RESULTS]:
        raise MisreportedError(f"the {ATTACHMENT} inside it is another one")
    shown = readback.decode(pdf.attachment(NUMBERS))
    readback.check_numbers(shown, results)
    readback.check_text(shown, pdf.runs())
    return len(shown)
