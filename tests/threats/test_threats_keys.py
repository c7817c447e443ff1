"""Threats to private keys: read by others, opened by anybody, their PIN told (S12)."""

import contextlib
import fcntl
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from factories import SPEC_TEXT
from sample_packet import write_packet

from auditspec.cli.main import main
from auditspec.errors import AuditspecError, UsageError
from auditspec.sign import keys
from auditspec.sign.confidential import from_descriptor
from auditspec.sign.signer import KeySigner
from auditspec.sign.tokens import TokenSigner
from auditspec.spec.source import load

pytestmark = pytest.mark.threat
PIN = "73914682"
OPEN_SESAME = b"open sesame \xc3\xa9"
COMMAND = [sys.executable, "-m", "auditspec"]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "auditor.key"
    keys.write_private(path, keys.generate("ecdsa-p256-sha256"))
    return path


@pytest.fixture
def encrypted(tmp_path: Path) -> Path:
    path = tmp_path / "secret.key"
    keys.write_private(path, keys.generate("ed25519"), OPEN_SESAME)
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()
    return path


@pytest.mark.parametrize("mode", [0o666, 0o644, 0o640, 0o604, 0o620, 0o610])
def test_s12_a_key_that_others_can_use(key: Path, mode: int) -> None:
    key.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}") as caught:
        keys.load_private(key)
    assert f"chmod 600 {key}" in caught.value.remedy
    key.chmod(0o400)
    assert keys.load_private(key)


def test_s12_an_encrypted_key_that_others_can_use(encrypted: Path) -> None:
    encrypted.chmod(0o644)
    with pytest.raises(UsageError, match="mode 0644"):
        keys.load_private(encrypted, lambda what: pytest.fail("nobody is asked for it"))


def test_s12_a_pin_file_that_others_can_read(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text(PIN)
    (tmp_path / "pin").chmod(0o644)
    signer = f"pkcs11:token=t;object=o?module-path=/none.so&pin-source={tmp_path}/pin"
    with pytest.raises(UsageError) as caught:
        TokenSigner(signer)
    assert PIN not in str(caught.value)


def test_s12_an_encrypted_key_asks(encrypted: Path) -> None:
    asked: list[str] = []

    def ask(what: str) -> bytes:
        asked.append(what)
        return OPEN_SESAME

    assert KeySigner.from_file(encrypted, ask).algorithm == "ed25519"
    assert len(asked) == 1 and "secret.key" in asked[0]
    with pytest.raises(UsageError, match="does not open it"):
        KeySigner.from_file(encrypted, lambda what: b"another")
    with pytest.raises(UsageError, match="nobody to ask") as caught:
        KeySigner.from_file(encrypted)
    assert "--passphrase-fd" in caught.value.remedy


def test_s12_a_passphrase_on_a_descriptor_is_read_once() -> None:
    """What the audited code finds on the descriptor afterwards is nothing."""
    descriptor = os.memfd_create("passphrase")
    try:
        os.write(descriptor, OPEN_SESAME + b"\r\nand more\n")
        os.lseek(descriptor, 0, os.SEEK_SET)
        assert from_descriptor(descriptor) == OPEN_SESAME
        assert os.read(descriptor, 10) == b""
        assert str(Path(f"/proc/self/fd/{descriptor}").readlink()) == os.devnull
    finally:
        os.close(descriptor)
    for broken in (b"", b"\n", b"x" * 5000):
        reading, writing = os.pipe()
        os.write(writing, broken)
        os.close(writing)
        with pytest.raises(UsageError, match="no passphrase"):
            from_descriptor(reading)
        os.close(reading)
    with pytest.raises(UsageError, match="cannot be read"):
        from_descriptor(reading)


def on_a_terminal(arguments: list[str], folder: Path, typed: bytes) -> tuple[int, str]:
    """A command on a terminal of its own; what was typed after each question, and all that was shown."""
    terminal, its_side = pty.openpty()
    child = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        stdin=its_side,
        stdout=its_side,
        stderr=its_side,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its_side)
    shown, answers = b"", 0
    with contextlib.suppress(OSError):  # Linux's end of a terminal
        while chunk := os.read(terminal, 1024):
            shown += chunk
            if shown.count(b"PIN: ") > answers:
                answers += 1
                os.write(terminal, typed + b"\n")
    os.close(terminal)
    return child.wait(), shown.decode()


def test_s12_a_prompt_without_echo(tmp_path: Path) -> None:
    code, shown = on_a_terminal(["keys", "new", "ada", "--encrypt"], tmp_path, OPEN_SESAME)
    assert code == 0 and shown.count("passphrase or PIN: ") == 2 and "not encrypted" not in shown
    write_packet(tmp_path / "packet", KeySigner(keys.generate("ed25519")))
    signing = ["sign", "packet", "--key", "ada.key"]
    code, again = on_a_terminal(signing, tmp_path, OPEN_SESAME)
    assert code == 0 and "signed by" in again
    assert "sesame" not in shown + again


def test_s12_a_descriptor_and_nobody_to_ask(tmp_path: Path, encrypted: Path) -> None:
    write_packet(tmp_path / "packet", KeySigner(keys.generate("ed25519")))
    arguments = [*COMMAND, "sign", "packet", "--key", encrypted.name]
    options = {"cwd": tmp_path, "capture_output": True, "start_new_session": True}
    alone = subprocess.run(arguments, stdin=subprocess.DEVNULL, **options)
    assert alone.returncode == 2 and b"nobody to ask" in alone.stderr
    given = subprocess.run([*arguments, "--passphrase-fd", "0"], input=OPEN_SESAME, **options)
    assert given.returncode == 0, given.stderr
    assert b"sesame" not in given.stdout + given.stderr


def with_pin(attribute: str) -> str:
    return f"pkcs11:token=auditor;object=signing?module-path=/none.so&{attribute}={PIN}"


URIS = [
    with_pin("pin-value"),
    with_pin("PIN-Value"),
    with_pin("pin%2Dvalue"),
    with_pin("pin-value").replace("?module-path=/none.so&", ";"),
    with_pin("pin-value").replace("pkcs11:", "PKCS11:"),
    with_pin("pin-value").replace("token=auditor;object=signing", ""),
    with_pin("pin-source"),
]


@pytest.mark.parametrize("uri", URIS)
def test_s12_no_message_tells_a_pin(uri: str) -> None:
    with pytest.raises(AuditspecError) as caught:
        TokenSigner(uri)
    assert PIN not in str(caught.value) and PIN not in repr(caught.value.__context__)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("command", ["sign", "log"])
def test_s12_no_command_tells_a_pin(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packet = str(write_packet(tmp_path / "packet", KeySigner(keys.generate("ed25519"))))
    uri = with_pin("pin-value")
    arguments = {
        "sign": ["sign", packet],
        "log": ["log", "append", str(tmp_path / "log"), packet],
    }[command]
    monkeypatch.setattr(sys, "argv", ["auditspec", *arguments, "--key", uri])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert caught.value.code == 2 and "pin-value" in said.err
    assert PIN not in said.out + said.err


@pytest.mark.parametrize("uri", URIS[:6])
def test_s12_no_spec_with_a_pin_gets_as_far_as_a_packet(tmp_path: Path, uri: str) -> None:
    """A spec is copied into its packet, so that one with a PIN is refused before anything is done."""
    spec = tmp_path / "audit.yaml"
    spec.write_text(SPEC_TEXT + f'signing: {{key: "{uri}"}}\n')
    with pytest.raises(AuditspecError, match="AS091") as caught:
        load(spec)
    assert PIN not in str(caught.value) and "audit.yaml:" in str(caught.value)


def test_s12_a_pin_that_is_no_text(tmp_path: Path, token_library: Callable[[bytes], str]) -> None:
    """Decoding errors quote what they could not decode."""
    with pytest.raises(UsageError, match="not UTF-8") as caught:
        TokenSigner(token_library(b"\xff" + PIN.encode()))
    assert PIN not in str(caught.value) and caught.value.__cause__ is None


@pytest.fixture
def token_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], str]:
    """A token that is never opened, since its PIN cannot be read."""
    pkcs11 = pytest.importorskip("pkcs11")

    class Library:
        def get_token(self, **_: str) -> object:
            return self

        def open(self, user_pin: str) -> None:
            pytest.fail("its PIN was read")

    monkeypatch.setattr(pkcs11, "lib", lambda path: Library())

    def uri(pin: bytes) -> str:
        path = tmp_path / "pin"
        path.write_bytes(pin)
        path.chmod(0o600)
        return f"pkcs11:token=t;object=o?module-path=x&pin-source={path}"

    return uri
