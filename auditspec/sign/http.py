"""HTTP for signing: requests to the one address that somebody named, and nowhere else."""

from __future__ import annotations

import ssl
import urllib.request

TIMEOUT = 30.0
"""Seconds to wait for an answer."""


def opener(tls: ssl.SSLContext | None = None) -> urllib.request.OpenerDirector:
    """What sends requests, and follows no redirection; `tls` says whose certificates count, by default the system's."""
    handlers = [urllib.request.HTTPSHandler(context=tls)] if tls else []
    return urllib.request.build_opener(_NoRedirect, *handlers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None
