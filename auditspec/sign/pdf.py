"""The signature inside the PDF: PAdES (ETSI EN 319 142), so that the PDF alone carries proof.

It is invisible, certifies that no change is allowed, and is made once, before the envelope. Levels:
B-B the signature; B-T with a timestamp; B-LT with certificates and revocation lists beside it;
B-LTA with a timestamp over all of that.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from asn1crypto import algos, cms
from asn1crypto import x509 as asn1_x509
from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
from pyhanko.pdf_utils.reader import PdfFileReader
from pyhanko.sign import fields
from pyhanko.sign.general import SigningError, find_cms_attribute_iter
from pyhanko.sign.signers import PdfSignatureMetadata, PdfSigner, PdfTimeStamper
from pyhanko.sign.signers.pdf_cms import Signer as CmsSigner
from pyhanko.sign.signers.pdf_signer import DSSContentSettings, SigDSSPlacementPreference
from pyhanko.sign.validation import EmbeddedPdfSignature
from pyhanko.sign.validation.generic_cms import validate_sig_integrity
from pyhanko.sign.validation.status import SignatureCoverageLevel
from pyhanko_certvalidator import ValidationContext
from pyhanko_certvalidator.errors import PathError, ValidationError
from pyhanko_certvalidator.registry import SimpleCertificateStore

from auditspec.errors import UsageError
from auditspec.sign import certificates
from auditspec.sign.credentials import Credentials, Level
from auditspec.sign.keys import Algorithm
from auditspec.sign.pdf_changes import adds_only
from auditspec.sign.signer import Signer

FIELD, TIMESTAMP_FIELD = "Signature", "Timestamp"
_DIGESTS: dict[Algorithm, str] = {
    "ecdsa-p256-sha256": "sha256",
    "ed25519": "sha512",  # RFC 8419
    "rsa-pss-sha256": "sha256",
}


class RefusedPdfError(Exception):
    """A PDF does not carry the signature that it should; the text says why."""


@dataclass(frozen=True)
class Timestamp:
    """A timestamp inside a PDF, and what it is over."""

    token: bytes
    data: bytes


@dataclass(frozen=True)
class PdfSignature:
    """The one signature of a PDF, whose integrity was found to hold."""

    chain: tuple[bytes, ...]
    """Certificates in DER, the signer's own first."""
    level: Level
    timestamps: tuple[Timestamp, ...]


def sign_pdf(pdf: bytes, credentials: Credentials) -> bytes:
    """The PDF with one more revision, which holds its signature.

    Raises:
        UsageError: if the credentials have no certificate, do not reach the level that they ask for, or
            the timestamp authority does not answer.
    """
    if not credentials.chain or credentials.level is None:
        raise UsageError("signing the PDF needs a certificate", "name it: signing.certificate")
    lasting = credentials.level in ("B-LT", "B-LTA")
    digest = _DIGESTS[credentials.signer.algorithm]
    metadata = PdfSignatureMetadata(
        field_name=FIELD,
        md_algorithm=digest,
        subfilter=fields.SigSeedSubFilter.PADES,
        certify=True,
        docmdp_permissions=fields.MDPPerm.NO_CHANGES,
        embed_validation_info=lasting,
        validation_context=_evidence(credentials) if lasting else None,
        # In the revision that is signed: what comes later would need its changes judged.
        dss_settings=DSSContentSettings(
            include_vri=False, placement=SigDSSPlacementPreference.TOGETHER_WITH_SIGNATURE
        ),
    )
    place = fields.SigFieldSpec(
        FIELD, invis_sig_settings=fields.InvisSigSettings(box_out_of_bounds=True)
    )
    signer = PdfSigner(
        metadata, _Adapter(credentials), timestamper=credentials.authority, new_field_spec=place
    )
    try:
        signed = signer.sign_pdf(_Writer(io.BytesIO(pdf)))
        if credentials.level == "B-LTA" and credentials.authority is not None:
            stamper = PdfTimeStamper(credentials.authority, field_name=TIMESTAMP_FIELD)
            signed = stamper.timestamp_pdf(_Writer(signed), digest)
    except (PathError, ValidationError, SigningError) as error:
        raise UsageError(
            f"the PDF cannot be signed at level {credentials.level}: {error}",
            "name the revocation lists of every authority, that of the timestamps included: signing.crls",
        ) from None
    made: bytes = signed.getvalue()
    return made


def read_signature(pdf: bytes) -> PdfSignature:
    """The signature of a PDF, after checking that it covers every byte and allows no change.

    Raises:
        RefusedPdfError: if there is no signature or another number of them, a byte is not covered or was
            changed, or the signature permits changes.
    """
    try:
        return _read(PdfFileReader(io.BytesIO(pdf), strict=True), pdf)
    except RefusedPdfError:
        raise
    except Exception as error:  # a damaged PDF can fail anywhere in its reader
        raise RefusedPdfError(f"it cannot be read ({error})") from None


def is_signed_over(pdf: bytes, rendered: bytes) -> bool:
    """Whether the first revision of a PDF that carries a signature is a rendered one, byte for byte.

    Of the revisions after it, `read_signature` says whether they hold the signature alone.

    Raises:
        RefusedPdfError: if the PDF cannot be read.
    """
    place = re.search(rb"startxref\s+(\d+)\s+%%EOF\s*\Z", rendered)
    if place is None or not pdf.startswith(rendered):
        return False
    try:
        first = PdfFileReader(io.BytesIO(pdf), strict=True).xrefs.get_xref_container_info(0)
    except Exception as error:  # a damaged PDF can fail anywhere in its reader
        raise RefusedPdfError(f"it cannot be read ({error})") from None
    return first.declared_startxref == int(place[1])


def is_signed(pdf: bytes) -> bool:
    """Whether a PDF holds a signature field of any kind."""
    return b"/ByteRange" in pdf


# --- signing ------------------------------------------------------------------------------------


class _Writer(IncrementalPdfFileWriter):
    """Adds a revision that leaves the document's description as it was rendered."""

    def _update_meta(self) -> None:
        pass


class _Adapter(CmsSigner):
    """Lets pyHanko sign with whatever can sign."""

    def __init__(self, credentials: Credentials) -> None:
        leaf, *others = (asn1_x509.Certificate.load(certificates.der(c)) for c in credentials.chain)
        store = SimpleCertificateStore.from_certs(others)  # type: ignore[no-untyped-call]
        self._signer: Signer = credentials.signer
        super().__init__(
            signing_cert=leaf,
            cert_registry=store,
            signature_mechanism=_mechanism(credentials.signer.algorithm),
        )

    async def async_sign_raw(
        self, data: bytes, digest_algorithm: str, dry_run: bool = False
    ) -> bytes:
        return self._signer.sign(data)


def _mechanism(algorithm: Algorithm) -> algos.SignedDigestAlgorithm:
    match algorithm:
        case "ecdsa-p256-sha256":
            return algos.SignedDigestAlgorithm({"algorithm": "sha256_ecdsa"})
        case "ed25519":
            return algos.SignedDigestAlgorithm({"algorithm": "ed25519"})
        case "rsa-pss-sha256":
            sha256 = algos.DigestAlgorithm({"algorithm": "sha256"})
            masks = algos.MaskGenAlgorithm({"algorithm": "mgf1", "parameters": sha256})
            parameters = algos.RSASSAPSSParams(
                {"hash_algorithm": sha256, "mask_gen_algorithm": masks, "salt_length": 32}
            )
            return algos.SignedDigestAlgorithm(
                {"algorithm": "rsassa_pss", "parameters": parameters}
            )


def _evidence(credentials: Credentials) -> ValidationContext:
    """What B-LT embeds: every path to a root, and a revocation list for each certificate on it."""
    known = [asn1_x509.Certificate.load(certificates.der(c)) for c in credentials.known]
    return ValidationContext(
        trust_roots=[c for c in known if c.self_issued],
        other_certs=known,
        crls=list(credentials.crls),
        ocsps=[],
        allow_fetching=False,
        revocation_mode="require",
    )


# --- reading ------------------------------------------------------------------------------------


def _read(reader: PdfFileReader, pdf: bytes) -> PdfSignature:
    kinds = [item.sig_object_type for item in reader.embedded_signatures]
    if kinds not in (["/Sig"], ["/Sig", "/DocTimeStamp"]):
        raise RefusedPdfError(
            f"it holds {kinds.count('/Sig')} signatures and {kinds.count('/DocTimeStamp')} timestamps; "
            "it must hold one signature, and at most one timestamp after it"
        )
    signature, *later = reader.embedded_signatures
    for item in (signature, *later):
        _check_bytes(item)
    _check_integrity(signature)
    expected = (
        SignatureCoverageLevel.ENTIRE_REVISION if later else SignatureCoverageLevel.ENTIRE_FILE
    )
    if signature.coverage != expected:
        raise RefusedPdfError("it holds bytes that its signature does not cover")
    whole = reader.xrefs.total_revisions == 2 + len(later)
    if later and not (whole and adds_only(reader, 2, "/DocTimeStamp")):
        raise RefusedPdfError("it was changed after it was signed")
    if not (whole and adds_only(reader, 1, "/Sig")):
        raise RefusedPdfError("it was changed as it was signed: there is more than a signature")
    if signature.docmdp_level != fields.MDPPerm.NO_CHANGES:
        raise RefusedPdfError("its signature allows changes")
    over = signature.signer_info["signature"].native
    stamps = [
        Timestamp(token.dump(), over)
        for token in find_cms_attribute_iter(
            signature.signer_info["unsigned_attrs"], "signature_time_stamp_token"
        )
    ]
    has_evidence = "/DSS" in reader.root
    for item in later:
        stamps.append(Timestamp(_token(item).dump(), _covered(item, pdf)))
    known = [signature.signer_cert, *signature.other_embedded_certs]
    level: Level = "B-B" if not stamps else "B-LT" if has_evidence else "B-T"
    return PdfSignature(tuple(c.dump() for c in known), "B-LTA" if later else level, tuple(stamps))


def _check_bytes(signature: EmbeddedPdfSignature) -> None:
    """The signature leaves out its own value and nothing else, and that value is not padded with data."""
    padding = signature.pkcs7_content[len(_token(signature).dump()) :]
    if padding.strip(b"\0"):
        raise RefusedPdfError("its signature is followed by bytes that nothing covers")
    start, before, after, _ = signature.byte_range
    if start != 0 or after != before + 2 * len(signature.pkcs7_content) + 2:
        raise RefusedPdfError("its signature leaves bytes out")


def _check_integrity(signature: EmbeddedPdfSignature) -> None:
    """The signed bytes are unchanged."""
    if signature.md_algorithm not in ("sha256", "sha384", "sha512"):
        raise RefusedPdfError(f"its signature uses the digest {signature.md_algorithm}")
    signature.compute_integrity_info(skip_diff=True)  # type: ignore[no-untyped-call]
    intact, valid = validate_sig_integrity(
        signature.signer_info, signature.signer_cert, "data", signature.compute_digest()
    )
    if not (intact and valid):
        raise RefusedPdfError("it was changed after it was signed")


def _token(signature: EmbeddedPdfSignature) -> cms.ContentInfo:
    return cms.ContentInfo.load(signature.pkcs7_content)


def _covered(signature: EmbeddedPdfSignature, pdf: bytes) -> bytes:
    """The bytes that a timestamp is over, which must be all but its own."""
    _, before, after, length = signature.byte_range
    if after + length != len(pdf):
        raise RefusedPdfError("it holds bytes that its timestamp does not cover")
    return pdf[:before] + pdf[after:]
