"""Names of keys on tokens, `pkcs11:token=…;object=…?module-path=…` (RFC 7512), and what of them may be shown."""

from __future__ import annotations

from urllib.parse import unquote

SCHEME = "pkcs11:"
PIN_INSIDE = "the URI carries a PIN (pin-value), which would stand where everybody can read it"
"""What is said of it, without the URI."""
PIN_ELSEWHERE = "take it out, and change the PIN; name a file: pin-source=FILE, or wait to be asked"


def names_token(key: str) -> bool:
    """Whether a key is named as one on a token; schemes of URIs have no letter case."""
    return key[: len(SCHEME)].lower() == SCHEME


def carries_pin(uri: str) -> bool:
    """Whether a PIN stands in it, in whatever letter case or encoding the attribute is written."""
    return names_token(uri) and "pin-value" in unquote(uri).lower()


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
