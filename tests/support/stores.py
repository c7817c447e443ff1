"""Stores for tests: this process's memory, a folder, and an S3 server on loopback where moto is installed."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from auditspec.artifacts.stores import Store

KINDS = ("memory", "file", "s3")
SECRET = "the-secret-of-the-bucket"


@contextmanager
def bucket(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty place in a store."""
    if kind == "file":
        yield (folder / "bucket").as_uri()
    elif kind == "memory":
        yield "memory://bucket"
        fsspec.filesystem("memory").store.clear()
    else:
        server = pytest.importorskip("moto.server", reason="make test-stores has a server of S3")
        pytest.importorskip("s3fs")
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id-of-the-bucket")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        running.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*running.get_host_and_port()))
        try:
            name = f"bucket-{secrets.token_hex(4)}"  # servers of one process share what they hold
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
            yield f"s3://{name}/place"
        finally:
            running.stop()


def put(url: str, place: Path) -> str:
    """Put a file or folder under its own name below a URL; gives its URL."""
    store = Store(f"{url}/{place.name}")
    if place.is_file():
        store.put(place)
    for path in sorted(p for p in place.rglob("*") if p.is_file()):
        store.put(path, path.relative_to(place).as_posix())
    return store.url
