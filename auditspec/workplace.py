"""Where and how an audit is done: what it keeps, who helps, what the audited code may, who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from auditspec.confinement import UNCONFINED, Confinement
from auditspec.estimator.cache import Cache
from auditspec.progress import SILENT, Progress
from auditspec.team import Team


@dataclass(frozen=True)
class Workplace:
    """What an audit has around it; nothing of it changes what the audit finds."""

    cache: Cache | None = None
    """Estimates of earlier runs; None: everything is computed anew."""
    confinement: Confinement = UNCONFINED
    """Whether the spec's code may be executed, and how it is kept apart."""
    team: Team | None = None
    """The ranks that share the work, this one the first of them; None: this process is alone."""
    announce: Callable[[str], None] = lambda line: None
    """Told of every code file before it is executed."""
    progress: Progress = SILENT
    """Told of the long phases."""


ALONE = Workplace()
