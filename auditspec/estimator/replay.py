"""Replay: the exact counterfactual, training once more without a stage from its boundary on.

theta_b := theta_a, and every later step keeps its own minibatch, hyperparameters, and random state
(method: estimand). It is the ground truth of every comparison.

`replay` runs one stage's arm, bit for bit as training would. `replay_all` runs those of several
stages in one pass along the record: an arm joins where its stage ends, and from there all arms make
each step together (`Arms`). Batched arithmetic rounds otherwise than the recorded run. An effect is a
difference of the two, and stays right because what rounding moves is orders of magnitude below what
leaving a stage out does: 2e-6 to 3e-6 of delta in float32, as benchmarks/batched_replay.py measures
(docs/adr/0011).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from auditspec.estimator.arms import Arms, NotVectorizedError
from auditspec.estimator.cache import NO_JOURNAL, Journal
from auditspec.estimator.interface import Counterfactual, difference
from auditspec.record.rerun import Moment, Rerun
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory

Advance = Callable[[int], None]

END, START = "end", "start of "
"""Names in a journal: the state at the end of the last window, and those at the stages' starts."""
LARGEST = 1_000_000
"""Parameters beyond which batching is not even tried unasked: its first gradient takes the memory of all."""


def replay(
    rerun: Rerun,
    final: State,
    stage: str,
    visit: Callable[[Moment], None] | None = None,
    start: State | None = None,
    journal: Journal = NO_JOURNAL,
) -> Counterfactual:
    """The counterfactual without `stage`, by re-running every later stage.

    Args:
        rerun: the record, in the precision of the estimate.
        final: theta_K as the same re-run reaches it.
        stage: id of the stage to leave out. For the last stage nothing is left to run.
        visit: called at every re-run step (for progress).
        start: theta_a as the same re-run reaches it; None: the recorded one.
        journal: where every finished window is noted; what it holds already is gone on from.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if a later stage was recorded without its steps, or its code fails.
    """
    began, gradients = time.perf_counter(), rerun.gradients
    index = rerun.trajectory.index(stage)
    start = rerun.trajectory.stages[index].first if start is None else start
    state, _ = repeated(rerun, start, index + 1, visit, journal)
    return Counterfactual(
        stage=stage,
        method="replay",
        exact=True,
        state=state,
        delta=difference(state.parameters, final.parameters),
        gradients=rerun.gradients - gradients,
        seconds=time.perf_counter() - began,
    )


def repeated(
    rerun: Rerun,
    start: State,
    stage_index: int,
    visit: Callable[[Moment], None] | None,
    journal: Journal,
) -> tuple[State, dict[str, State]]:
    """As `Rerun.continue_from`, noting the state at the end of every window.

    Returns:
        The state at the end of training, and that with which each stage began, by stage id.
    """
    state, step, starts = start, 0, {}
    noted = journal.load()
    if noted is not None:
        position, states = noted
        stage_index, step, state = position["stage"], position["step"], states.pop(END)
        starts = {name.removeprefix(START): begin for name, begin in states.items()}
    for index, stage in enumerate(rerun.trajectory.stages[stage_index:], stage_index):
        if not step:
            state = starts[stage.id] = rerun.carry_over(index, state)
        for stop in (*(k for k in stage.state_steps if step < k), stage.header.steps):
            if step < stop:
                state, step = rerun.run(stage, state, step, stop, visit), stop
                begun = {START + name: begin for name, begin in starts.items()}
                journal.save({"stage": index, "step": step}, {END: state, **begun})
        step = 0
    return state, starts


def replay_all(
    rerun: Rerun,
    final: State,
    stages: Sequence[str],
    *,
    vectorized: bool | None = None,
    visit: Advance | None = None,
    starts: Mapping[str, State] | None = None,
    journal: Journal = NO_JOURNAL,
) -> dict[str, Counterfactual]:
    """The counterfactuals without each of `stages`, in one pass along the record.

    A stage whose arms cannot be batched is run arm by arm, as `replay` does; the counterfactual's
    `note` says why.

    Args:
        rerun: the record, in the precision of the estimate.
        final: theta_K as the same re-run reaches it.
        stages: ids of the stages to leave out, one at a time.
        vectorized: True: batch the arms wherever that is possible; False: nowhere (each arm is then
            `replay`'s, bit for bit); None: where it can be expected to be faster. The choice
            follows from the model alone, so that an audit run twice gives the same numbers.
        visit: told of gradients as they are made, summed over arms (for progress).
        starts: theta_a of stages as the same re-run reaches it; others start from the recorded one.
        journal: where the arms are noted after every step that they made together and whose gradient
            was checked, and after every stage; what it holds already is gone on from.

    Returns:
        By stage, in the order of `stages`. `gradients` counts each arm's own; `seconds` are the
        pass's, shared equally among the arms that were on their way.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if a later stage was recorded without its steps, or its code fails.
    """
    wanted = {rerun.trajectory.index(stage): stage for stage in stages}
    states: dict[str, State] = {}
    gradients, seconds = dict.fromkeys(stages, 0.0), dict.fromkeys(stages, 0.0)
    notes: dict[str, list[str]] = {stage: [] for stage in stages}
    first, step, noted = 0, 0, journal.load()
    if noted is not None:
        position, states = noted
        first, step = position["stage"], position["step"]
    for index, stage in enumerate(rerun.trajectory.stages):
        if index >= first and states:
            began, start = time.perf_counter(), step if index == first else 0

            def note_at(stop: int, arms: Callable[[], dict[str, State]], at: int = index) -> None:
                if journal is not NO_JOURNAL:
                    journal.save({"stage": at, "step": stop}, arms())

            note, states = _through(rerun, stage, states, vectorized, visit, start, note_at)
            for arm in states:
                seconds[arm] += (time.perf_counter() - began) / len(states)
                notes[arm] += [f"{stage.id}: {note}"] if note else []
            note_at(len(stage.steps), states.copy)
        for arm in (arm for i, arm in wanted.items() if i < index):
            gradients[arm] += sum(len(made.batches) for made in stage.steps)
        if index in wanted and index >= first:  # what was noted is from before this arm joined
            given = (starts or {}).get(stage.id)
            states[stage.id] = stage.first if given is None else given
    return {
        stage: Counterfactual(
            stage=stage,
            method="replay",
            exact=True,
            state=states[stage],
            delta=difference(states[stage].parameters, final.parameters),
            gradients=gradients[stage],
            seconds=seconds[stage],
            note="; ".join(notes[stage]),
        )
        for stage in stages
    }


def _through(
    rerun: Rerun,
    stage: StageTrajectory,
    states: Mapping[str, State],
    vectorized: bool | None,
    visit: Advance | None,
    start: int,
    note_at: Callable[[int, Callable[[], dict[str, State]]], None],
) -> tuple[str, dict[str, State]]:
    """Take every arm through one stage from step `start` on; say why they were run one by one, if they were."""
    index = rerun.trajectory.index(stage.id)
    begin = {arm: s if start else rerun.carry_over(index, s) for arm, s in states.items()}
    rerun.enter(stage)
    progress = _Progress(visit)
    steps = rerun.steps_of(stage)[start:]
    if rerun.autocast(stage) is not None:
        note = "arm by arm, because the stage trains under autocast"
    elif vectorized is None:
        note = against_batching(rerun.model, len(begin))
    else:
        note = "" if vectorized else "arm by arm, as asked for"
    if not note and steps:
        try:
            with rerun.training():
                arms = Arms(rerun, stage, begin)
                for step in steps:
                    gradients = arms.gradients(step)
                    if vectorized is None and not arms.overhead_bound:
                        raise NotVectorizedError("its operations are too large to gain")
                    arms.update(step, gradients)
                    progress.made(len(step.batches) * len(begin))
                    if arms.checked:  # a note must not outlive a failed check
                        note_at(step.index + 1, arms.states)
            return "", arms.states()
        except NotVectorizedError as error:
            note = f"arm by arm, because {error}"
            progress.again()

    def count(moment: Moment) -> None:
        progress.made(len(moment.step.batches))

    return note, {arm: rerun.run(stage, state, start, visit=count) for arm, state in begin.items()}


def against_batching(model: nn.Module, arms: int) -> str:
    """Why arms are better run one by one, as far as the model shows it; empty where nothing does."""
    if arms == 1:
        return "a single arm"
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        # A bias before it has a gradient of pure rounding, which Adam makes as large as any other.
        return "BatchNorm lets rounding steer an adaptive optimizer"
    size = sum(p.numel() for p in model.parameters())
    return f"{size:,} parameters are too many to gain" if size > LARGEST else ""


class _Progress:
    """Gradients made in one stage, told once even where the stage is run twice."""

    def __init__(self, visit: Advance | None) -> None:
        self._visit = visit
        self._made = self._told = 0

    def made(self, gradients: int) -> None:
        self._made += gradients
        if self._visit is not None and self._made > self._told:
            self._visit(self._made - self._told)
        self._told = max(self._told, self._made)

    def again(self) -> None:
        self._made = 0
