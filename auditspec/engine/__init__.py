"""Computation on a record: re-running its steps, derivative products, and the audited code."""

from auditspec.engine.interface import Engine
from auditspec.engine.rerun import Rerun

ENGINES: tuple[type[Engine], ...] = (Rerun,)
"""Every engine of this package."""
