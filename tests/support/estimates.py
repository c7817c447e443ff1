"""Estimates in one call: the estimator, its context, and its arms from the few things that a test cares for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from auditspec.attribute import Attribution, attribute
from auditspec.behaviors.evaluate import Evaluator
from auditspec.budget import allot
from auditspec.engine.rerun import Rerun
from auditspec.estimator.cache import Cache, Dependencies, Store
from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals
from auditspec.estimator.interface import Baseline, Context, Estimator
from auditspec.estimator.interventions import Arm
from auditspec.estimator.krylov.krylov import Krylov
from auditspec.estimator.linear.adjoint import Contributions
from auditspec.estimator.linear.adjoint import adjoint as backwards
from auditspec.estimator.linear.tangent import Displacement, FirstOrder
from auditspec.estimator.paired.paired import PairedReplay
from auditspec.estimator.replay.replay import Replay
from auditspec.record.state import State
from auditspec.spec.models import Spec

Visit = Callable[[int], object]


class Watching:
    """Calls `visit` with the units of every advance."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        def advance(units: int) -> None:
            self.visit(units)

        yield advance


def context_of(
    rerun: Rerun,
    final: State | None = None,
    *,
    starts: Mapping[str, State] | None = None,
    visit: Visit | None = None,
    **options: Any,
) -> Context:
    """A context; what is None is left at its default."""
    end = rerun.trajectory.stages[-1].last if final is None else final
    if visit is not None:
        options["progress"] = Watching(visit)
    given = {name: value for name, value in options.items() if value is not None}
    return Context(engine=rerun, run=Baseline(end, starts or {}), **given)


def store_in(folder: Path, **facts: Any) -> Store:
    """A store in a folder; `facts` are dependencies other than usual."""
    on: dict[str, Any] = {
        "record": "sha256:1",
        "code": "sha256:2",
        "datasets": {},
        "dtype": "float64",
        "device": "cpu",
        "threads": 1,
        "deterministic": False,
        "repeat": False,
        "engine": "rerun",
        "plugins": (),
    }
    return Store(Cache(folder), Dependencies(**{**on, **facts}))


def attributed(spec: Spec, reader: Evaluator) -> Attribution:
    """What the whole middle of an audit makes of a record that is to be trusted."""
    allotment = allot(spec, reader.rerun.trajectory)
    context = context_of(reader.rerun, budget=allotment.estimates)
    return attribute(spec, reader, context, allotment)


def estimated(
    estimator: Estimator, rerun: Rerun, final: State, arms: Sequence[Arm], **options: Any
) -> Counterfactuals:
    return estimator.estimate(context_of(rerun, final, **options), arms)


def replay_all(
    rerun: Rerun,
    final: State,
    arms: Sequence[Arm],
    *,
    batched: bool | None = None,
    **options: Any,
) -> Counterfactuals:
    """Exact replay of several arms."""
    return estimated(Replay(batched), rerun, final, arms, **options)


def replay(rerun: Rerun, final: State, arm: Arm, **options: Any) -> Counterfactual:
    """Exact replay of one arm, bit for bit as training would."""
    return replay_all(rerun, final, [arm], batched=False, **options)[arm]


def paired_replay(
    rerun: Rerun,
    final: State,
    arms: Sequence[Arm],
    *,
    gradients: int,
    shift: float = 0.0,
    **options: Any,
) -> Counterfactuals:
    """Paired replay of several arms under a budget."""
    return estimated(PairedReplay(shift), rerun, final, arms, budget=gradients, **options)


def sweep(
    rerun: Rerun,
    final: State,
    methods: Mapping[str, str],
    *,
    products: Any = "exact",
    **options: Any,
) -> dict[str, Counterfactual]:
    """Tangents of training, by stage; `methods` names each stage's estimator."""
    found: dict[str, Counterfactual] = {}
    for kind in (FirstOrder, Displacement):
        stages = [stage for stage, method in methods.items() if method == kind.name]
        if stages:
            swept = estimated(kind(products), rerun, final, Arm.each(stages), **options)
            found |= {arm.stage: counterfactual for arm, counterfactual in swept.items()}
    return found


def krylov(
    rerun: Rerun,
    final: State,
    stages: Sequence[str],
    *,
    starts: Mapping[str, State] | None = None,
    declared: Any = None,
    journal: Any = None,
    visit: Visit | None = None,
    **options: Any,
) -> dict[str, Counterfactual]:
    """Estimates through Krylov spaces, by stage."""
    given: dict[str, Any] = {"starts": starts, "declared": declared, "journal": journal}
    found = estimated(Krylov(**options), rerun, final, Arm.each(stages), visit=visit, **given)
    return {arm.stage: c for arm, c in found.items()}


def adjoint(
    rerun: Rerun,
    slopes: Mapping[str, Mapping[str, Tensor]],
    *,
    products: Any = "exact",
    **options: Any,
) -> dict[str, Contributions]:
    """Contributions of every step to behaviours."""
    return backwards(context_of(rerun, **options), slopes, products=products)
