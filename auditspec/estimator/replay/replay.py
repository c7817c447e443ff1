"""Replay: the exact counterfactual, training once more what comes after an arm's first difference.

Without a stage, theta_b := theta_a, and every later step keeps its own minibatch, hyperparameters, and
random state (method: estimand). An arm leaves out several stages just so, each handing on what it
was given, moments included; a stage that is replaced keeps all but its rows (`References`). It is the
ground truth of every comparison.

`replay` runs one arm, bit for bit as training would. `replay_all` runs several in one pass along the
record: an arm joins where it first differs, what arms share is made once (`Prefixes`), and all that
are on their way make each step together (`Arms`). Batched arithmetic rounds otherwise than the recorded
run. An effect is a difference of the two, and stays right because what rounding moves is orders of
magnitude below what leaving a stage out does: 2e-6 to 3e-6 of delta in float32, as
benchmarks/batched_replay.py measures (docs/adr/0011).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from auditspec.engine.references import NO_REFERENCES, References
from auditspec.engine.rerun import Rerun, StepGradient
from auditspec.estimator.cache import NO_JOURNAL, Journal
from auditspec.estimator.interface import Counterfactual, difference
from auditspec.estimator.interventions import RECORDED, Arm
from auditspec.estimator.prefixes import Known, Prefixes, require_references
from auditspec.estimator.replay.batched_arms import Arms, NotVectorizedError
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory

Advance = Callable[[int], None]
States = dict[Arm, State]

CURRENT, START, END = "current", "start of ", "end of "
"""Names in a journal: the state at the end of the last window, and those at the stages' two ends."""
LARGEST = 1_000_000
"""Parameters beyond which batching is not even tried unasked: its first gradient takes the memory of all."""


@dataclass(frozen=True)
class Run:
    """A run that was made once more, window by window."""

    final: State
    """At the end of training, moments included."""
    starts: dict[str, State]
    """With which each stage began, by stage id."""
    path: dict[str, State]
    """With which each stage that was trained ended, without moments."""


def replay(
    rerun: Rerun,
    final: State,
    arm: Arm,
    visit: Callable[[StepGradient], None] | None = None,
    start: State | None = None,
    journal: Journal = NO_JOURNAL,
    *,
    references: References = NO_REFERENCES,
    known: Known | None = None,
) -> Counterfactual:
    """The counterfactual of one arm, by re-running every stage after its first difference.

    Args:
        rerun: the record, in the precision of the estimate.
        final: theta_K as the same re-run reaches it.
        arm: what is done otherwise. For the last stage left out nothing is to be run.
        visit: called at every re-run step (for progress).
        start: the state with which the first stage that differs begins, as the same re-run reaches it;
            None: the recorded one.
        journal: where every finished window is noted; what it holds already is gone on from.
        references: what takes the place of what the arm replaces.
        known: exact arms that were made before; what this one shares with them is not made again.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if a later stage was recorded without its steps, its code fails, or there is
            no reference for what is replaced.
        EvidenceError: if a reference cannot be used.
    """
    began, gradients = time.perf_counter(), rerun.gradients
    require_references([arm], references)
    prefixes = Prefixes(rerun.trajectory, [arm], _exact(known))
    entry, stages = prefixes.entries[arm], rerun.trajectory.stages
    path = dict(entry.path)
    if entry.stage < len(stages):
        starts = {} if start is None else {stages[entry.stage].id: start}
        prefix = prefixes.of(arm, entry.stage)
        begin = prefixes.begin(rerun, prefix, entry.stage, starts, references)
        run = repeated(rerun, begin, entry.stage, visit, journal, arm=arm, references=references)
        path |= run.path
        end = run.final.without_optimizer()
    state = path.get(stages[-1].id) or end
    return Counterfactual(
        arm=arm,
        method="replay",
        exact=True,
        state=state,
        delta=difference(state.parameters, final.parameters),
        gradients=rerun.gradients - gradients,
        seconds=time.perf_counter() - began,
        path=path,
    )


def repeated(
    rerun: Rerun,
    begin: State,
    index: int,
    visit: Callable[[StepGradient], None] | None,
    journal: Journal,
    *,
    arm: Arm = RECORDED,
    references: References = NO_REFERENCES,
) -> Run:
    """Run an arm from the beginning of a stage on, noting the state at the end of every window.

    Args:
        rerun: the record, in the precision of the estimate.
        begin: the state with which the stage begins.
        index: the stage's.
        visit: called at every re-run step.
        journal: where every finished window is noted; what it holds already is gone on from.
        arm: what is done otherwise from here on.
        references: what takes the place of what the arm replaces.
    """
    state, step, first = begin, 0, index
    starts: dict[str, State] = {}
    path: dict[str, State] = {}
    noted = journal.load()
    if noted is not None:
        position, states = noted
        index, step, state = position["stage"], position["step"], states.pop(CURRENT)
        starts, path = _named(states, START), _named(states, END)
    for j, stage in enumerate(rerun.trajectory.stages[index:], index):
        if not step:
            state = state if j == first else rerun.carry_over(j, state)
            starts[stage.id] = state
        if stage.id in arm.omitted:
            continue
        steps = references.steps(rerun, stage) if stage.id in arm.replaced else None
        for stop in (*(k for k in stage.state_steps if step < k), stage.header.steps):
            if step < stop:
                state, step = rerun.run(stage, state, step, stop, visit, steps), stop
                begun = {START + name: held for name, held in starts.items()}
                ended = {END + name: held for name, held in path.items()}
                journal.save({"stage": j, "step": step}, {CURRENT: state, **begun, **ended})
        path[stage.id] = state.without_optimizer()
        step = 0
    return Run(state, starts, path)


def replay_all(
    rerun: Rerun,
    final: State,
    arms: Sequence[Arm],
    *,
    vectorized: bool | None = None,
    visit: Advance | None = None,
    starts: Mapping[str, State] | None = None,
    journal: Journal = NO_JOURNAL,
    references: References = NO_REFERENCES,
    known: Known | None = None,
) -> dict[Arm, Counterfactual]:
    """The counterfactuals of several arms, in one pass along the record.

    A stage whose arms cannot be batched is run arm by arm, as `replay` does; the counterfactual's
    `note` says why. So is a stage on its reference data, whose minibatches are others.

    Args:
        rerun: the record, in the precision of the estimate.
        final: theta_K as the same re-run reaches it.
        arms: what is done otherwise in each; one that is asked for twice is made once.
        vectorized: True: batch the arms wherever that is possible; False: nowhere (each arm is then
            `replay`'s, bit for bit); None: where it can be expected to be faster. The choice
            follows from the model alone, so that an audit run twice gives the same numbers.
        visit: told of gradients as they are made, summed over arms (for progress).
        starts: theta_a of stages as the same re-run reaches it; others start from the recorded one.
        journal: where the arms are noted after every step that they made together and whose gradient
            was checked, and after every stage; what it holds already is gone on from.
        references: what takes the place of what the arms replace.
        known: exact arms that were made before; what the others share with them is not made again,
            except where a stage goes on with moments, which a path does not hold.

    Returns:
        By arm, in the order of `arms`. `gradients` counts each arm's own, and its equal part of what
        it shares; `seconds` are the pass's, shared equally among the arms that were on their way.

    Raises:
        RecordError: if the record has no such stage.
        EstimationError: if a later stage was recorded without its steps, its code fails, or there is
            no reference for what is replaced.
        EvidenceError: if a reference cannot be used.
    """
    require_references(arms, references)
    prefixes = Prefixes(rerun.trajectory, arms, _exact(known))
    made = _Pass(rerun, prefixes, vectorized, visit, journal, references)
    made.run(starts or {})
    cost, stages = prefixes.gradients(), prefixes.stages
    found = {}
    for arm in prefixes.arms:
        path = dict(prefixes.entries[arm].path)
        path |= {stages[j]: made.ends[j][prefixes.of(arm, j)] for j in prefixes.trained(arm)}
        state = path.get(stages[-1]) or made.states[arm].without_optimizer()
        found[arm] = Counterfactual(
            arm=arm,
            method="replay",
            exact=True,
            state=state,
            delta=difference(state.parameters, final.parameters),
            gradients=cost[arm],
            seconds=made.seconds[arm],
            note="; ".join(made.notes[arm]),
            path=path,
        )
    return found


@dataclass
class _Pass:
    """Several arms on their way along the record, by their prefixes."""

    rerun: Rerun
    prefixes: Prefixes
    vectorized: bool | None
    visit: Advance | None
    journal: Journal
    references: References
    states: States = field(default_factory=dict)
    """Where each prefix of the present stage stands, moments included."""
    done: set[Arm] = field(default_factory=set)
    """The prefixes that are through with the present stage."""
    ends: list[States] = field(default_factory=list)
    """Of every stage so far: where the prefixes that were trained in it ended, without moments."""
    seconds: dict[Arm, float] = field(default_factory=dict)
    notes: dict[Arm, list[str]] = field(default_factory=dict)

    def run(self, starts: Mapping[str, State]) -> None:
        """Take every arm to the end of training, from where the journal has it."""
        self.seconds = dict.fromkeys(self.prefixes.arms, 0.0)
        self.notes = {arm: [] for arm in self.prefixes.arms}
        first, step = self._go_on()
        for index, stage in enumerate(self.rerun.trajectory.stages[first or 0 :], first or 0):
            if index != first:
                self._begin(index, starts)
                step = 0
            self._train(index, step)
            self.ends.append(
                {
                    prefix: state.without_optimizer()
                    for prefix, state in self.states.items()
                    if stage.id not in prefix.omitted
                }
            )

    def _begin(self, index: int, starts: Mapping[str, State]) -> None:
        """Take the prefixes over a stage's first boundary, and let new ones join."""
        states: States = {}
        for prefix in self.prefixes.at(index):
            held = self.states.get(self.prefixes.of(prefix, index - 1)) if index else None
            states[prefix] = (
                self.prefixes.begin(self.rerun, prefix, index, starts, self.references)
                if held is None
                else self.rerun.carry_over(index, held)
            )
        self.states = states
        self.done = {p for p in states if self.prefixes.stages[index] in p.omitted}

    def _train(self, index: int, step: int) -> None:
        """Through a stage from a step on: together on its own rows, one by one on reference rows."""
        stage = self.rerun.trajectory.stages[index]
        left = {p: s for p, s in self.states.items() if p not in self.done}
        together = {p: s for p, s in left.items() if stage.id not in p.replaced}
        if together:
            began = time.perf_counter()
            why, reached = _through(
                self.rerun,
                stage,
                together,
                self.vectorized,
                self.visit,
                step,
                partial(self._note, index),
            )
            self._made(index, reached, began, why)
        for prefix in (p for p in left if p not in together):
            began = time.perf_counter()
            steps = self.references.steps(self.rerun, stage)
            visit = _Progress(self.visit).of
            reached = {prefix: self.rerun.run(stage, left[prefix], visit=visit, steps=steps)}
            self._made(index, reached, began, "")

    def _made(self, index: int, reached: States, began: float, why: str) -> None:
        """Some prefixes are through with a stage."""
        sharing, stage = self.prefixes.at(index), self.rerun.trajectory.stages[index]
        for prefix in reached:
            part = (time.perf_counter() - began) / len(reached)
            for arm in sharing[prefix]:
                self.seconds[arm] += part / len(sharing[prefix])
                self.notes[arm] += [f"{stage.id}: {why}"] if why else []
        self.states |= reached
        self.done |= reached.keys()
        self._note(index, len(stage.steps), dict)

    def _note(self, index: int, step: int, reached: Callable[[], States]) -> None:
        """Note where the prefixes stand in a stage, and where they ended the ones before.

        `step` steps are behind of those prefixes that go through it together.
        """
        if self.journal is NO_JOURNAL:
            return
        order, now = list(self.prefixes.at(index)), self.states | reached()
        held = {f"now {i}": now[prefix] for i, prefix in enumerate(order)}
        for j, ended in enumerate(self.ends):
            for i, prefix in enumerate(self.prefixes.at(j)):
                if prefix in ended:
                    held[f"end {j} {i}"] = ended[prefix]
        done = [i for i, prefix in enumerate(order) if prefix in self.done]
        self.journal.save({"stage": index, "step": step, "done": done}, held)

    def _go_on(self) -> tuple[int | None, int]:
        """Take up what was noted: the stage and the steps behind; (None, 0) where nothing was."""
        noted = self.journal.load()
        if noted is None:
            return None, 0
        position, held = noted
        for j in range(position["stage"]):
            names = {f"end {j} {i}": prefix for i, prefix in enumerate(self.prefixes.at(j))}
            self.ends.append({p: held[name] for name, p in names.items() if name in held})
        order = list(self.prefixes.at(position["stage"]))
        self.states = {prefix: held[f"now {i}"] for i, prefix in enumerate(order)}
        self.done = {order[i] for i in position["done"]}
        return position["stage"], position["step"]


def _exact(known: Known | None) -> Known:
    return {arm: made for arm, made in (known or {}).items() if made.exact}


def _named(states: Mapping[str, State], kind: str) -> dict[str, State]:
    return {name.removeprefix(kind): s for name, s in states.items() if name.startswith(kind)}


def _through(
    rerun: Rerun,
    stage: StageTrajectory,
    begin: States,
    vectorized: bool | None,
    visit: Advance | None,
    start: int,
    note_at: Callable[[int, Callable[[], States]], None],
) -> tuple[str, States]:
    """Take every arm through one stage from step `start` on; say why they were run one by one, if they were."""
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

    return note, {
        arm: rerun.run(stage, state, start, visit=progress.of) for arm, state in begin.items()
    }


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

    def of(self, step_gradient: StepGradient) -> None:
        self.made(len(step_gradient.step.batches))

    def again(self) -> None:
        self._made = 0
