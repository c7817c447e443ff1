"""Counterfactual end states without a stage: exact replay and estimators.

`ESTIMATORS` is the one list of them. It loads on first use: the names of interventions, in this package too,
are needed where torch is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditspec.estimator.interface import Estimator

    ESTIMATORS: tuple[type[Estimator], ...]


def __getattr__(name: str) -> Any:
    if name == "ESTIMATORS":
        from auditspec.estimator.krylov.krylov import Krylov
        from auditspec.estimator.linear.tangent import Displacement, FirstOrder
        from auditspec.estimator.paired.paired import PairedReplay
        from auditspec.estimator.replay.replay import Replay
        from auditspec.estimator.simulated.simulated import SimulatedReplay
        from auditspec.estimator.subbatch.subbatch import SubBatchReplay

        return (
            FirstOrder,
            Displacement,
            Krylov,
            SimulatedReplay,
            PairedReplay,
            SubBatchReplay,
            Replay,
        )
    raise AttributeError(f"module 'auditspec.estimator' has no attribute {name!r}")
