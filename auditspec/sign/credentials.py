"""Everything a signer signs with: a key, the certificates that name its holder, a timestamp authority."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509

from auditspec.errors import UsageError
from auditspec.plugins import available, blamed
from auditspec.results import Signer as SignerInfo
from auditspec.sign import certificates, keys
from auditspec.sign.confidential import Ask, nobody
from auditspec.sign.signer import KeySigner, RemoteSigner, Signer
from auditspec.sign.timestamps import TimestampAuthority
from auditspec.sign.tokens import TokenSigner
from auditspec.sign.transit import TransitSigner
from auditspec.spec.key_uri import uri_scheme

SIGNERS: tuple[type[RemoteSigner], ...] = (TokenSigner, TransitSigner)
Level = Literal["B-B", "B-T", "B-LT", "B-LTA"]


@dataclass(frozen=True)
class Credentials:
    """A signer, and what vouches for it.

    Raises:
        UsageError: if the certificate is not the key's, or a level needs what is not there.
    """

    signer: Signer
    chain: tuple[x509.Certificate, ...] = ()
    """The signer's certificate, then those above it; empty where the key stands for itself."""
    authority: TimestampAuthority | None = None
    level: Level | None = None
    """PAdES level of the PDF's signature; None: the PDF is not signed."""
    crls: tuple[bytes, ...] = ()
    """Revocation lists (DER) that B-LT and B-LTA embed."""
    known: tuple[x509.Certificate, ...] = ()
    """Certificates above the signer and the timestamp authority, roots included, for B-LT and B-LTA."""

    def __post_init__(self) -> None:
        if self.chain:
            holder = keys.keyid(certificates.public_key(self.chain[0]))
            if holder != self.signer.keyid:
                raise UsageError(
                    f"the certificate is for the key {holder[:16]}…, the key is {self.signer.keyid[:16]}…",
                    "name the signer's own certificate first",
                )
        if self.level is not None and not self.chain:
            raise UsageError("signing the PDF needs a certificate", "name it: signing.certificate")
        if self.level not in (None, "B-B") and self.authority is None:
            raise UsageError(
                f"level {self.level} needs a timestamp authority", "name it: signing.timestamp"
            )

    @classmethod
    def load(
        cls,
        signer: Signer,
        folder: Path,
        certificate: str | None = None,
        url: str | None = None,
        level: Level | None = None,
        authorities: str | None = None,
        crls: Sequence[str] = (),
    ) -> Credentials:
        """A signer with what files, relative to `folder`, hold beside it.

        Args:
            signer: the key.
            folder: what the names are relative to.
            certificate: PEM file, the signer's own certificate first.
            url: address of a timestamp authority.
            level: of the PDF's signature; by default what certificate and authority allow.
            authorities: PEM file with the certificates that B-LT embeds.
            crls: revocation lists that B-LT embeds.

        Raises:
            UsageError: if one cannot be read, or they do not fit together.
        """
        chain = certificates.read_chain(folder / certificate) if certificate else ()
        if level is None and chain:
            level = "B-T" if url else "B-B"
        return cls(
            signer,
            chain,
            TimestampAuthority(url) if url else None,
            level,
            tuple(crl for name in crls for crl in certificates.read_crls(folder / name)),
            certificates.read_chain(folder / authorities) if authorities else (),
        )

    @property
    def extras(self) -> tuple[tuple[bytes, ...], Callable[[bytes], bytes] | None]:
        """What goes beside an envelope's signature: certificates (DER), and who makes timestamps."""
        chain = tuple(certificates.der(c) for c in self.chain)
        return chain, self.authority.stamp if self.authority else None

    @property
    def info(self) -> SignerInfo:
        """What the report says about the signer."""
        return SignerInfo(
            keyid=self.signer.keyid,
            algorithm=self.signer.algorithm,
            certificate=certificates.fingerprint(self.chain[0]) if self.chain else None,
            pdf=self.level,
        )


def signer_of(key: str, folder: Path, ask: Ask = nobody) -> Signer:
    """Whatever signs: a key file relative to `folder`, or what a URI names (`pkcs11:…`, `hashivault:…`).

    `ask` is asked for the passphrase of an encrypted key, a token's PIN, or whatever secret opens a service.

    Raises:
        UsageError: if it cannot be used, or nobody signs for the scheme.
    """
    scheme = uri_scheme(key)
    if scheme is None:
        return KeySigner.from_file(folder / key, ask)
    signers = available("signers", SIGNERS, RemoteSigner, key="scheme")  # type: ignore[type-abstract]
    if scheme not in signers:
        raise UsageError(
            f"{scheme}: no signer for keys of this scheme (known: {', '.join(signers)})",
            "install the plug-in that signs with them; a file of this name is ./NAME",
        )
    with blamed("signers", scheme, signers[scheme]):
        return signers[scheme](key, ask)
