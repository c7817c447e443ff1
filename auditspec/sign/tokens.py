"""Keys that never leave their token: PKCS#11, named by a URI (RFC 7512).

    pkcs11:token=auditor;object=signing?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=pin.txt

Without `pin-source` the PIN is read from the environment, `AUDITSPEC_PIN`, or asked for. It never stands in
the URI, and no message shows more of a URI than the names of token and object.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from auditspec.errors import UsageError
from auditspec.sign import keys
from auditspec.sign.confidential import Ask, nobody, read_confidential
from auditspec.sign.keys import PublicKey, is_supported
from auditspec.sign.signer import RemoteSigner
from auditspec.spec import key_uri

PIN = "AUDITSPEC_PIN"


class TokenSigner(RemoteSigner):
    """Signs with a private key on a token, whose public key lies beside it under the same label.

    Raises:
        UsageError: if the URI is incomplete or carries a PIN, python-pkcs11 is not installed, or the token, the key, or
            the PIN is not right; from `sign` too.
    """

    scheme = "pkcs11"

    def __init__(self, uri: str, ask: Ask = nobody) -> None:
        self._name, self._ask = key_uri.shown(uri), ask
        self._parts = key_uri.attributes(uri)
        if key_uri.carries_pin(uri):
            raise UsageError(f"{self._name}: {key_uri.PIN_INSIDE}", key_uri.PIN_ELSEWHERE)
        for needed in ("token", "object", "module-path"):
            if needed not in self._parts:
                raise UsageError(
                    f"{self._name}: has no {needed}", "pkcs11:token=…;object=…?module-path=…"
                )
        self.public_key = self._read_public_key()

    def remote_signature(self, data: bytes) -> bytes:
        """The signature over `data`."""
        from pkcs11 import MGF, Mechanism, ObjectClass
        from pkcs11.util.ec import encode_ecdsa_signature

        with self._session() as session:
            key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label=self._parts["object"])
            if self.algorithm == "ecdsa-p256-sha256":
                raw = key.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA)
                return bytes(encode_ecdsa_signature(raw))
            if self.algorithm == "rsa-pss-sha256":
                pss = (Mechanism.SHA256, MGF.SHA256, 32)
                return bytes(
                    key.sign(data, mechanism=Mechanism.SHA256_RSA_PKCS_PSS, mechanism_param=pss)
                )
            return bytes(key.sign(data, mechanism=Mechanism.EDDSA))

    def _read_public_key(self) -> PublicKey:
        with self._session() as session:
            from pkcs11 import KeyType, ObjectClass
            from pkcs11.util.ec import encode_ec_public_key
            from pkcs11.util.rsa import encode_rsa_public_key

            found = session.get_key(
                object_class=ObjectClass.PUBLIC_KEY, label=self._parts["object"]
            )
            is_rsa = found.key_type == KeyType.RSA
            der = encode_rsa_public_key(found) if is_rsa else encode_ec_public_key(found)
        key = serialization.load_der_public_key(der)
        if not is_supported(key):
            raise UsageError(f"{self._name}: unsupported kind of key", f"use {keys.KINDS}")
        return key

    @contextmanager
    def _session(self) -> Iterator[Any]:
        try:
            import pkcs11
        except ImportError:
            raise UsageError(
                "a key on a token needs python-pkcs11", "pip install 'auditspec[pkcs11]'"
            ) from None
        try:
            token = pkcs11.lib(self._parts["module-path"]).get_token(
                token_label=self._parts["token"]
            )
            with token.open(user_pin=self._pin()) as session:
                yield session
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            what = str(error) or type(error).__name__
            raise UsageError(f"{self._name}: {what}", "check token, object, and PIN") from None

    def _pin(self) -> str:
        if "pin-source" in self._parts:
            path = Path(self._parts["pin-source"].removeprefix("file:"))
            if not path.exists():  # what stands there may be the PIN itself
                raise UsageError(f"{self._name}: pin-source names no file", "pin-source=FILE")
            pin = read_confidential(path)
        elif PIN in os.environ:
            return os.environ[PIN]
        else:
            pin = self._ask(f"{self._name}: the token")
        try:
            return pin.decode().strip()
        except UnicodeDecodeError:
            raise UsageError(f"{self._name}: the PIN is not UTF-8") from None
