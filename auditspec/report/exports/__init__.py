"""What the results are handed out as, one file each.

An export is a class in one file; `EXPORTS` is the only list of them. Packet, spec, verifier, and command
line ask the class for its name and its file.
"""

from collections.abc import Collection

from auditspec.errors import UsageError
from auditspec.plugins import available
from auditspec.report.exports.html import Html
from auditspec.report.exports.interface import Export, Source
from auditspec.report.exports.json import Json
from auditspec.report.exports.pdf import Pdf
from auditspec.report.exports.readback import MisreportedError
from auditspec.spec.suggest import did_you_mean

EXPORTS: tuple[type[Export], ...] = (Json, Html, Pdf)


def exports() -> dict[str, Export]:
    """Every export by name, those of plug-ins after the built-in ones.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    classes = available("exports", EXPORTS, Export)  # type: ignore[type-abstract]
    return {name: export() for name, export in classes.items()}


def chosen(names: Collection[str] | None) -> tuple[Export, ...]:
    """The exports of these names, in the list's order; for None, those that are made by default.

    Raises:
        UsageError: if there is none of a name, or a plug-in cannot be used.
    """
    every = exports()
    for name in names or ():
        if name not in every:
            raise UsageError(f"no export is named {name!r}", did_you_mean(name, every, "exports"))
    if names is None:
        return tuple(export for export in every.values() if export.default)
    return tuple(export for export in every.values() if export.name in names)


__all__ = ["EXPORTS", "Export", "MisreportedError", "Source", "chosen", "exports"]
