"""WeasyPrint finds its libraries, and no compiler is started to look for them."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes.util
import gc
import subprocess

started, original = [], ctypes.util.find_library


class Popen(subprocess.Popen):
    def __init__(self, command, *arguments, **options):
        started.append(str(command[0]).rpartition("/")[2])
        super().__init__(command, *arguments, **options)


subprocess.Popen = Popen
from auditspec.report.print_library import load_weasyprint

load_weasyprint()
assert ctypes.util.find_library is original and gc.isenabled()
from weasyprint.text.ffi import fontconfig, gobject, harfbuzz, harfbuzz_subset, pango, pangoft2

assert None not in (fontconfig, gobject, harfbuzz, harfbuzz_subset, pango, pangoft2)
print(len(started))
"""


def run(program: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_weasyprint_is_loaded_without_a_search() -> None:
    """By itself it starts about fifty programs."""
    assert run(PROGRAM) == 0
