"""Who signed an envelope, and whether their signature counts at the moment that matters.

A signature is judged at the moment that a trusted timestamp proves, and at the moment of verifying
where none does: what a signer writes about time proves nothing.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography import x509

from auditspec.errors import SignatureError, UnknownSignerError
from auditspec.sign import certificates, keys, timestamps
from auditspec.sign.dsse import Envelope, Signature
from auditspec.sign.floor import RefusedCertificateError
from auditspec.sign.pdf import PdfSignature
from auditspec.sign.timestamps import RefusedTimestampError
from auditspec.verification.trust import Identity, Trust, TrustedKey


@dataclass(frozen=True)
class Signing:
    """A good signature by someone whom the trust policy names."""

    signer: TrustedKey
    chain: tuple[x509.Certificate, ...]
    """Empty where the policy names the key itself."""
    signature: Signature
    moment: dt.datetime
    """When it is judged."""


def dated(signings: Sequence[Signing], trust: Trust | None) -> tuple[Signing, ...]:
    """The signatures, each judged at the earliest moment that a trusted timestamp proves, if one does.

    Raises:
        SignatureError: at step `timestamps`, if one does not stand.
    """
    if trust is None or trust.timestamps is None:
        return tuple(signings)
    judged = []
    for signing in signings:
        signature = signing.signature
        try:
            moments = [
                timestamps.check(token, signature.sig, trust.timestamps)
                for token in signature.timestamps
            ]
        except RefusedTimestampError as error:
            raise SignatureError(
                "timestamps",
                f"the timestamp of the signature of {signing.signer.name} does not stand: {error}",
            ) from None
        judged.append(replace(signing, moment=min(moments, default=signing.moment)))
    return tuple(judged)


def proven_moment_of_pdf(pdf: PdfSignature, trust: Trust | None) -> dt.datetime | None:
    """The earliest moment that a trusted timestamp proves for the PDF's signature; None where none does.

    Raises:
        SignatureError: at step `pdf-signature`, if one does not stand.
    """
    if trust is None or trust.timestamps is None:
        return None
    try:
        moments = [timestamps.check(t.token, t.data, trust.timestamps) for t in pdf.timestamps]
    except RefusedTimestampError as error:
        raise SignatureError(
            "pdf-signature", f"a timestamp in the PDF does not stand: {error}"
        ) from None
    return min(moments, default=None)


def signing_of_pdf(
    pdf: PdfSignature, signings: tuple[Signing, ...], moment: dt.datetime
) -> tuple[Signing, ...]:
    """The PDF's signature, judged at its own moment, where a known signer of the envelope made it."""
    chain = certificates.load_der(pdf.chain)
    keyid = keys.keyid(certificates.public_key(chain[0]))
    return tuple(
        replace(s, chain=chain if s.chain else (), moment=moment)
        for s in signings
        if s.signer.keyid == keyid
    )[:1]


def signings_of(
    envelope: Envelope, trust: Trust | None, now: dt.datetime
) -> tuple[tuple[Signing, ...], tuple[str, ...]]:
    """Signatures by whom the policy names, to be judged `now`, and the claimed ids of those by others.

    Raises:
        SignatureError: at step `signatures`, if one names a signer who did not make it, or uses an
            algorithm that the policy does not allow.
    """
    known: list[Signing] = []
    unknown: list[str] = []
    for signature in envelope.signatures:
        made = _maker(signature, envelope.pae, trust) if trust else None
        if made is None or trust is None:
            unknown.append(signature.keyid or "no keyid")
        elif made[0].algorithm not in trust.algorithms:
            raise SignatureError(
                "signatures",
                f"{made[0].name}'s key uses {made[0].algorithm}, which the trust policy does not allow",
            )
        else:
            known.append(Signing(*made, signature, now))
    return tuple(known), tuple(unknown)


def makers_by_certificate(envelope: Envelope) -> frozenset[str]:
    """Ids of the keys that made a signature by the certificate beside it, whoever vouches for them."""
    found = set()
    for signature in envelope.signatures:
        try:
            holder = certificates.public_key(certificates.load_der(signature.certificates[:1])[0])
        except (RefusedCertificateError, IndexError):
            continue
        if keys.verifies(holder, signature.sig, envelope.pae):
            found.add(keys.keyid(holder))
    return frozenset(found)


def require_known(
    signings: tuple[Signing, ...], unknown: tuple[str, ...], trust: Trust | None
) -> None:
    """Refuse an envelope that nobody signed whom the policy names.

    Raises:
        UnknownSignerError: then.
    """
    if not signings:
        raise UnknownSignerError(
            "signatures",
            f"the files are those that the envelope lists, but no known key signed it ({', '.join(unknown)})",
            "add the auditor's public key, obtained from the auditor, to the trust file"
            if trust
            else "say whom you trust: --trust trust.yaml",
        )


def require_valid(
    signings: tuple[Signing, ...], trust: Trust | None, step: str = "validity"
) -> None:
    """Each key or certificate was its holder's, and good, at the moment that matters.

    Raises:
        SignatureError: at `step`, naming the first that was not.
    """
    for signing in signings:
        signer, moment = signing.signer, signing.moment
        at = f"at {moment:%Y-%m-%d %H:%M} UTC"
        if signing.chain and trust is not None:
            try:
                roots = signer.roots or trust.authorities.roots
                authorities = replace(trust.authorities, roots=roots)
                certificates.judge(signing.chain, authorities, moment)
            except RefusedCertificateError as error:
                raise SignatureError(
                    step, f"the certificate of {signer.name} does not stand {at}: {error}"
                ) from None
            continue
        for wrong, why in (
            (
                signer.start is not None and moment < signer.start,
                f"counts from {signer.start} on",
            ),
            (signer.end is not None and moment >= signer.end, f"counted until {signer.end}"),
            (
                signer.revoked is not None and moment >= signer.revoked,
                f"is revoked since {signer.revoked}",
            ),
        ):
            if wrong:
                raise SignatureError(
                    step, f"the key of {signer.name} {why}; the signature is judged {at}"
                )


def require_thresholds(signings: tuple[Signing, ...], trust: Trust | None) -> None:
    """As many different holders in each role as the policy asks for; two keys of one count once.

    Raises:
        SignatureError: at step `thresholds`, naming the first role that lacks some.
    """
    holders = {(signing.signer.role, signing.signer.name) for signing in signings}
    counts = Counter(role for role, _ in holders)
    for role, needed in sorted((trust.require if trust else {}).items()):
        if counts[role] < needed:
            raise SignatureError(
                "thresholds",
                f"{counts[role]} of {needed} required signatures in role '{role}'",
                f"have the packet signed by another {role}",
            )


def _maker(
    signature: Signature, data: bytes, trust: Trust
) -> tuple[TrustedKey, tuple[x509.Certificate, ...]] | None:
    """Whom the policy names as the maker of a signature; None if it names nobody who made it."""
    for key in trust.keys:
        good = keys.verifies(key.key, signature.sig, data)
        if key.keyid == signature.keyid and not good:
            raise SignatureError(
                "signatures", f"the signature of {key.name} ({key.keyid[:16]}…) does not verify"
            )
        if good and signature.keyid not in (None, key.keyid):
            raise SignatureError(
                "signatures", f"a signature of {key.name} carries the keyid of another key"
            )
        if good:
            return key, ()
    if not signature.certificates or not trust.identities:
        return None
    try:
        chain = certificates.load_der(signature.certificates)
        identity = _identity(chain[0], trust)
        holder = certificates.public_key(chain[0])
    except RefusedCertificateError as error:
        raise SignatureError("signatures", f"a signer's certificate: {error}") from None
    if identity is None:
        return None
    if not keys.verifies(holder, signature.sig, data) or signature.keyid not in (
        None,
        keys.keyid(holder),
    ):
        raise SignatureError("signatures", f"the signature of {identity.name} does not verify")
    return TrustedKey(identity.name, identity.role, holder, roots=identity.roots), chain


def _identity(certificate: x509.Certificate, trust: Trust) -> Identity | None:
    claimed = certificates.subject(certificate)
    return next((i for i in trust.identities if i.subject == claimed), None)
