"""The one pass in which a spec is held against everything that it names, before any code runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from auditspec.consistency.code import check_code
from auditspec.consistency.data import check_data
from auditspec.consistency.inquiry import Inquiry
from auditspec.consistency.machine import (
    check_device,
    check_engine,
    check_exports,
    check_method,
    check_signing,
    check_trainers,
)
from auditspec.consistency.paths import check_paths
from auditspec.consistency.record import check_record
from auditspec.consistency.references import check_references
from auditspec.consistency.weights import check_weights
from auditspec.errors import Problem, SpecError
from auditspec.evidence import inspect_all
from auditspec.report.words import text
from auditspec.results import Evidence
from auditspec.spec.lock import own_pins, pins
from auditspec.spec.source import LoadedSpec, in_order


@dataclass(frozen=True)
class Checked:
    """The state of every artifact, and what is wrong with spec and evidence."""

    evidence: tuple[Evidence, ...]
    spec_problems: tuple[Problem, ...]
    """Of the lock, and wherever the spec does not fit what it is about."""
    evidence_problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    def require_fitting(self) -> None:
        """Refuse a spec that does not fit.

        Raises:
            SpecError: with every problem of the spec; evidence is never blamed for those.
        """
        if self.spec_problems:
            raise SpecError(in_order(list(self.spec_problems)))


def check(loaded: LoadedSpec, *, signing: bool = True) -> Checked:
    """Compare every artifact with its pin, then the spec with the artifacts; nothing is executed.

    Args:
        loaded: the spec.
        signing: whether the packet will be signed, so that the keys must be there.
    """
    problems: list[Problem] = []
    try:
        pinned = pins(loaded)
    except SpecError as error:
        problems += error.problems
        pinned = own_pins(loaded)
    evidence = inspect_all(loaded, pinned)
    inquiry = Inquiry(loaded, evidence)
    check_paths(inquiry)
    check_trainers(inquiry)
    check_device(inquiry)
    check_exports(inquiry)
    check_method(inquiry)
    check_engine(inquiry)
    if signing:
        check_signing(inquiry)
    check_code(inquiry)
    check_record(inquiry)
    check_data(inquiry)
    check_references(inquiry)
    check_weights(inquiry)
    wrong = (item for item in evidence if not inquiry.told_of(item.name))
    defects = [problem for item in wrong for problem in _wrong(item, loaded)]
    return Checked(
        evidence,
        (*problems, *inquiry.faults),
        (*defects, *inquiry.defects),
        (
            *(_unpinned(item, loaded) for item in evidence if item.state == "declared"),
            *inquiry.warnings,
        ),
    )


def require_keys(loaded: LoadedSpec) -> None:
    """Refuse a spec whose packet cannot be made and signed as it asks.

    Raises:
        SpecError: with the place of every export, key, certificate, or option that is wrong.
    """
    inquiry = Inquiry(loaded, ())
    check_exports(inquiry)
    check_signing(inquiry)
    if inquiry.faults:
        raise SpecError(in_order(inquiry.faults))


def _wrong(item: Evidence, loaded: LoadedSpec) -> Iterator[Problem]:
    note = text(item.notes)
    if item.state == "missing":
        yield _problem("AS040", item, f"{item.path}: {note}", loaded)
    elif item.state == "mismatched" and item.found is None:
        yield _problem("AS042", item, note, loaded)
    elif item.state == "mismatched" and item.found == (item.expected or item.found):
        place = loaded.place(("artifacts", item.name, "signed_by"))
        message = f"artifact {item.name!r}: {note}"
        hint = "ask the trainer for the record again, whole and signed as the spec asks"
        yield Problem("AS044", message, str(loaded.path), *place, hint)
    elif item.state == "mismatched":
        message = f"digest is {item.found}, {item.pinned_in} pins {item.expected} ({note})"
        hint = "restore the pinned bytes, or pin the new ones if the change is intended"
        yield _problem("AS041", item, message, loaded, hint)


def _unpinned(item: Evidence, loaded: LoadedSpec) -> Problem:
    hint = f"add digest: {item.found}, or run auditspec digest --lock {loaded.path.name}"
    return _problem("AS043", item, "nothing pins its bytes", loaded, hint)


def _problem(
    code: str, item: Evidence, message: str, loaded: LoadedSpec, hint: str = ""
) -> Problem:
    """A problem at the artifact's digest where that is wrong and the spec pins it, else at its path."""
    at_digest = code == "AS041" and item.pinned_in == loaded.path.name
    location = ("artifacts", item.name, "digest" if at_digest else "path")
    return loaded.problem(code, f"artifact {item.name!r}: {message}", location, hint=hint, key=True)
