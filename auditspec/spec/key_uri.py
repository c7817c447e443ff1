"""Keys that are named by a URI, `pkcs11:token=…;object=…?module-path=…` (RFC 7512) among them, and what may be shown of it."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

SCHEME = "pkcs11:"
PIN_INSIDE = (
    "the URI carries a PIN (pin-value) or a password, which would stand where everybody can read it"
)
"""What is said of it, without the URI."""
PIN_ELSEWHERE = (
    "take it out, and change it; of a token name a file: pin-source=FILE, or wait to be asked"
)


def uri_scheme(key: str) -> str | None:
    """The scheme, in lower case, of a key named by a URI; None for a file. One letter is a drive, not a scheme."""
    named = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", key)
    return named[1].lower() if named else None


def carries_pin(uri: str) -> bool:
    """Whether a secret stands in it: a token's PIN, in whatever letter case or encoding, or a user's password."""
    scheme = uri_scheme(uri)
    if scheme == "pkcs11":
        return "pin-value" in unquote(uri).lower()
    try:
        return scheme is not None and "@" in unquote(urlsplit(uri).netloc)
    except ValueError:
        return False


def attributes(uri: str) -> dict[str, str]:
    """Its attributes, decoded."""
    path, _, query = uri[len(SCHEME) :].partition("?")
    pairs = (part.partition("=") for part in (*path.split(";"), *query.split("&")) if part)
    return {name: unquote(value) for name, _, value in pairs}


def shown(uri: str) -> str:
    """What messages may say of it: which token and which object, nothing else."""
    named = attributes(uri)
    parts = (f"{name}={named[name]}" for name in ("token", "object") if name in named)
    return SCHEME + ";".join(parts)
