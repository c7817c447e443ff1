"""What drew the reports: everything that their bytes depend on besides the results.

The results name it, so that a verifier who draws them again knows whether other bytes are a lie or another renderer.
"""

from __future__ import annotations

import hashlib
import platform
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from auditspec import plugins
from auditspec.report.print_library import load_weasyprint
from auditspec.resources import folder

PAGE_LIBRARIES = ("jinja2", "markupsafe", "pydantic")
PRINT_LIBRARIES = (
    *(
        "weasyprint",
        "pydyf",
        "tinycss2",
        "tinyhtml5",
        "cssselect2",
        "fonttools",
        "pyphen",
        "pillow",
    ),
)
_NATIVE = ("pango", "harfbuzz", "fontconfig", "zlib")


def renderer() -> dict[str, str]:
    """The renderer of this installation: versions by name, of `auditspec` itself with a digest of code and templates."""
    python = platform.python_version_tuple()
    return {
        "auditspec": f"{version('auditspec')} {_own_digest()}",
        "python": f"{python[0]}.{python[1]}",
        **{name: version(name) for name in (*PAGE_LIBRARIES, *PRINT_LIBRARIES)},
        **_native_versions(),
        **{
            f"{plugin.kind}/{plugin.name}": f"{plugin.distribution} {plugin.version} {plugin.digest}"
            for plugin in plugins.installed()
            if plugin.kind in ("sections", "exports")
        },
    }


def differences(declared: Mapping[str, str], *, printed: bool) -> tuple[str, ...]:
    """How the renderer that results name differs from the one here.

    Args:
        declared: what `renderer` gave where the reports were drawn.
        printed: whether what draws the PDF counts too.

    Returns:
        For people: `weasyprint 69.0 there, 70.0 here`.
    """
    here = renderer()
    passed_over = set() if printed else {*PRINT_LIBRARIES, *_NATIVE}
    return tuple(
        f"{name} {declared.get(name, 'none')} there, {here.get(name, 'none')} here"
        for name in sorted({*declared, *here} - passed_over)
        if declared.get(name) != here.get(name)
    )


def _native_versions() -> dict[str, str]:
    """Versions of the libraries below WeasyPrint, and of the one that compresses."""
    load_weasyprint()
    from weasyprint.text.ffi import ffi, fontconfig, harfbuzz, pango

    ffi.cdef(
        "const char *pango_version_string(void); const char *hb_version_string(void);"
        "int FcGetVersion(void);",
        override=True,
    )
    texts = (pango.pango_version_string(), harfbuzz.hb_version_string())
    shown = (*(ffi.string(text).decode() for text in texts), str(fontconfig.FcGetVersion()))
    return dict(zip(_NATIVE, (*shown, zlib.ZLIB_RUNTIME_VERSION), strict=True))


def _own_digest() -> str:
    """Of every file of the package and of its templates, fonts among them."""
    package, whole = Path(__file__).parents[1], hashlib.sha256()
    for root, pattern in ((package, "*.py"), (folder("templates"), "*")):
        for path in sorted(path for path in root.rglob(pattern) if path.is_file()):
            name = path.relative_to(root).as_posix()
            whole.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"
