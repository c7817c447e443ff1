"""Computation on a record: re-running its steps, derivative products, and the audited code."""

from auditspec.engine.interface import Engine
from auditspec.engine.rerun import Rerun
from auditspec.engine.wrapper import EngineWrapper
from auditspec.errors import UsageError
from auditspec.plugins import available

__all__ = ["ENGINES", "Engine", "EngineWrapper", "Rerun", "engine_named", "engines"]

ENGINES: tuple[type[Engine], ...] = (Rerun,)
"""The engines that auditspec brings."""


def engines() -> dict[str, type[Engine]]:
    """Every engine by name, built in or plugged in.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    return available("engines", ENGINES, Engine)  # type: ignore[type-abstract]


def engine_named(name: str) -> type[Engine]:
    """The engine of a name.

    Raises:
        UsageError: if there is none, or a plug-in cannot be used.
    """
    if name not in (known := engines()):
        raise UsageError(f"no engine is named '{name}'", f"use one of {', '.join(known)}")
    return known[name]
