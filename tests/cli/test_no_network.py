"""No command opens a network connection, unless a timestamp authority is named: then only that one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pki
import pytest
from sample_packet import write_packet
from small_audit import edit_spec

from auditspec.sign.signer import KeySigner

ROOT = Path(__file__).parents[2]
WATCHED = """\
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        print("NETWORK", event, arguments[-1] if event == "socket.connect" else arguments[0], file=sys.stderr)
sys.addaudithook(hook)
from auditspec.cli.main import main
sys.argv = ["auditspec", *sys.argv[1:]]
main()
"""


def call(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and every attempt to reach the network: by Python's own events and by system calls."""
    command = [sys.executable, "-c", WATCHED, *arguments]
    trace = folder / "trace"
    if shutil.which("strace"):
        command = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(trace), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    found = re.findall(r"NETWORK .*", ran.stderr)
    if trace.exists():
        found += re.findall(r".*AF_INET.*", trace.read_text())
    assert ran.returncode != 70, ran.stderr
    return ran.returncode, found


def test_the_watch_sees_a_connection(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    pki.root().write(tmp_path, "a")
    write_packet(tmp_path / "packet", KeySigner.from_file(tmp_path / "a.key"))
    pki.root().write(tmp_path, "b")
    arguments = ("sign", "packet", "--key", "b.key", "--certificate", "b.pem")
    code, found = call(tmp_path, *arguments, "--timestamp", "http://127.0.0.1:9/")
    assert code == 2
    assert found and all("127.0.0.1" in line for line in found)


@pytest.mark.slow
def test_no_command_opens_a_connection(audit_spec: Path) -> None:
    folder = audit_spec.parent
    assert call(folder, "keys", "new", "auditor") == (0, [])
    signing = {"key": "auditor.key", "certificate": "auditor.pem"}
    edit_spec(audit_spec, lambda data: data.update(signing=signing))
    for expected, *arguments in [
        (0, "schema"),
        (0, "init", "new.yaml"),
        (0, "validate", "audit.yaml"),
        (0, "digest", "model.safetensors"),
        (0, "plan", "audit.yaml"),
        (0, "limit", "audit.yaml"),
        (1, "run", "audit.yaml", "-o", "packet"),
        (0, "render", "packet/results.json", "-o", "again"),
        (0, "verify", "packet", "--trust", "trust.yaml"),
        (0, "keys", "new", "owner", "--trust-file", "owner.yaml"),
        (0, "sign", "packet", "--key", "owner.key", "--certificate", "owner.pem"),
        (0, "log", "append", "log", "packet", "--key", "owner.key"),
        (0, "record", "show", "record"),
        (0, "redact", "packet", "/evidence", "--reason", "r", "-o", "less"),
    ]:
        code, found = call(folder, *arguments)
        assert found == [], arguments
        assert code == expected, arguments
