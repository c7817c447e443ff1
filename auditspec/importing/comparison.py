"""Checkpoints that a run saved, each held against the run that is made again, at its step.

The moment is right after the optimizer's step: whoever saves, saves then, or before the next forward pass. From a
checkpoint that was missed the run goes on, so that what follows is held against what followed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.manifest import digest_path
from auditspec.artifacts.saved import SavedCheckpoint, Stored
from auditspec.artifacts.weight_files import aligned, fitted
from auditspec.errors import EvidenceError
from auditspec.record.adapters import adapted
from auditspec.record.describe_optimizer import options_of
from auditspec.record.deviation import distance, optimizer_state_distance
from auditspec.record.format import CheckpointMatch, Regenerated
from auditspec.record.state import (
    State,
    capture,
    named_buffers,
    named_parameters,
    restore,
    ties,
)
from auditspec.recorder.events import OpenStage
from auditspec.recorder.reproduction import Reproduction

PLAIN = (bool, int, float, str)
REPORTING = (
    "output_dir",
    "logging_",
    "run_name",
    "report_to",
    "disable_tqdm",
    "hub_",
    "push_to_hub",
)
COUNTERS = ("step",)
"""Keys under which optimizers count their steps, parameter by parameter."""


class Comparison(Reproduction):
    """Holds every saved checkpoint of a run against the run that is made again.

    Args:
        stages: the checkpoints of each stage by the steps made before them; the stages in their order.
        announce: told of every checkpoint once it was compared.
    """

    def __init__(
        self, stages: Mapping[str, Mapping[int, Stored]], announce: Callable[[str], None]
    ) -> None:
        self._announce = announce
        self._waiting = {stage: dict(stored) for stage, stored in stages.items()}
        self._to_begin = list(stages)
        self._steps: dict[str, int] = {}
        """Steps that each stage made so far."""
        self._matches: list[CheckpointMatch] = []
        self._other_arguments: set[str] = set()
        self._begun: dict[str, Any] = {}
        """The generators of Python and numpy as the stage began."""
        self._last: SavedCheckpoint | None = None
        """The one that was compared last, with no step since."""

    @property
    def regenerated(self) -> Regenerated:
        """How close the saved checkpoints were met."""
        return Regenerated(
            checkpoints=tuple(self._matches), arguments=tuple(sorted(self._other_arguments))
        )

    def begin(self, stage: OpenStage) -> None:
        """Be sure that it is the stage whose turn it is.

        Raises:
            EvidenceError: if it is another; or as `step`.
        """
        wanted = self._to_begin.pop(0) if self._to_begin else None
        if stage.header.id != wanted:
            there = "no more stages" if wanted is None else f"'{wanted}'"
            raise EvidenceError(
                f"the code records the stage '{stage.header.id}' where the spec has {there}",
                "record the stages of the spec, in its order, under their ids",
            )
        self._begun = other_generators()
        self.step(stage, 0)

    def step(self, stage: OpenStage, made: int) -> None:
        """Compare with the checkpoint of this step, where there is one.

        Raises:
            EvidenceError: if it is of another model, or cannot be read.
        """
        name, self._last = stage.header.id, None
        self._steps[name] = made
        stored = self._waiting[name].get(made)
        if stored is None:
            return
        saved = stored.read(_names_to_find(stage.model))
        match = compared(saved, stage, made, same_random_state(saved.rng, self._begun))
        if not match.met:
            _refuse_other_count(match, saved, stage)
            self._refuse_other_beginning(match, stored.path)
        astray = not match.met or any(not earlier.met for earlier in self._matches)
        self._matches.append(match)
        self._other_arguments.update(other_arguments(saved, self.arguments))
        if not match.met and saved.arguments is None:
            self._other_arguments.update(other_options(saved, stage.optimizer))
        if astray and made:
            self._go_on_from(saved, match, stage)
        self._last = saved
        del self._waiting[name][made]
        how = "met" if match.met else "missed"
        off = f"{match.deviation:.1e} off" if match.deviation else "bitwise"
        self._announce(f"checkpoint of {name}, step {made}: {how}, {off}")

    def save(self) -> None:
        """Look at the random generators again: between the step and now the trainer may have evaluated."""
        if self._last is not None and self._matches[-1].random is False:
            again = {"random": same_random_state(self._last.rng, self._begun)}
            self._matches[-1] = self._matches[-1].model_copy(update=again)

    def finish(self) -> None:
        """Be sure that every checkpoint was reached.

        Raises:
            EvidenceError: naming the first stage that was not recorded, or the first checkpoint that was not
                reached.
        """
        if self._to_begin:
            raise EvidenceError(
                f"the code records no stage '{self._to_begin[0]}'",
                "record every stage of the spec, in its order, under its id",
            )
        for stage, waiting in self._waiting.items():
            for step, stored in waiting.items():
                raise EvidenceError(
                    f"{stored.path}: is of step {step}, and the run made again ends stage '{stage}' after "
                    f"{self._steps[stage]} steps",
                    "let the code train as long as the run did; name the checkpoint by the steps made before "
                    "it in its own stage",
                )

    def _refuse_other_beginning(self, match: CheckpointMatch, path: Path) -> None:
        """Refuse to train a whole run again that begins elsewhere.

        Raises:
            EvidenceError: if the checkpoint is the one with which the run began.
        """
        if match.step == 0 and not self._matches:
            raise EvidenceError(
                f"{path}: the run made again does not begin with these weights",
                "give the first weights of the run as model.initial, and the code that builds their model",
            )

    def _go_on_from(self, saved: SavedCheckpoint, match: CheckpointMatch, stage: OpenStage) -> None:
        """Put a saved checkpoint in the place of what was reached; what it does not hold stays."""
        reached = capture(stage.model, stage.optimizer)
        given = state_of(saved, stage.model, stage.optimizer)
        moments = {} if match.optimizer == "other" else given.optimizer_state
        state = State(
            reached.parameters | given.parameters, reached.buffers | given.buffers, moments
        )
        restore(state, stage.model, stage.optimizer)


def trained_names(model: nn.Module) -> list[str]:
    """The parameters that training changes: a checkpoint of the run must hold them."""
    return [name for name, p in named_parameters(model).items() if p.requires_grad]


def state_of(saved: SavedCheckpoint, model: nn.Module, optimizer: Optimizer) -> State:
    """What a checkpoint says of a model's parameters and buffers, and of its optimizer.

    Args:
        saved: the checkpoint.
        model: whose tensors are looked for, by name; those that are not trained may be missing. Adapters of
            peft may stand alone, under the names that peft saves them by.
        optimizer: whose state the checkpoint has by number, in the order of the groups' parameters.

    Raises:
        EvidenceError: if it is of another model.
    """
    parameters, buffers, trained = (
        named_parameters(model),
        named_buffers(model),
        trained_names(model),
    )
    tensors = fitted(saved.weights, trained, ties(model))
    if any(name not in tensors for name in trained):
        tensors = _adapters_alone(saved.weights, parameters)
    state = State(
        {name: tensors[name] for name in parameters if name in tensors},
        {name: tensors[name] for name in buffers if name in tensors},
        _optimizer_state(saved.optimizer, model, optimizer),
    )
    odd = [name for name in trained if name not in tensors] + [
        name
        for name, tensor in (state.parameters | state.buffers).items()
        if tensor.shape != (parameters | buffers)[name].shape
    ]
    if odd:
        raise EvidenceError(
            f"{saved.path}: its weights are not those of the model: {odd[0]}",
            "name the checkpoints of this stage, and the code that trained them",
        )
    return state


def compared(
    saved: SavedCheckpoint, stage: OpenStage, made: int, random_state: bool | None
) -> CheckpointMatch:
    """Hold a saved checkpoint against a stage as it stands.

    Args:
        saved: the checkpoint.
        stage: with model and optimizer.
        made: steps that the stage made.
        random_state: whether the generators stand alike.

    Raises:
        EvidenceError: if it is of another model.
    """
    wanted = state_of(saved, stage.model, stage.optimizer)
    reached = capture(stage.model, stage.optimizer)
    return CheckpointMatch(
        stage=stage.header.id,
        step=made,
        path=saved.path.name,
        digest=digest_path(saved.path).digest,
        weights=_part(distance(reached, State(wanted.parameters, {}))),
        buffers=_part(distance(reached, State({}, wanted.buffers))) if wanted.buffers else None,
        optimizer=_part(optimizer_state_distance(reached, wanted))
        if wanted.optimizer_state
        else None,
        random=random_state,
    )


def other_arguments(saved: SavedCheckpoint, now: Mapping[str, Any]) -> list[str]:
    """Plain arguments that a checkpoint of transformers' Trainer holds with another value than a trainer now.

    Where files and reports go is left out: it changes no number.
    """
    state = None if saved.arguments is None else saved.arguments.state
    if not isinstance(state, Mapping):
        return []
    return [
        name
        for name, value in state.items()
        if name in now
        and not name.startswith(REPORTING)
        and isinstance(value, PLAIN)
        and isinstance(now[name], PLAIN)
        and value != now[name]
    ]


def other_options(saved: SavedCheckpoint, optimizer: Optimizer) -> list[str]:
    """Options of the optimizer that a checkpoint holds with another value: `optimizer.lr`.

    Where a schedule sets the learning rate it may have been set for the next step already: the rate with which
    the schedule began is compared in its place.
    """
    groups = () if saved.optimizer is None else saved.optimizer["param_groups"]
    names: set[str] = set()
    for given, group in zip(groups, optimizer.param_groups, strict=False):
        now = options_of(group)
        scheduled = {"lr"} if "initial_lr" in given else set()
        names |= {
            f"optimizer.{key}"
            for key, value in given.items()
            if key in now and key not in scheduled and _plain(value) != _plain(now[key])
        }
    return sorted(names)


def same_random_state(
    saved: Mapping[str, Any] | None, begun: Mapping[str, Any] = MappingProxyType({})
) -> bool | None:
    """Whether the generators stand as a checkpoint says; None where it says nothing.

    Args:
        saved: `cpu`, and `python` and `numpy` where those were saved.
        begun: states of the last two from which no number was drawn if they still stand so: scripts that do not
            use them leave them unseeded.
    """
    if saved is None or not isinstance(saved.get("cpu"), Tensor):
        return None
    same = torch.equal(saved["cpu"], torch.get_rng_state())
    for kind, now in other_generators().items():
        if kind in saved and now != begun.get(kind):
            same &= _plain(saved[kind]) == now
    return same


def other_generators() -> dict[str, Any]:
    """The states of the generators of Python and numpy, as lists of numbers."""
    return {"python": _plain(random.getstate()), "numpy": _plain(np.random.get_state())}


def _part(deviation: float) -> Any:
    return deviation if math.isfinite(deviation) else "other"


def _names_to_find(model: nn.Module) -> list[str]:
    """Names that tell the model's own tensors from others in the same file; none where adapters may stand alone."""
    names = trained_names(model)
    return [] if adapted(named_parameters(model)).adapters else names


def _adapters_alone(
    weights: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Adapters, and layers that were trained in full beside them, under the model's names; else nothing."""
    parts = adapted(parameters)
    recorded = {name: parts.plain[name] for name in parts.saved}
    for adapter in parts.adapters.values():
        recorded |= adapter.beside
    own = aligned(weights, recorded) if recorded else None
    return {} if own is None else {name: own[0][said] for said, name in recorded.items()}


def _optimizer_state(
    saved: Mapping[str, Any] | None, model: nn.Module, optimizer: Optimizer
) -> dict[str, dict[str, Any]]:
    if saved is None:
        return {}
    names = {id(p): name for name, p in named_parameters(model).items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    numbered = dict(enumerate(order))
    return {str(numbered.get(key, key)): dict(s) for key, s in saved["state"].items() if s}


def _refuse_other_count(match: CheckpointMatch, saved: SavedCheckpoint, stage: OpenStage) -> None:
    """Refuse a checkpoint whose optimizer counts other steps than its name.

    Raises:
        EvidenceError: saying by how many.
    """
    wanted = _optimizer_state(saved.optimizer, stage.model, stage.optimizer)
    now = capture(stage.model, stage.optimizer).optimizer_state
    more = {
        int(state[key]) - int(now.get(name, {}).get(key, 0))
        for name, state in wanted.items()
        for key in COUNTERS
        if key in state
    }
    if len(more) == 1 and (steps := more.pop()):
        raise EvidenceError(
            f"{saved.path}: is of step {match.step} by its name, and was saved after {match.step + steps} steps "
            f"of stage '{match.stage}', as its optimizer counts",
            "name it by the optimizer steps made before it in its stage",
        )


def _plain(value: Any) -> Any:
    """Nested lists of numbers, whatever arrays and sequences they stand in."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
