"""auditspec: which training stage is answerable for a model's failure, how much, and how sure?

Every name of this face loads on first use, so that importing the package costs nothing. A training
script needs `Recorder`, `Dataset`, `save_checkpoint`, and to commit beforehand `Plan` and `seal_commitment`; an auditor's program the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditspec.api import (
        audit,
        counterfactuals,
        import_record,
        load_spec,
        plan,
        render,
        save_checkpoint,
        seal_commitment,
        sealer,
        verify,
    )
    from auditspec.artifacts.datasets import Dataset
    from auditspec.record.plan import Plan, PlannedPass
    from auditspec.recorder.recorder import Recorder
    from auditspec.results import AuditResult

__all__ = [
    "AuditResult",
    "Dataset",
    "Plan",
    "PlannedPass",
    "Recorder",
    "__version__",
    "audit",
    "counterfactuals",
    "import_record",
    "load_spec",
    "plan",
    "render",
    "save_checkpoint",
    "seal_commitment",
    "sealer",
    "verify",
]

__version__: str

_HOME = {
    "AuditResult": "auditspec.results",
    "Dataset": "auditspec.artifacts.datasets",
    "Plan": "auditspec.record.plan",
    "PlannedPass": "auditspec.record.plan",
    "Recorder": "auditspec.recorder.recorder",
} | dict.fromkeys(
    (
        "audit",
        "counterfactuals",
        "import_record",
        "load_spec",
        "plan",
        "render",
        "save_checkpoint",
        "seal_commitment",
        "sealer",
        "verify",
    ),
    "auditspec.api",
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'auditspec' has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("auditspec")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
