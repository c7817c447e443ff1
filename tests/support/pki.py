"""Authorities of the tests' own: certificates, revocation lists, and a timestamp authority."""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from asn1crypto import crl as asn1_crl
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from auditspec.sign import keys
from auditspec.sign.keys import Algorithm, PrivateKey
from auditspec.sign.signer import KeySigner

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
DAY = dt.timedelta(days=1)
YEAR = 365 * DAY


@dataclass(frozen=True)
class Holder:
    """A key with its certificates, its own first."""

    key: PrivateKey
    chain: tuple[x509.Certificate, ...]
    digest: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)
    """What it signs over."""

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def signer(self) -> KeySigner:
        return KeySigner(self.key)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def issue(
        self,
        name: str,
        *,
        ca: bool = False,
        usage: Sequence[x509.ObjectIdentifier] = (),
        start: dt.datetime = NOW - YEAR,
        end: dt.datetime = NOW + YEAR,
        algorithm: Algorithm = "ecdsa-p256-sha256",
        key: PrivateKey | None = None,
    ) -> Holder:
        """A certificate that this authority vouches for."""
        key = key or keys.generate(algorithm)
        made = _certificate(name, key, self, self.certificate.subject, ca, usage, start, end)
        return Holder(key, (made, *self.chain))

    def crl(
        self,
        *revoked: Holder,
        at: dt.datetime = NOW - DAY,
        start: dt.datetime = NOW - 2 * YEAR,
        end: dt.datetime = NOW + YEAR,
        reason: x509.ReasonFlags | None = None,
    ) -> bytes:
        """A revocation list in DER that names these certificates as revoked since `at`."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(start)
            .next_update(end)
            .add_extension(_identifier(self), critical=False)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for holder in revoked:
            entry = x509.RevokedCertificateBuilder(holder.certificate.serial_number, at)
            if reason is not None:
                entry = entry.add_extension(x509.CRLReason(reason), critical=False)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, _hash(self)).public_bytes(serialization.Encoding.DER)

    def write(self, folder: Path, name: str) -> None:
        """NAME.key, NAME.pub, NAME.pem (the chain)."""
        keys.write_private(folder / f"{name}.key", self.key)
        keys.write_public(folder / f"{name}.pub", self.key.public_key())
        pem = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in self.chain)
        (folder / f"{name}.pem").write_bytes(pem)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def root(
    name: str = "Example Root",
    start: dt.datetime = NOW - 10 * YEAR,
    key: PrivateKey | None = None,
) -> Holder:
    """An authority that vouches for itself."""
    key = key or keys.generate("ecdsa-p256-sha256")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    alone, end = Holder(key, ()), NOW + 10 * YEAR
    return Holder(key, (_certificate(name, key, alone, subject, True, (), start, end),))


def _hash(by: Holder) -> hashes.HashAlgorithm | None:
    return None if isinstance(by.key, ed25519.Ed25519PrivateKey) else by.digest


def _identifier(holder: Holder) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(holder.key.public_key())


def _certificate(name, key, by, issuer, ca, usage, start, end) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signs = dict.fromkeys(
        (
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=not ca,
                key_cert_sign=ca,
                crl_sign=ca,
                **signs,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key()), critical=False
        )
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=True)
    return builder.sign(by.key, _hash(by))


def over_sha1(data: bytes, by: Holder) -> bytes:
    """A certificate or revocation list (DER) signed again over SHA-1, which cryptography no longer does."""
    algorithm = {"algorithm": "sha1_ecdsa"}
    is_list = _is_list(data)
    kind = asn1_crl.CertificateList if is_list else asn1_x509.Certificate
    signed = kind.load(data)
    body = signed["tbs_cert_list" if is_list else "tbs_certificate"]
    body["signature"] = signed["signature_algorithm"] = algorithm
    assert isinstance(by.key, ec.EllipticCurvePrivateKey)
    made = by.key.sign(body.dump(force=True), ec.ECDSA(hashes.SHA1()))
    signed["signature" if is_list else "signature_value"] = made
    return bytes(signed.dump(force=True))


def _is_list(data: bytes) -> bool:
    try:
        x509.load_der_x509_crl(data)
    except ValueError:
        return False
    return True


def timestamping(authority: Holder, **options) -> Holder:
    """A holder that may make timestamps."""
    return authority.issue("Example TSA", usage=[ExtendedKeyUsageOID.TIME_STAMPING], **options)


@contextmanager
def serving(holder: Holder, folder: Path) -> Iterator[str]:
    """`openssl ts` behind a loopback HTTP server; gives its address."""
    folder.mkdir()
    holder.write(folder, "tsa")
    first, *others = (folder / "tsa.pem").read_text().split("-----BEGIN CERT")[1:]
    (folder / "leaf.pem").write_text("-----BEGIN CERT" + first)
    (folder / "above.pem").write_text("".join("-----BEGIN CERT" + c for c in others))
    (folder / "serial").write_text("01\n")
    (folder / "ts.cnf").write_text(
        f"""\
[tsa]
default_tsa = main
[main]
serial = {folder}/serial
signer_cert = {folder}/leaf.pem
certs = {folder}/above.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""
    )

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            (folder / "query").write_bytes(query)
            command = ["openssl", "ts", "-reply", "-config", "ts.cnf", "-queryfile", "query"]
            reply = subprocess.run(command, capture_output=True, check=True, cwd=folder).stdout
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
