"""Arms of an estimate as jobs that the ranks of a team make: written, read, and shared out.

What a job gives lies in the store of finished estimates, which all ranks share, under the name that it has there anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace

from auditspec.estimator.counterfactual import Known
from auditspec.estimator.interface import Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.team import Job

KIND = "counterfactuals"


@dataclass(frozen=True)
class HandedOut:
    """Some arms of an estimate.

    Args:
        estimator: by which.
        arms: all that share the estimate's budget.
        only: those of them that are made here.
        with_twin: whether their twins are made with them.
        known: names of finished estimates that may serve.
    """

    estimator: Estimator
    arms: Sequence[Arm]
    only: Sequence[Arm]
    with_twin: bool
    known: Sequence[str]

    def job(self, context: Context) -> Job:
        """Written for another rank."""
        return {
            "kind": KIND,
            "estimator": self.estimator.name,
            "options": asdict(self.estimator) if is_dataclass(self.estimator) else {},
            "arms": [arm.name for arm in self.arms],
            "only": [arm.name for arm in self.only],
            "with_twin": self.with_twin,
            "known": list(self.known),
            "budget": context.budget,
            "shared": sorted(context.recorded.shared),
            "repeat": context.store is not None and context.store.on.repeat,
        }

    @classmethod
    def read(
        cls, job: Job, estimators: Mapping[str, Callable[..., Estimator]], context: Context
    ) -> tuple[HandedOut, Context]:
        """What a job asks for, and what it is to be made of."""
        store = context.store
        given = cls(
            estimators[job["estimator"]](**job["options"]),
            [Arm.of(name) for name in job["arms"]],
            [Arm.of(name) for name in job["only"]],
            job["with_twin"],
            job["known"],
        )
        final = context.run.final.parameters
        found = [store.cache.get(key, final) for key in given.known] if store is not None else []
        known: Known = {run.arm: run for run in found if run is not None}
        recorded = replace(context.recorded, shared=frozenset(job["shared"]))
        return given, replace(context, budget=job["budget"], known=known, recorded=recorded)


def shared_out(costs: Mapping[Arm, float], ranks: int) -> list[list[Arm]]:
    """Arms in as many groups as there are ranks, or fewer: the dearest first, to the cheapest group.

    Graham (1969), Bounds on multiprocessing timing anomalies.
    """
    groups: list[list[Arm]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for arm in sorted(costs, key=lambda arm: costs[arm], reverse=True):
        least = loads.index(min(loads))
        groups[least].append(arm)
        loads[least] += costs[arm]
    return [group for group in groups if group]
