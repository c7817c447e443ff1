"""A key that only a program uses: here OpenSSL, elsewhere whatever speaks to a service's own client."""

import subprocess

from cryptography.hazmat.primitives.serialization import load_pem_public_key

from auditspec.sign.confidential import Ask, nobody
from auditspec.sign.signer import RemoteSigner


class OpenSsl(RemoteSigner):
    """Signs with what `openssl:FILE` names."""

    scheme = "openssl"

    def __init__(self, uri: str, ask: Ask = nobody) -> None:
        self._file = uri.partition(":")[2]
        pem = self._openssl("pkey", "-in", self._file, "-pubout")
        self.public_key = load_pem_public_key(pem)  # type: ignore[assignment]

    def remote_signature(self, data: bytes) -> bytes:
        return self._openssl("dgst", "-sha256", "-sign", self._file, given=data)

    def _openssl(self, *arguments: str, given: bytes = b"") -> bytes:
        return subprocess.run(
            ["openssl", *arguments], input=given, capture_output=True, check=True
        ).stdout
