"""Whether the PDFs in a packet carry the signature that results.json announces."""

from __future__ import annotations

from collections.abc import Mapping, Set

from auditspec.errors import SignatureError
from auditspec.report.exports import exports
from auditspec.results import AuditResult, Signer
from auditspec.sign import certificates, keys
from auditspec.sign.floor import RefusedCertificateError
from auditspec.sign.packet import RESULTS
from auditspec.sign.pdf import PdfSignature, RefusedPdfError, is_signed, read_signature


def pdf_signatures(
    files: Mapping[str, bytes], result: AuditResult, again: Set[str]
) -> tuple[PdfSignature, ...]:
    """The signatures of the PDFs, which must be as results.json announces; empty where it announces none.

    PDFs that were made again without what is withheld have none.

    Raises:
        SignatureError: at step `pdf-signature`, if one is missing, does not hold, or is another one.
        UsageError: if a plug-in cannot be used.
    """
    step, signer = "pdf-signature", result.signer
    of_packet = [export.file for export in exports().values() if export.pades]
    pdfs = [name for name in of_packet if name in files and name not in again]
    if signer is None or signer.pdf is None:
        for name in pdfs:
            if is_signed(files[name]):
                raise SignatureError(
                    step, f"{name} carries a signature that {RESULTS} does not announce"
                )
        return ()
    if not pdfs and not again & set(of_packet):
        raise SignatureError(step, f"{RESULTS} announces a signed PDF, which is not there")
    return tuple(_signature(name, files[name], signer) for name in pdfs)


def _signature(name: str, pdf: bytes, signer: Signer) -> PdfSignature:
    step = "pdf-signature"
    try:
        signature = read_signature(pdf)
        leaf = certificates.load_der(signature.chain)[0]
        keyid = keys.keyid(certificates.public_key(leaf))
    except RefusedPdfError as error:
        raise SignatureError(step, f"{name}: {error}", "get the packet from the auditor") from None
    except RefusedCertificateError as error:
        raise SignatureError(step, f"{name}: its certificate: {error}") from None
    claimed = (signer.keyid, signer.certificate, signer.pdf)
    actual = (keyid, certificates.fingerprint(leaf), signature.level)
    for what, says, has in zip(("key", "certificate", "level"), claimed, actual, strict=True):
        if says != has:
            raise SignatureError(
                step, f"{name} is signed with {what} {has}, {RESULTS} announces {says}"
            )
    return signature
