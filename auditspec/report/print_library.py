"""WeasyPrint, loaded without asking a compiler where its libraries lie.

It tries every name that a library has on some system, and for each that does not load by itself several programs are
started, gcc among them: a quarter of a second in all. On Linux the one name that loads is in its list.
"""

from __future__ import annotations

import ctypes.util
import sys

from auditspec.collector import unsearched


def load_weasyprint() -> None:
    """Import WeasyPrint, with the libraries that it finds by itself."""
    if "weasyprint" in sys.modules or sys.platform != "linux":
        return
    original = ctypes.util.find_library
    ctypes.util.find_library = lambda name: None
    try:
        with unsearched():
            import weasyprint  # noqa: F401
    finally:
        ctypes.util.find_library = original
