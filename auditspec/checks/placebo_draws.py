"""Behaviours around the deployed model, at random displacements; shared out among the ranks where there are several."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from auditspec.artifacts.digest import read_verified
from auditspec.artifacts.files import write_atomically
from auditspec.behaviors.bound import Scores
from auditspec.behaviors.evaluate import Evaluator
from auditspec.estimator.placebo import placebos
from auditspec.progress import Advance
from auditspec.record.codec import decoded, encoded, from_bytes, to_parts
from auditspec.record.state import State
from auditspec.team import Job, Team

KIND = "placebos"
"""Of the jobs that read some."""
FINAL, DELTA = "final|", "delta|"
"""Before the names of tensors of a lent file."""
Readings = list[dict[str, float]]
"""The effect of every draw on every behaviour."""


@dataclass(frozen=True)
class Lot:
    """Some draws of a stage."""

    stage: str
    seed: int
    rounds: Sequence[int]
    """Numbers of the draws."""
    delta: Mapping[str, Tensor]
    """The stage's displacement of the deployed parameters."""


@dataclass(frozen=True)
class Around:
    """Reads a model and what lies around it.

    Args:
        reader: of the behaviours, on the examples that draws are read on.
        final: theta_K.
    """

    reader: Evaluator
    final: State

    @cached_property
    def base(self) -> Mapping[str, Scores]:
        """gamma(theta_K) per example, by behaviour."""
        return self.reader.plug_in(self.final)

    def effects(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        """Of what has these scores, by behaviour."""
        return {
            name: part.statistic.effect(self.base[name], self.base[name] - scores[name])
            for name, part in self.reader.slices.items()
        }

    def read(self, lot: Lot, advance: Advance) -> Readings:
        """The effects of every draw of a lot."""
        drawn = placebos(self.reader.rerun, lot.stage, lot.delta, lot.rounds, lot.seed)
        found = []
        for scores in self.reader.plug_ins(_moved(self.final, delta) for delta in drawn):
            found.append(self.effects(scores))
            advance(1)
        return found

    def read_all(
        self, lots: Sequence[Lot], most: int, team: Team | None, advance: Advance
    ) -> list[Readings]:
        """The effects of every draw of several lots.

        Args:
            lots: the same rounds of different stages.
            most: examples of a behaviour that the reader has at most.
            team: the ranks among which they are shared out.
            advance: told of draws that are read here.
        """
        if team is None or team.folder is None:
            return [self.read(lot, advance) for lot in lots]
        rounds = lots[0].rounds if lots else ()
        shares = [part for rank in range(team.size) if (part := [*rounds[rank :: team.size]])]
        found: list[dict[int, dict[str, float]]] = [{} for _ in lots]

        def make(job: Job) -> Mapping[str, Any]:
            own = [replace(lot, rounds=job["rounds"]) for lot in lots]
            return {"readings": [self.read(lot, advance) for lot in own]}

        with self._lent(lots, team.folder) as lent:
            jobs = [{"kind": KIND, "lots": lent, "most": most, "rounds": part} for part in shares]
            for part, made in zip(shares, team.share(jobs, make), strict=True):
                for of, read in zip(found, made["readings"], strict=True):
                    of |= dict(zip(part, read, strict=True))
        return [[of[n] for n in rounds] for of in found]

    @contextmanager
    def _lent(self, lots: Sequence[Lot], folder: Path) -> Iterator[list[dict[str, Any]]]:
        """Lots in JSON, their tensors as files that other ranks read."""
        lent = [{"stage": lot.stage, "seed": lot.seed, "file": f"{secrets.token_hex(8)}.placebos.safetensors"} for lot in lots]  # fmt: skip
        final = encoded(State(self.final.parameters, self.final.buffers), FINAL)[0]
        try:
            for told, lot in zip(lent, lots, strict=True):
                tensors = final | {f"{DELTA}{name}": delta for name, delta in lot.delta.items()}
                data = to_parts(tensors, {}, sealed=True)
                write_atomically(folder / str(told["file"]), data, durable=False)
            yield lent
        finally:
            for told in lent:
                with contextlib.suppress(OSError):
                    (folder / str(told["file"])).unlink(missing_ok=True)


def make_job(reader: Evaluator, folder: Path, job: Job) -> Mapping[str, Any]:
    """Read some draws for another rank.

    Args:
        reader: of all examples.
        folder: of what ranks lend each other.
        job: what is asked for.
    """
    thinned, _ = reader.thinned(reader.rerun, job["most"])
    around, readings = None, []
    for told in job["lots"]:
        tensors, _ = from_bytes(read_verified(folder / told["file"], None), sealed=True)
        around = around or Around(thinned, decoded(tensors, {}, FINAL))
        delta = {n.removeprefix(DELTA): d for n, d in tensors.items() if n.startswith(DELTA)}
        lot = Lot(told["stage"], told["seed"], job["rounds"], delta)
        readings.append(around.read(lot, lambda _: None))
    return {"readings": readings}


def _moved(state: State, delta: Mapping[str, Tensor]) -> State:
    parameters = {n: p + delta[n].to(p) if n in delta else p for n, p in state.parameters.items()}
    return State(parameters, state.buffers)
