"""WeasyPrint, loaded without asking a compiler where its libraries lie.

It tries every name that a library has on some system, and for each name that Linux does not know three programs are
started, gcc among them: a quarter of a second in all.
"""

from __future__ import annotations

import ctypes.util
import re
import sys

from auditspec.collector import unsearched

FOREIGN = re.compile(r"lib.*|.*-(0|1|0\.0)")
"""Names of files on Windows and macOS. On Linux `find_library` takes a name without `lib` and version, and would find none of these."""


def load_weasyprint() -> None:
    """Import WeasyPrint, with the libraries that it finds by itself."""
    if "weasyprint" in sys.modules or sys.platform != "linux":
        return
    original = ctypes.util.find_library
    ctypes.util.find_library = lambda name: None if FOREIGN.fullmatch(name) else original(name)
    try:
        with unsearched():
            import weasyprint  # noqa: F401
    finally:
        ctypes.util.find_library = original
