"""What a self-check is asked, and what it answers: plain values, in files of a folder of their own."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from auditspec.artifacts.files import write_atomically
from auditspec.recorder.probe import Notes

INSIDE = "AUDITSPEC_INSIDE_SELF_CHECK"
"""Set in the environment of a process that checks a record, where none is to be made."""
Outcome = Literal["bitwise", "close", "fails", "unchecked"]
"""bitwise: the re-run ends on the recorded state itself; close: within what record-fidelity accepts;
unchecked: it could not be made, for no fault of the record."""


@dataclass(frozen=True)
class Question:
    """A window of a record, and where its code and data are found."""

    record: str
    stage: str
    stop: int
    """Where the window ends that begins with the stage."""
    datasets: dict[str, str]
    """Paths of the data sets, by name."""
    digests: dict[str, str]
    """What those files must still be."""
    device_memory: int
    """Bytes of the training's device that it reserved; 0 for the CPU."""
    notes: Notes = field(default_factory=Notes)
    path: tuple[str, ...] = ()
    """sys.path of the process that trains."""
    parent: int = 0
    """Its id."""

    @classmethod
    def here(cls, **what: Any) -> Question:
        """A question with this process's path and id."""
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        beside = [str(Path(main).resolve().parent)] if main else []
        path = [str(Path(place).absolute()) for place in sys.path]
        return cls(path=(*path, *beside), parent=os.getpid(), **what)

    def write(self, folder: Path) -> None:
        """Write it where `read` looks."""
        plain = asdict(self) | {"notes": self.notes.plain()}
        write_atomically(folder / "question.json", json.dumps(plain).encode(), durable=False)

    @classmethod
    def read(cls, folder: Path) -> Question:
        """What `write` wrote."""
        plain = json.loads((folder / "question.json").read_bytes())
        return cls(**plain | {"notes": Notes.of(plain["notes"]), "path": tuple(plain["path"])})


@dataclass(frozen=True)
class Answer:
    """What came of it."""

    outcome: Outcome
    deviation: float | None = None
    """Largest relative deviation; None where the re-run ended nowhere."""
    problem: str = ""
    """What does not hold, or why nothing could be checked."""
    code: str = ""
    """Of the likely cause."""
    cause: str = ""
    remedy: str = ""

    def write(self, folder: Path) -> None:
        """Write it where `read` looks."""
        write_atomically(folder / "answer.json", json.dumps(asdict(self)).encode(), durable=False)

    @classmethod
    def read(cls, folder: Path) -> Answer | None:
        """What `write` wrote; None where nothing is written."""
        path = folder / "answer.json"
        return cls(**json.loads(path.read_bytes())) if path.exists() else None
