"""Computation on a record: re-running its steps, derivative products, and the audited code."""

from auditspec.engine.interface import Engine
from auditspec.engine.rerun import Rerun
from auditspec.engine.wrapper import EngineWrapper
from auditspec.errors import UsageError
from auditspec.plugins import available

__all__ = ["ENGINES", "Engine", "EngineWrapper", "Rerun", "engine_named"]

ENGINES: tuple[type[Engine], ...] = (Rerun,)
"""The engines that auditspec brings."""


def engine_named(name: str) -> type[Engine]:
    """The engine of a name, built in or plugged in.

    Raises:
        UsageError: if there is none, or a plug-in cannot be loaded.
    """
    engines = available("engines", ENGINES, Engine)  # type: ignore[type-abstract]
    if name not in engines:
        raise UsageError(
            f"there is no engine '{name}'", f"estimator.engine takes {', '.join(engines)}"
        )
    return engines[name]
