"""The fonts of the PDF report: those that are shipped here, and no other.

Fontconfig is given a configuration without folders, so that neither the system's fonts nor its settings can
change a report. Liberation Sans and Mono show Latin, Greek, and Cyrillic; DejaVu Sans shows symbols, and what these lack.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weasyprint.text.ffi import ffi, fontconfig, pangoft2
from weasyprint.text.fonts import FontConfiguration

from auditspec.resources import folder

_SETTINGS = ("FONTCONFIG_FILE", "FONTCONFIG_PATH", "FONTCONFIG_SYSROOT", "FC_LANG")
_lock = threading.Lock()


def font_files() -> tuple[Path, ...]:
    """The fonts, in the order in which they are looked at for a character.

    Raises:
        FileNotFoundError: if the installation lacks its templates.
    """
    files = (folder("templates") / "fonts").glob("*.ttf")
    return tuple(
        sorted(files, key=lambda file: (not file.name.startswith("Liberation"), file.name))
    )


class ShippedFonts(FontConfiguration):  # type: ignore[misc]
    """A configuration that knows the shipped fonts only.

    Raises:
        FileNotFoundError: if one of them cannot be loaded.
    """

    def __init__(self) -> None:
        with _without_the_systems():
            super().__init__()
        for file in font_files():
            if not fontconfig.FcConfigAppFontAddFile(self._config, os.fsencode(file)):
                raise FileNotFoundError(f"{file}: not a font")
        pangoft2.pango_fc_font_map_config_changed(ffi.cast("PangoFcFontMap *", self.font_map))


@contextmanager
def _without_the_systems() -> Iterator[None]:
    """Fontconfig reads an empty configuration: no folders, no aliases, no settings of the user's."""
    with _lock:
        before = {name: os.environ.pop(name, None) for name in _SETTINGS}
        os.environ["FONTCONFIG_FILE"] = str(folder("templates") / "fonts" / "fonts.conf")
        try:
            yield
        finally:
            del os.environ["FONTCONFIG_FILE"]
            os.environ.update({name: value for name, value in before.items() if value is not None})
