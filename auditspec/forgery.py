"""What a false record that would pass costs whoever makes it, in trainings: one is the gradients of the recorded steps.

A window that is re-run is passed by computing its steps, and no cheaper way is known: its end must be what the steps make of its
beginning, bit for bit or to rounding. So a false record is another run that was really made. A window that moved by less than rounding,
and does not land bitwise, could be made up. Where only m of n windows are re-run, drawn when the audit runs, k false ones are missed
with probability

    C(n - k, m) / C(n, m)

and the price is that of the windows which must be true so that the odds are even, the dearest being false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb

from auditspec.messages import Message, message
from auditspec.record.deviation import needs_no_gradient
from auditspec.record.trajectory import StageTrajectory, Trajectory
from auditspec.results import CheckResult

EVEN = 0.5
"""Probability of being missed with which a liar is content."""


def price_of(trajectory: Trajectory, checks: Sequence[CheckResult]) -> Message | None:
    """What the report says of it; None where the record was not re-run, or does not hold.

    Args:
        trajectory: the record.
        checks: their results.

    Raises:
        RecordError: if the record cannot be read.
    """
    by_id = {check.id: check for check in checks}
    fidelity = by_id["record-fidelity"]
    if fidelity.outcome != "pass":
        return None
    windows = {f"{s.id} {a}-{b}": (s, a, b) for s, a, b in trajectory.windows()}
    rerun = {d.subject: d.statistic for d in fidelity.details if d.subject in windows}
    costs = {subject: _gradients(*window) for subject, window in windows.items()}
    whole = sum(costs.values())
    if not whole:
        return None
    unmoved = [name for name, statistic in rerun.items() if statistic and _unmoved(*windows[name])]
    costs |= dict.fromkeys(unmoved, 0)
    true = gradients_at_even_odds(tuple(costs.values()), len(rerun))
    return message(
        "price-of-a-lie",
        trainings=true / whole,
        gradients=true,
        whole=whole,
        conditions=tuple(_conditions(rerun, len(costs), by_id)),
    )


def gradients_at_even_odds(costs: Sequence[int], rerun: int) -> int:
    """Fewest gradients of a record of which some windows are false, and which passes half of the time.

    Args:
        costs: gradients of every window.
        rerun: how many windows are drawn and re-run.
    """
    n, false = len(costs), 0
    while false < n and comb(n - false - 1, rerun) >= EVEN * comb(n, rerun):
        false += 1
    return sum(sorted(costs)[: n - false])


def _conditions(
    rerun: Mapping[str, float | None], windows: int, checks: Mapping[str, CheckResult]
) -> list[Message]:
    """What else a liar is free to do, and what not."""
    conditions = []
    if len(rerun) < windows:
        conditions.append(message("lie-at-even-odds", rerun=len(rerun), windows=windows))
    if rounded := sum(bool(statistic) for statistic in rerun.values()):
        conditions.append(message("lie-within-rounding", rounded=rounded, rerun=len(rerun)))
    begun = checks["initial-weights"].outcome == "pass"
    conditions.append(message("lie-begins-as-declared") if begun else message("lie-before-record"))
    committed = checks["commitment"].outcome == "pass"
    conditions.append(
        message("lie-planned-beforehand") if committed else message("lie-at-any-time")
    )
    return conditions


def _unmoved(stage: StageTrajectory, start: int, stop: int) -> bool:
    """Whether a window that does not land bitwise could be made up."""
    return needs_no_gradient(stage.state(start), stage.state(stop), stop - start)


def _gradients(stage: StageTrajectory, start: int, stop: int) -> int:
    """Minibatch gradients of a window's steps."""
    return sum(bool(b.weight) for step in stage.steps[start:stop] for b in step.batches)
