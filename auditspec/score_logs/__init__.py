"""Scores out of the logs of other tools: one reader a file, and the table that audits read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from auditspec.score_logs import inspect_log, lm_eval
from auditspec.score_logs.rows import Scored, Wanted

Reader: TypeAlias = Callable[[Path, Wanted], Iterator[Scored]]
READERS: Mapping[str, Reader] = {"inspect": inspect_log.read, "lm-eval": lm_eval.read}
"""By the name of the tool."""
