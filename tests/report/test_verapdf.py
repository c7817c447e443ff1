"""The PDFs keep what they claim, PDF/A-3a and PDF/UA-1, in the eyes of veraPDF."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_results import sample_result, signed_result
from sample_variants import failed_result, hostile_result, shared_result

from auditspec.report.pdf import render_pdf

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
]


def test_every_report_conforms(tmp_path: Path) -> None:
    for name, make in SAMPLES.items():
        result = make()
        pdf = render_pdf(result, result.model_dump_json().encode())
        (tmp_path / f"{name}.pdf").write_bytes(pdf)
    files = [f"{name}.pdf" for name in SAMPLES]
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
