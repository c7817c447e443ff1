"""Threats to who vouches for a signer: weak authorities, certificates made for other things, other roots (S10)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pki
import pytest
import world as w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID as Eku

from auditspec.errors import SpecError
from auditspec.sign import keys
from auditspec.sign.certificates import Authorities, judge
from auditspec.sign.floor import RefusedCertificateError
from auditspec.verification.trust import Identity, Trust

pytestmark = pytest.mark.threat
DOCUMENTS = ObjectIdentifier("1.3.6.1.5.5.7.3.36")


def weak_rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 1024)


def refused(
    said: str, holder: pki.Holder, *vouching: pki.Holder, revocation: str = "required"
) -> None:
    """The first of those who vouch is the root."""
    root = vouching[0]
    trusted = Authorities((root.der,), tuple(v.crl() for v in vouching), revocation)  # type: ignore[arg-type]
    with pytest.raises(RefusedCertificateError, match=said):
        judge(holder.chain, trusted, pki.NOW)


def between(root: pki.Holder, **options: object) -> pki.Holder:
    return root.issue("Between", ca=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [lambda: ec.generate_private_key(ec.SECP224R1()), weak_rsa])
def test_s10_a_weak_authority_between(key: Callable[[], keys.PrivateKey]) -> None:
    middle = between(w.ROOT, key=key())
    refused("Between is too weak|too small", middle.issue("Lead auditor"), w.ROOT, middle)


@pytest.mark.parametrize("key", [lambda: ec.generate_private_key(ec.SECP192R1()), weak_rsa])
def test_s10_a_weak_root(key: Callable[[], keys.PrivateKey]) -> None:
    root = pki.root("Weak", key=key())
    refused(
        "Weak is too weak|too small", root.issue("Lead auditor"), root, revocation="not-checked"
    )


def test_s10_a_weak_root_above_strong_ones() -> None:
    root = pki.root("Weak", key=ec.generate_private_key(ec.SECP224R1()))
    middle = between(root)
    refused("Weak is too weak", middle.issue("Lead auditor"), root, middle)


def sha1(holder: pki.Holder, by: pki.Holder) -> pki.Holder:
    again = x509.load_der_x509_certificate(pki.over_sha1(holder.der, by))
    return replace(holder, chain=(again, *holder.chain[1:]))


def test_s10_a_certificate_over_sha1() -> None:
    refused("(?i)sha1", sha1(w.ROOT.issue("Lead auditor"), w.ROOT), w.ROOT)
    middle = sha1(between(w.ROOT), w.ROOT)
    refused("(?i)sha1", middle.issue("Lead auditor"), w.ROOT, middle)


def test_s10_a_certificate_over_a_short_hash() -> None:
    root = replace(w.ROOT, digest=hashes.SHA224())
    refused("sha224", root.issue("Lead auditor"), w.ROOT)
    middle = between(root)
    refused("sha224", middle.issue("Lead auditor"), w.ROOT, middle)


@pytest.mark.parametrize(
    "weak",
    [pki.over_sha1(w.ROOT.crl(), w.ROOT), replace(w.ROOT, digest=hashes.SHA224()).crl()],
    ids=["sha1", "sha224"],
)
def test_s10_a_revocation_list_over_a_weak_hash(packet: Path, weak: bytes) -> None:
    w.fails(packet, "validity", w.trusting_list([weak]), said="revocation")
    w.fails(packet, "validity", w.trusting_list([w.ROOT.crl(), weak]), said="revocation list")


@pytest.mark.parametrize(
    "usage", [Eku.SERVER_AUTH, Eku.OCSP_SIGNING, Eku.CLIENT_AUTH, Eku.CODE_SIGNING]
)
def test_s10_a_certificate_for_something_else(usage: ObjectIdentifier) -> None:
    """The right name by the right authority, for a server: whoever runs it signs no reports."""
    server = w.ROOT.issue("Lead auditor", usage=[usage])
    refused("made for something else", server, w.ROOT)
    middle = between(w.ROOT, usage=[usage])
    refused("made for something else", middle.issue("Lead auditor"), w.ROOT, middle)


@pytest.mark.parametrize(
    "usage", [[DOCUMENTS], [Eku.EMAIL_PROTECTION, Eku.CLIENT_AUTH], [Eku.ANY_EXTENDED_KEY_USAGE]]
)
def test_certificates_that_people_sign_with(usage: list[ObjectIdentifier]) -> None:
    trusted = Authorities((w.ROOT.der,), (w.ROOT.crl(),))
    judge(w.ROOT.issue("Lead auditor", usage=usage).chain, trusted, pki.NOW)


def test_s10_a_weak_authority_for_timestamps(packet: Path) -> None:
    weak = Authorities((w.TSA_ROOT.der,), (pki.over_sha1(w.TSA_ROOT.crl(), w.TSA_ROOT),))
    w.fails(packet, "timestamps", replace(w.TRUST, timestamps=weak))


OTHER = pki.root("Other Root")


def with_two_roots(own: bytes) -> Trust:
    both = Authorities((w.ROOT.der, OTHER.der), (w.ROOT.crl(), OTHER.crl()))
    identity = Identity("Lead auditor", "auditor", "CN=Lead auditor", (own,))
    return replace(w.TRUST, authorities=both, identities=(identity,))


def test_s10_an_identity_that_another_root_vouches_for(packet: Path) -> None:
    """Both roots are trusted, each for its own people."""
    w.holds(packet, with_two_roots(w.ROOT.der))
    w.fails(packet, "validity", with_two_roots(OTHER.der), said="certificate of Lead auditor")


def policy(folder: Path, identity: str, roots: str = "[a.pem, b.pem]") -> Path:
    for name, holder in (("a", w.ROOT), ("b", OTHER)):
        holder.write(folder, name)
    (folder / "ab.pem").write_bytes(
        (folder / "a.pem").read_bytes() + (folder / "b.pem").read_bytes()
    )
    path = folder / "trust.yaml"
    path.write_text(
        f'auditspec_trust: "1"\nauthorities: {{roots: {roots}}}\n'
        f"identities: [{{name: A, role: auditor, subject: CN=A{identity}}}]\nrequire: {{auditor: 1}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("identity", "roots", "said"),
    [
        ("", "[a.pem, b.pem]", "any of several roots could vouch for CN=A"),
        ("", "[ab.pem]", "any of several roots could vouch for CN=A"),
        (", root: c.pem", "[a.pem, b.pem]", "c.pem is none of authorities.roots"),
    ],
)
def test_s10_a_policy_that_leaves_open_who_vouches(
    tmp_path: Path, identity: str, roots: str, said: str
) -> None:
    with pytest.raises(SpecError, match=f"AS062.*{said}"):
        Trust.read(policy(tmp_path, identity, roots))


def test_a_policy_that_says_who_vouches(tmp_path: Path) -> None:
    trust = Trust.read(policy(tmp_path, ", root: b.pem"))
    assert trust.identities[0].roots == (OTHER.der,)
