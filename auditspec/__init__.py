"""auditspec: which training stage is answerable for a model's failure, how much, and how sure?

`Recorder` and `Dataset` are what a training script needs; they load on first use, so that
importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditspec.artifacts.datasets import Dataset
    from auditspec.recorder.recorder import Recorder

__all__ = ["Dataset", "Recorder", "__version__"]

try:
    __version__ = version("auditspec")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_LAZY = {"Dataset": "auditspec.artifacts.datasets", "Recorder": "auditspec.recorder.recorder"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'auditspec' has no attribute {name!r}")
