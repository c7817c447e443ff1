"""The PDFs keep what they claim, PDF/A-3a and PDF/UA-1, in the eyes of veraPDF."""

import os
import shutil
import subprocess
from pathlib import Path

import pki
import pytest
from sample_results import sample_result, signed_result
from sample_variants import failed_result, hostile_result, shared_result

from auditspec.report.exports.pdf_file import render_pdf
from auditspec.sign.credentials import Credentials
from auditspec.sign.pdf import sign_pdf
from auditspec.sign.timestamps import TimestampAuthority

VARIABLE = "VERAPDF_CLASSPATH"
CHECKER = Path(__file__).with_name("Conformance.java")
SAMPLES = {
    "unsigned": sample_result,
    "signed": signed_result,
    "shared": shared_result,
    "failed": failed_result,
    "hostile": hostile_result,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} does not name veraPDF"),
    pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java development kit"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]


def signed_at_every_level(pdf: bytes, folder: Path) -> dict[str, bytes]:
    root, tsa_root = pki.root(), pki.root("Example TSA Root")
    holder, levels = root.issue("Lead auditor"), ("B-B", "B-T", "B-LT", "B-LTA")
    with pki.serving(pki.timestamping(tsa_root), folder) as url:
        authority = TimestampAuthority(url)
        crls, known = (root.crl(), tsa_root.crl()), (root.certificate, tsa_root.certificate)
        return {
            level: sign_pdf(
                pdf, Credentials(holder.signer, holder.chain, authority, level, crls, known)
            )
            for level in levels
        }


def test_every_report_conforms(tmp_path: Path) -> None:
    pdfs = {}
    for name, make in SAMPLES.items():
        result = make()
        pdfs[name] = render_pdf(result, result.model_dump_json().encode())
    pdfs |= signed_at_every_level(pdfs["signed"], tmp_path / "tsa")
    for name, pdf in pdfs.items():
        (tmp_path / f"{name}.pdf").write_bytes(pdf)
    files = [f"{name}.pdf" for name in pdfs]
    checked = subprocess.run(
        ["java", "-cp", os.environ[VARIABLE], CHECKER, *files],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.splitlines() == [
        f"{file} {standard} passes" for file in files for standard in ("3a", "ua1")
    ]
