"""Keys in a key management service: a real one (OpenBao), and others that answer what no service should."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from sample_packet import write_packet
from transit_service import TOKEN, TransitService, transit_service

from auditspec.cli.main import cli
from auditspec.errors import UsageError
from auditspec.sign import keys
from auditspec.sign.credentials import signer_of
from auditspec.sign.dsse import Envelope
from auditspec.sign.keys import Algorithm
from auditspec.sign.signer import KeySigner
from auditspec.sign.transit import TransitSigner

ALGORITHMS: tuple[Algorithm, ...] = ("ecdsa-p256-sha256", "ed25519", "rsa-pss-sha256")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransitService]:
    with transit_service(tmp_path_factory.mktemp("bao")) as running:
        yield running


@pytest.fixture
def reachable(service: TransitService, monkeypatch: pytest.MonkeyPatch) -> TransitService:
    monkeypatch.setenv("VAULT_ADDR", service.address)
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    return service


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_signs_as_any_key_does(reachable: TransitService, algorithm: Algorithm) -> None:
    signer = signer_of(f"hashivault://{algorithm}", Path())
    assert signer.algorithm == algorithm
    envelope = Envelope("application/x", b"payload").signed_by(signer)
    (signature,) = envelope.signatures
    assert keys.verifies(signer.public_key, signature.sig, envelope.pae)
    assert not keys.verifies(signer.public_key, signature.sig, b"other")


def test_a_key_that_was_rotated_signs_with_the_version_that_was_read(
    reachable: TransitService,
) -> None:
    reachable.post("transit/keys/rotated", type="ed25519")
    before = TransitSigner("hashivault://rotated")
    reachable.post("transit/keys/rotated/rotate")
    after = TransitSigner("hashivault://rotated")
    assert before.keyid != after.keyid
    for signer in (before, after):
        assert keys.verifies(signer.public_key, signer.sign(b"data"), b"data")


def test_the_public_key_for_trust_files(
    reachable: TransitService, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli(["keys", "public", "hashivault://ed25519"], standalone_mode=False)
    (tmp_path / "ada.pub").write_text(capsys.readouterr().out)
    shown = keys.keyid(keys.load_public(tmp_path / "ada.pub"))
    assert shown == TransitSigner("hashivault://ed25519").keyid


def test_another_engine(reachable: TransitService, monkeypatch: pytest.MonkeyPatch) -> None:
    reachable.post("sys/mounts/teams/audit", type="transit")
    reachable.post("teams/audit/keys/ada", type="ecdsa-p256")
    monkeypatch.setenv("TRANSIT_SECRET_ENGINE_PATH", "teams/audit")
    assert TransitSigner("hashivault://ada").sign(b"data")


def test_a_command_signs_with_it_and_is_given_the_token(
    service: TransitService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    packet = write_packet(tmp_path / "packet", KeySigner(keys.generate("ed25519")))
    monkeypatch.setenv("VAULT_ADDR", service.address)
    monkeypatch.delenv("VAULT_TOKEN", raising=False)
    (tmp_path / "token").write_text(TOKEN)
    with (tmp_path / "token").open() as token:
        arguments = ["sign", str(packet), "--key", "hashivault://ed25519"]
        cli([*arguments, "--passphrase-fd", str(token.fileno())], standalone_mode=False)
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err
    envelope = Envelope.decode((packet / "packet.dsse.json").read_bytes())
    assert len(envelope.signatures) == 2


@pytest.mark.parametrize(
    ("key", "token", "why"),
    [
        ("none", TOKEN, "HTTP 404"),
        ("ed25519", "wrong-token", "permission denied"),
        ("secret", TOKEN, "no key that signs"),
        ("curve", TOKEN, "unsupported kind of key"),
    ],
)
def test_what_the_service_refuses(
    reachable: TransitService, monkeypatch: pytest.MonkeyPatch, key: str, token: str, why: str
) -> None:
    reachable.post("transit/keys/secret", type="aes256-gcm96")
    reachable.post("transit/keys/curve", type="ecdsa-p384")
    monkeypatch.setenv("VAULT_TOKEN", token)
    with pytest.raises(UsageError, match=why) as caught:
        TransitSigner(f"hashivault://{key}")
    assert f"hashivault://{key}" in str(caught.value) and token not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "uri", "why"),
    [
        (None, "hashivault://signing", "VAULT_ADDR"),
        ("vault.example:8200", "hashivault://signing", "VAULT_ADDR"),
        ("file:///etc/passwd", "hashivault://signing", "VAULT_ADDR"),
        ("https://user:word@vault.example", "hashivault://signing", "VAULT_ADDR"),
        ("http://vault.example:8200", "hashivault://signing", "not https"),
        ("http://127.0.0.1.vault.example", "hashivault://signing", "not https"),
        ("http://127.0.0.1:1", "hashivault://../sys/raw", "names no key"),
        ("http://127.0.0.1:1", "hashivault://a/b", "names no key"),
        ("http://127.0.0.1:1", "hashivault:signing", "names no key"),
        ("http://127.0.0.1:1", "hashivault://signing", "refused"),
    ],
)
def test_where_no_token_is_sent(
    monkeypatch: pytest.MonkeyPatch, address: str | None, uri: str, why: str
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    monkeypatch.delenv("VAULT_ADDR", raising=False)
    if address is not None:
        monkeypatch.setenv("VAULT_ADDR", address)
    with pytest.raises(UsageError, match=why) as caught:
        TransitSigner(uri)
    assert TOKEN not in str(caught.value) and "word@" not in str(caught.value)


def test_without_a_token_somebody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    monkeypatch.delenv("VAULT_TOKEN", raising=False)
    with pytest.raises(UsageError, match="nobody to ask"):
        TransitSigner("hashivault://signing")
    with pytest.raises(UsageError, match="not ASCII"):
        TransitSigner("hashivault://signing", lambda what: b"\xff")


# --- answers that no service should give


@contextmanager
def answering(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[str]:
    """The address of a service that gives one answer (status, headers, body) after another."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, body = left.pop(0)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the server's name for it

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


HONEST = KeySigner(keys.generate("ecdsa-p256-sha256"))
PUBLIC = keys.public_pem(HONEST.public_key).decode()


def data(**value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"data": value}).encode()


KEY = data(type="ecdsa-p256", latest_version=1, keys={"1": {"public_key": PUBLIC}})


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"not JSON"),
        (200, {}, b"[]"),
        (200, {}, b'{"data": []}'),
        (200, {}, b'{"data": {"latest_version": 1, "keys": []}}'),
        (302, {"Location": "http://127.0.0.1:1/elsewhere"}, b""),
        (403, {}, json.dumps({"errors": [f"\x1b[31mdenied: {TOKEN}"]}).encode()),
        (500, {}, b"x" * 3_000_000),
        data(type="ecdsa-p256", latest_version=1, keys={"1": {"public_key": "no key"}}),
        data(type="ed25519", latest_version=1, keys={"1": {"public_key": "AAAA"}}),
    ],
)
def test_answers_about_a_key(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, dict[str, str], bytes]
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    with answering(answer) as address:
        monkeypatch.setenv("VAULT_ADDR", address)
        with pytest.raises(UsageError) as caught:
            TransitSigner("hashivault://signing")
    assert TOKEN not in str(caught.value) and "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "answer",
    [
        data(),
        data(signature=1),
        data(signature="vault:v1:***"),
        data(signature="vault:v1:AAAA"),
    ],
)
def test_a_signature_that_is_none(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, dict[str, str], bytes]
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", TOKEN)
    with answering(KEY, answer) as address:
        monkeypatch.setenv("VAULT_ADDR", address)
        signer = TransitSigner("hashivault://signing")
        with pytest.raises(UsageError, match="no signature"):
            signer.sign(b"data")
