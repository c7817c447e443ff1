"""Keys in a key management service: the transit engine of OpenBao, or of HashiCorp Vault, whose interface it shares.

    hashivault://signing

Address, certificate, and namespace are those that the service's own tools read from the environment (`VAULT_ADDR`,
`VAULT_CACERT`, `VAULT_NAMESPACE`), and the engine's path is `TRANSIT_SECRET_ENGINE_PATH`, as Sigstore's cosign has it.
The service's token is read from `VAULT_TOKEN`, or asked for. No spec can name where it is sent.

Source: the HTTP interface of transit, <https://openbao.org/api-docs/secret/transit/>.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from auditspec.errors import UsageError
from auditspec.sign import http, keys
from auditspec.sign.confidential import Ask, nobody
from auditspec.sign.signer import RemoteSigner

ADDRESS, TOKEN, PATH = "VAULT_ADDR", "VAULT_TOKEN", "TRANSIT_SECRET_ENGINE_PATH"
MAX_ANSWER = 2**20
"""Bytes of an answer."""
_NAME = re.compile(r"hashivault://([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)", re.IGNORECASE)


class TransitSigner(RemoteSigner):
    """Signs with the version of a transit key that was the latest when the signer was made.

    Raises:
        UsageError: if the URI is no key's name, the address is missing or unprotected, or the service does not answer, refuses,
            or has no such key; from `sign` too.
    """

    scheme = "hashivault"

    def __init__(self, uri: str, ask: Ask = nobody) -> None:
        named = _NAME.fullmatch(uri)
        if named is None:
            raise UsageError("hashivault: the URI names no key", "hashivault://NAME")
        self._key = named[1]
        self._name = f"hashivault://{self._key}"
        self._address = self._read_address()
        self._token = os.environ.get(TOKEN) or self._asked(ask)
        self._opener = http.opener(self._tls())
        about = self._ask_service("GET", f"keys/{self._key}")
        self.public_key, self._version = self._latest(about)

    def remote_signature(self, data: bytes) -> bytes:
        """The signature over `data`; of ECDSA and RSA keys the service sees the digest alone."""
        whole = self.algorithm == "ed25519"
        given = data if whole else hashlib.sha256(data).digest()
        request = {"input": base64.b64encode(given).decode(), "key_version": self._version}
        if not whole:
            request |= {"prehashed": True, "marshaling_algorithm": "asn1"}
            request |= {"signature_algorithm": "pss", "salt_length": "hash"}
        answer = self._ask_service("POST", f"sign/{self._key}/sha2-256", request)
        try:
            return base64.b64decode(answer["signature"].rpartition(":")[2], validate=True)
        except (KeyError, AttributeError, ValueError):
            raise self._refused("its answer is no signature") from None

    def _latest(self, about: dict[str, Any]) -> tuple[keys.PublicKey, int]:
        """Public key and number of a key's latest version; Ed25519 keys come as 32 bytes, others as PEM."""
        try:
            version = int(about["latest_version"])
            public = about["keys"][str(version)]["public_key"]
            key = (
                ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
                if about["type"] == "ed25519"
                else serialization.load_pem_public_key(public.encode())
            )
        except (KeyError, TypeError, AttributeError, ValueError, UnsupportedAlgorithm):
            raise self._refused("it is no key that signs") from None
        if not keys.is_supported(key):
            raise UsageError(f"{self._name}: unsupported kind of key", f"use {keys.KINDS}")
        return key, version

    # --- the service

    def _ask_service(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What it answers, as data.

        Raises:
            UsageError: if it does not answer, refuses, or answers something else.
        """
        engine = os.environ.get(PATH, "transit").strip("/")
        headers = {"X-Vault-Token": self._token, "X-Vault-Request": "true"}
        if namespace := os.environ.get("VAULT_NAMESPACE"):
            headers["X-Vault-Namespace"] = namespace
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{self._address}/v1/{engine}/{path}",
            json.dumps(body).encode() if body else None,
            headers,
            method=method,
        )
        try:
            with self._opener.open(request, timeout=http.TIMEOUT) as response:
                data = json.loads(response.read(MAX_ANSWER))["data"]
        except urllib.error.HTTPError as error:
            raise self._refused(_reason(error)) from None
        except (OSError, HTTPException) as error:
            raise self._refused(str(getattr(error, "reason", error))) from None
        except (ValueError, LookupError, TypeError):
            raise self._refused("its answer is not that of a transit engine") from None
        if not isinstance(data, dict):
            raise self._refused("its answer is not that of a transit engine")
        return data

    def _refused(self, why: str) -> UsageError:
        told = "".join(c if c.isprintable() else " " for c in why[:200])
        return UsageError(
            f"{self._name}: {told.replace(self._token, '…')}",
            f"check the key's name, {ADDRESS}, {PATH}, and what the token may do",
        )

    def _read_address(self) -> str:
        """Where the service is; the token goes in the clear to this machine only."""
        address = os.environ.get(ADDRESS, "").rstrip("/")
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise UsageError(
                f"{self._name}: {ADDRESS} is no http or https address",
                f"say where the service is: {ADDRESS}=https://HOST:8200",
            )
        if parts.scheme == "http" and not _is_here(parts.hostname):
            raise UsageError(
                f"{self._name}: {ADDRESS} is not https, and whoever listens would have the token",
                f"{ADDRESS}=https://HOST:8200",
            )
        return address

    def _tls(self) -> ssl.SSLContext:
        authority = os.environ.get("VAULT_CACERT")
        try:
            return ssl.create_default_context(cafile=authority)
        except (OSError, ValueError):
            raise UsageError(f"{self._name}: VAULT_CACERT holds no certificates in PEM") from None

    def _asked(self, ask: Ask) -> str:
        token = ask(f"{self._name}: the key management service")
        try:
            return token.decode("ascii").strip()
        except UnicodeDecodeError:
            raise UsageError(f"{self._name}: the token is not ASCII") from None


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(error: urllib.error.HTTPError) -> str:
    """What the service says of its refusal."""
    with error:
        try:
            said = "; ".join(str(e) for e in json.loads(error.read(MAX_ANSWER))["errors"])
        except (OSError, HTTPException, ValueError, LookupError, TypeError):
            said = ""
    return said or f"HTTP {error.code}"
