"""Replay: the exact counterfactual, training once more what comes after an arm's first difference.

Without a stage, theta_b := theta_a, and every later step keeps its own minibatch, hyperparameters, and
random state (method: estimand). An arm leaves out several stages just so, each handing on what it
was given, moments included; a stage that is replaced keeps all but its rows (`References`). It is the
ground truth of every comparison.

Several arms go along the record in one pass: an arm joins where it first differs, what arms share is made
once (`Prefixes`), and all that are on their way make each step together (`Arms`). Batched arithmetic rounds
otherwise than the recorded run; arm by arm, replay is training bit for bit. An effect is a difference of the
two, and stays right because what rounding moves is orders of magnitude below what leaving a stage out does:
2e-6 to 3e-6 of delta in float32, as benchmarks/batched_replay.py measures (docs/adr/0011).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from auditspec.engine.batched_gradient import NotVectorizedError
from auditspec.engine.interface import Engine, StepGradient
from auditspec.engine.references import References
from auditspec.estimator.cache import NO_JOURNAL, Journal
from auditspec.estimator.counterfactual import Counterfactual, Counterfactuals, Known, difference
from auditspec.estimator.forecast import interiors, parameters_of, state_bytes
from auditspec.estimator.interface import Baseline, Context, Estimator, Forecast, Terms
from auditspec.estimator.interventions import INITIAL, Arm
from auditspec.estimator.prefixes import Prefixes, require_references
from auditspec.estimator.replay.batched_arms import Arms
from auditspec.messages import Message, message
from auditspec.progress import Advance
from auditspec.record.codec import tensors_digest
from auditspec.record.state import State
from auditspec.record.trajectory import StageTrajectory, Trajectory

States = dict[Arm, State]

CURRENT, START, END = "current", "start of ", "end of "
"""Names in a journal: the state at the end of the last window, and those at the stages' two ends."""
LARGEST = 1_000_000
"""Parameters beyond which batching is not even tried unasked: its first gradient takes the memory of all."""


@dataclass(frozen=True)
class Replay(Estimator):
    """Exact counterfactuals of several arms, in one pass along the record.

    A stage whose arms cannot be batched is run arm by arm; the counterfactual's `notes` say why. So is a
    stage on its reference data, whose minibatches are others.
    """

    batched: bool | None = None
    """True: batch the arms wherever that is possible; False: nowhere (each arm is then training, bit for
    bit); None: where it can be expected to be faster. The choice follows from the model alone, so that an
    audit run twice gives the same numbers."""

    name = "replay"
    title = "Exact replay"
    words = message("replay-does")
    exact = True
    several = True
    replaces = True
    independent = True

    def forecast(self, record: Trajectory, arms: Sequence[Arm], terms: Terms) -> Forecast:
        """One pass over every stage that an arm trains; what arms share costs once.

        In the last stage every arm ends with its moments, beside an optimizer and a gradient; arms that are batched are
        stacked besides, with their gradients. The journal holds the ends of the stages before, and where arms stand that have made
        none.
        """
        prefixes = Prefixes(record, arms, _exact(terms.known))
        shares = prefixes.gradients()
        (weights, moments), (interior, before) = state_bytes(record), interiors(prefixes)
        count, together = len(prefixes.arms), 0.0
        last = len(prefixes.stages) - 1
        trained = {arm: prefixes.trained(arm) for arm in prefixes.arms}
        alone = sum(not stages for stages in trained.values())
        waiting = sum(
            entry.stage < last and min(trained[arm], default=last) == last
            for arm, entry in prefixes.entries.items()
        )
        if count > 1 and self.batched is not False and parameters_of(record) <= LARGEST:
            together = count * (2 * weights + moments)
        return Forecast(
            shares,
            gradients=sum(shares.values()),
            memory=weights * (interior + 1) + moments * (count + 1) + together,
            disk=weights * (interior + alone + before + waiting),
        )

    def depends_on(self, context: Context, arms: Sequence[Arm]) -> dict[str, object]:
        """The references: nothing where nothing is replaced."""
        digests = {
            party: _digest_of(party, context.references)
            for arm in arms
            for party in sorted(arm.replaced)
        }
        return {"references": digests} if digests else {}

    def estimate(self, context: Context, arms: Sequence[Arm]) -> Counterfactuals:
        """The arms' counterfactuals, in their order; an arm that is asked for twice is made once.

        Its journal notes every step that arms made together and whose gradient was checked, and the end of
        every stage. Of what is known, exact arms serve, except where a stage goes on with moments, which a
        path does not hold.

        Returns:
            By arm. `gradients` counts each arm's own, and its equal part of what it shares; `seconds` are
            the pass's, shared equally among the arms that were on their way.

        Raises:
            RecordError: if the record has no such stage.
            EstimationError: if a later stage was recorded without its steps, its code fails, or there is
                no reference for what is replaced.
            EvidenceError: if a reference cannot be used.
        """
        require_references(arms, context.references)
        prefixes = Prefixes(context.record, arms, _exact(context.known))
        cost, stages = prefixes.gradients(), prefixes.stages
        trained = [arm for arm in prefixes.arms if cost[arm]] or prefixes.arms
        with context.progress.phase(_in_words(trained), int(sum(cost.values()))) as advance:
            run = _Pass(context, prefixes, self.batched, advance)
            run.run()
        counterfactuals = {}
        for arm in prefixes.arms:
            path = dict(prefixes.entries[arm].path)
            path |= {stages[j]: run.ends[j][prefixes.of(arm, j)] for j in prefixes.trained(arm)}
            state = path.get(stages[-1]) or run.states[arm].without_optimizer()
            counterfactuals[arm] = Counterfactual(
                arm=arm,
                method=self.name,
                exact=True,
                state=state,
                delta=difference(state.parameters, context.run.final.parameters),
                gradients=cost[arm],
                seconds=run.seconds[arm],
                notes=tuple(run.notes[arm]),
                path=path,
            )
        return counterfactuals


def repeated(rerun: Engine, advance: Advance, journal: Journal = NO_JOURNAL) -> Baseline:
    """The whole recorded run once more; its journal notes the state at the end of every window.

    Args:
        rerun: the record, in the precision of the estimate.
        advance: told of steps as they are made.
        journal: what it holds already is gone on from; at the end it is the run.
    """
    stages = rerun.trajectory.stages
    state, index, step = rerun.carry_over(0, stages[0].first), 0, 0
    starts: dict[str, State] = {}
    path: dict[str, State] = {}
    noted = journal.load()
    if noted is not None:
        position, states = noted
        index, step, state = position["stage"], position["step"], states.pop(CURRENT)
        starts, path = _named(states, START), _named(states, END)
    for j, stage in enumerate(stages[index:], index):
        if not step:
            state = rerun.carry_over(j, state) if j else state
            starts[stage.id] = state
        for stop in (*(k for k in stage.state_steps if step < k), stage.header.steps):
            if step < stop:
                state = rerun.run(stage, state, step, stop, lambda _: advance(1))
                step = stop
                begun = {START + name: start for name, start in starts.items()}
                ended = {END + name: end for name, end in path.items()}
                journal.save({"stage": j, "step": step}, {CURRENT: state, **begun, **ended})
        path[stage.id] = state.without_optimizer()
        step = 0
    return Baseline(state, starts, path)


@dataclass
class _Pass:
    """Several arms on their way along the record, by their prefixes."""

    context: Context
    prefixes: Prefixes
    batched: bool | None
    advance: Advance
    states: States = field(default_factory=dict)
    """Where each prefix of the present stage stands; moments included, where they are still needed."""
    done: set[Arm] = field(default_factory=set)
    """The prefixes that are through with the present stage."""
    ends: list[States] = field(default_factory=list)
    """Of every stage so far: where the prefixes that were trained in it ended, without moments."""
    seconds: dict[Arm, float] = field(default_factory=dict)
    notes: dict[Arm, list[Message]] = field(default_factory=dict)

    def run(self) -> None:
        """Take every arm to the end of training, from where the journal has it."""
        self.seconds = dict.fromkeys(self.prefixes.arms, 0.0)
        self.notes = {arm: [] for arm in self.prefixes.arms}
        first, step = self._go_on()
        for index, stage in enumerate(self.context.record.stages[first or 0 :], first or 0):
            if index != first:
                self._begin(index)
                step = 0
            self._train(index, step)
            self.ends.append(
                {
                    prefix: state.without_optimizer()
                    for prefix, state in self.states.items()
                    if stage.id not in prefix.omitted
                }
            )

    def _begin(self, index: int) -> None:
        """Take the prefixes over a stage's first boundary, and let new ones join."""
        rerun, states = self.context.engine, {}
        for prefix in self.prefixes.at(index):
            before = self.states.get(self.prefixes.of(prefix, index - 1)) if index else None
            states[prefix] = (
                self.prefixes.begin(
                    rerun, prefix, index, self.context.run.starts, self.context.references
                )
                if before is None
                else rerun.carry_over(index, before)
            )
        self.states = states
        self.done = {p for p in states if self.prefixes.stages[index] in p.omitted}

    def _train(self, index: int, step: int) -> None:
        """Through a stage from a step on: together on its own rows, one by one on reference rows."""
        rerun, stage = self.context.engine, self.context.record.stages[index]
        left = {p: s for p, s in self.states.items() if p not in self.done}
        together = {p: s for p, s in left.items() if stage.id not in p.replaced}
        if together:
            began = time.perf_counter()
            why, reached = self._through(index, together, step)
            self._ended(index, reached, began, why)
        for prefix in (p for p in left if p not in together):
            began = time.perf_counter()
            steps = self.context.references.steps(rerun, stage)
            visit = _ToldOnce(self.advance).of
            reached = {prefix: rerun.run(stage, left[prefix], visit=visit, steps=steps)}
            self._ended(index, reached, began, None)

    def _through(self, index: int, begin: States, start: int) -> tuple[Message | None, States]:
        """Take prefixes through one stage from a step on; say why they were run one by one, if they were."""
        rerun, told = self.context.engine, _ToldOnce(self.advance)
        stage = self.context.record.stages[index]
        rerun.enter(stage)
        steps = rerun.steps_of(stage)[start:]
        why = self._against_batching(stage, len(begin))
        if why is None and steps:
            try:
                with rerun.training():
                    arms = Arms(rerun, stage, begin)
                    for step in steps:
                        gradients = arms.gradients(step)
                        if self.batched is None and not arms.overhead_bound:
                            raise NotVectorizedError(message("operations-too-large"))
                        arms.update(step, gradients)
                        told.advance(len(step.batches) * len(begin))
                        if arms.checked:  # a note must not outlive a failed check
                            self._note(index, step.index + 1, arms.states)
                return None, arms.states()
            except NotVectorizedError as error:
                why = message("arm-by-arm", reason=error.reason)
                told.again()
        reached = {p: rerun.run(stage, s, start, visit=told.of) for p, s in begin.items()}
        return why, reached

    def _against_batching(self, stage: StageTrajectory, arms: int) -> Message | None:
        if self.context.engine.autocast(stage) is not None:
            return message("arm-by-arm", reason=message("under-autocast"))
        if any(not batch.weight for step in stage.steps for batch in step.batches):
            return message("arm-by-arm", reason=message("passes-without-gradient"))
        if self.batched is None:
            return against_batching(self.context.engine.model, arms)
        return None if self.batched else message("arm-by-arm-asked-for")

    def _ended(self, index: int, reached: States, began: float, why: Message | None) -> None:
        """Take note of prefixes that are through with a stage."""
        sharing, stage = self.prefixes.at(index), self.context.record.stages[index]
        for prefix in reached:
            part = (time.perf_counter() - began) / len(reached)
            for arm in sharing[prefix]:
                self.seconds[arm] += part / len(sharing[prefix])
                if why is not None:
                    self.notes[arm].append(message("of-stage", stage=stage.id, note=why))
        self.states |= {
            prefix: state
            if any(self.prefixes.carries(arm, index) for arm in sharing[prefix])
            else state.without_optimizer()
            for prefix, state in reached.items()
        }
        self.done |= reached.keys()
        if index + 1 < len(self.prefixes.stages) or self.done < self.states.keys():
            self._note(index, len(stage.steps), dict)

    def _note(self, index: int, step: int, reached: Callable[[], States]) -> None:
        """Note where the prefixes stand in a stage, and where they ended the ones before.

        `step` steps are behind of those prefixes that go through it together.
        """
        if self.context.journal is NO_JOURNAL:
            return
        order, now = list(self.prefixes.at(index)), self.states | reached()
        states = {f"now {i}": now[prefix] for i, prefix in enumerate(order)}
        for j, ended in enumerate(self.ends):
            for i, prefix in enumerate(self.prefixes.at(j)):
                if prefix in ended:
                    states[f"end {j} {i}"] = ended[prefix]
        done = [i for i, prefix in enumerate(order) if prefix in self.done]
        self.context.journal.save({"stage": index, "step": step, "done": done}, states)

    def _go_on(self) -> tuple[int | None, int]:
        """Take up what was noted: the stage and the steps behind; (None, 0) where nothing was."""
        noted = self.context.journal.load()
        if noted is None:
            return None, 0
        position, states = noted
        for j in range(position["stage"]):
            names = {f"end {j} {i}": prefix for i, prefix in enumerate(self.prefixes.at(j))}
            self.ends.append({p: states[name] for name, p in names.items() if name in states})
        order = list(self.prefixes.at(position["stage"]))
        self.states = {prefix: states[f"now {i}"] for i, prefix in enumerate(order)}
        self.done = {order[i] for i in position["done"]}
        return position["stage"], position["step"]


def _exact(known: Known) -> Known:
    return {arm: counterfactual for arm, counterfactual in known.items() if counterfactual.exact}


def _named(states: Mapping[str, State], kind: str) -> dict[str, State]:
    return {name.removeprefix(kind): s for name, s in states.items() if name.startswith(kind)}


def _digest_of(party: str, references: References) -> str | None:
    if party == INITIAL:
        return tensors_digest(references.weights or {})
    return references.data[party].digest if party in references.data else None


def _in_words(arms: Sequence[Arm]) -> str:
    if len(arms) == 1:
        return f"training {arms[0].words}"
    singles = all(len(arm.parties) == 1 and not arm.replaced for arm in arms)
    return (
        f"training without each of {len(arms)} stages" if singles else f"training {len(arms)} arms"
    )


def against_batching(model: nn.Module, arms: int) -> Message | None:
    """Why arms are better run one by one, as far as the model shows it; None where nothing does."""
    if arms == 1:
        return message("single-arm")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        # A bias before it has a gradient of pure rounding, which Adam makes as large as any other.
        return message("batchnorm-and-rounding")
    size = sum(p.numel() for p in model.parameters())
    return message("too-many-parameters", parameters=size) if size > LARGEST else None


class _ToldOnce:
    """Gradients made in one stage, told once even where the stage is run twice."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._spent = self._told = 0

    def advance(self, gradients: int) -> None:
        self._spent += gradients
        if self._spent > self._told:
            self._advance(self._spent - self._told)
        self._told = max(self._told, self._spent)

    def of(self, step_gradient: StepGradient) -> None:
        self.advance(len(step_gradient.step.batches))

    def again(self) -> None:
        self._spent = 0
