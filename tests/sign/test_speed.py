"""What verifying and hashing may cost, in processor time, which a busy machine distorts least."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pki
import pytest
from sample_packet import concluded, packet_files, packet_result

from auditspec.artifacts.digest import digest_file
from auditspec.report.exports.pdf_text import PdfText
from auditspec.results import AuditResult
from auditspec.sign.credentials import Credentials
from auditspec.sign.packet import PacketWriter
from auditspec.sign.pdf import sign_pdf

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def large(copies: int) -> AuditResult:
    """The usual result with every behaviour, effect, verdict, finding, and check several times."""
    result = packet_result()

    def numbered(items, *names):
        return tuple(
            item.model_copy(update={name: f"{getattr(item, name)}-{n}" for name in names})
            for n in range(copies)
            for item in items
        )

    whole = result.model_copy(
        update={
            "behaviors": numbered(result.behaviors, "id"),
            "effects": numbered(result.effects, "behavior"),
            "paths": numbered(result.paths, "behavior"),
            "draws": numbered(result.draws, "behavior"),
            "verdicts": numbered(result.verdicts, "behavior"),  # with their tallies
            "checks": numbered(result.checks),
        }
    )
    return concluded(whole)


@pytest.fixture(scope="module")
def fifty_pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The last line of verifying a packet of fifty pages, and the processor time that it took."""
    tmp_path = tmp_path_factory.mktemp("pages")
    holder = pki.root().issue("Lead auditor")
    credentials = Credentials(holder.signer, holder.chain, None, "B-B")
    result = large(6).model_copy(update={"signer": credentials.info})
    files = packet_files(result, pdf=True)
    assert len(list(PdfText(files["report.pdf"])._pages())) >= 50
    with PacketWriter(tmp_path / "packet") as packet:
        for name, data in files.items():
            packet.write(name, sign_pdf(data, credentials) if name == "report.pdf" else data)
        packet.seal(holder.signer, result, *credentials.extras)
    holder.write(tmp_path, "auditor")
    (tmp_path / "trust.yaml").write_text(
        'auditspec_trust: "1"\nkeys: [{name: Ada, role: auditor, key: auditor.pub}]\n'
        "require: {auditor: 1}\n"
    )
    program = "from auditspec.cli.main import main; main()"
    command = [sys.executable, "-c", program, "verify", "packet", "--trust", "trust.yaml"]
    before = children()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    return ran.stdout.splitlines()[-1], children() - before


def test_fifty_pages_are_made_again(fifty_pages: tuple[str, float]) -> None:
    assert fifty_pages[0].startswith("valid")


def test_in_ten_seconds(fifty_pages: tuple[str, float]) -> None:
    print(f"{fifty_pages[1]:.1f} s of processor time")
    assert fifty_pages[1] < 10


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_hashing_keeps_up_with_openssl(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(2**20) * 256)
    ours, theirs = [], []
    for _ in range(3):
        begun = time.process_time()
        digest, _ = digest_file(path)
        ours.append(time.process_time() - begun)
        before = children()
        ran = subprocess.run(["openssl", "dgst", "-sha256", path], capture_output=True, text=True)
        theirs.append(children() - before)
        assert ran.stdout.split()[-1] == digest.removeprefix("sha256:")
    assert min(theirs) / min(ours) >= 0.8
