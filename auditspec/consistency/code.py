"""The functions and classes that the spec names, in the pinned code: by its syntax, nothing is executed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

from auditspec.artifacts.code import not_installed
from auditspec.artifacts.sources import Complaint, Sources
from auditspec.consistency.inquiry import Inquiry
from auditspec.record.format import StageHeader
from auditspec.spec.suggest import did_you_mean
from auditspec.spec.tree import Location


class Use(NamedTuple):
    """An entry point, where the spec names it, and how it is called."""

    location: Location
    entry_point: str
    arguments: int
    """Positional ones."""
    is_class: bool = False


def check_code(inquiry: Inquiry) -> None:
    """Every entry point is there and can be called as it will be; what it imports is there too."""
    sources = inquiry.sources
    if sources is None:
        return
    sound = []
    for use in _uses(inquiry):
        found = sources.complaint(use.entry_point, use.arguments, is_class=use.is_class)
        if found is not None:
            _tell(inquiry, use, found)
        else:
            sound.append(use.entry_point)
    _check_predict(inquiry)
    _check_imports(inquiry, sources, sound)


def _uses(inquiry: Inquiry) -> Iterator[Use]:
    model = inquiry.spec.model
    yield Use(("model", "factory"), model.factory, 0)
    yield Use(("model", "load_batch"), model.load_batch, 2)
    if model.predict is not None:
        yield Use(("model", "predict"), model.predict, 2)
    for s, stage in enumerate(inquiry.spec.stages):
        yield Use(("stages", s, "objective"), stage.objective, 2)
        if stage.extend is not None:
            header = _recorded_stage(inquiry, stage.id)
            given = 0 if header is None else len(header.extend_data)
            yield Use(("stages", s, "extend"), stage.extend, 1 + given)
        if ":" in stage.optimizer.name:
            yield Use(("stages", s, "optimizer", "name"), stage.optimizer.name, 1, is_class=True)
    for b, behavior in enumerate(inquiry.spec.behaviors):
        for option, entry_point in behavior.metric.functions.items():
            yield Use(("behaviors", b, "metric", option), entry_point, 2)


def _tell(inquiry: Inquiry, use: Use, found: Complaint) -> None:
    hint = found.remedy or did_you_mean(found.word, found.known, "it has")
    recorded = _recorded(inquiry, use.location)
    if recorded is not None and recorded != use.entry_point:
        hint = f"the record says {recorded}"
    code = "AS080" if found.missing else "AS081"
    inquiry.fault(code, f"{use.entry_point}: {found.message}", use.location, hint)


def _recorded_stage(inquiry: Inquiry, id_: str) -> StageHeader | None:
    stages = () if inquiry.record is None else inquiry.record.stages
    return next((header for header in stages if header.id == id_), None)


def _recorded(inquiry: Inquiry, location: Location) -> str | None:
    """What the record names at the same place."""
    record = inquiry.record
    if record is None:
        return None
    match location:
        case ("model", "factory"):
            return record.factory.name
        case ("model", "load_batch"):
            return record.load_batch.name
        case ("stages", int(index), "objective"):
            header = _recorded_stage(inquiry, inquiry.spec.stages[index].id)
            return header.objective.name if header else None
        case _:
            return None


def _check_predict(inquiry: Inquiry) -> None:
    """What gives the model's outputs is none of the functions that do something else."""
    model, record = inquiry.spec.model, inquiry.record
    factory, load_batch = model.factory, model.load_batch
    objectives = {stage.id: stage.objective for stage in inquiry.spec.stages}
    if record is not None:  # it knows better
        factory, load_batch = record.factory.name, record.load_batch.name
        objectives = {header.id: header.objective.name for header in record.stages}
    others = {factory: "builds the model", load_batch: "loads the batches"}
    for id_, objective in objectives.items():
        others.setdefault(objective, f"is the objective of stage {id_!r}")
    outputs = f"name the function that gives {model.outputs}"
    if model.predict in others:
        message = f"{model.predict} {others[model.predict]}"
        inquiry.fault("AS081", message, ("model", "predict"), outputs)
    if model.predict is not None:
        others[model.predict] = f"gives {model.outputs}"
    for b, behavior in enumerate(inquiry.spec.behaviors):
        for option, entry_point in behavior.metric.functions.items():
            if entry_point in others:
                message, hint = (
                    f"{entry_point} {others[entry_point]}",
                    "name a function that gives one number an example, [B]",
                )
                inquiry.fault("AS081", message, ("behaviors", b, "metric", option), hint)


def _check_imports(inquiry: Inquiry, sources: Sources, entry_points: list[str]) -> None:
    location: Location = ("artifacts", "code", "path")
    packages, parts = sources.missing(entry_points)
    for package in packages:
        message, hint = not_installed(package.name, package.place)
        inquiry.fault("AS082", message, (*location, package.name), hint, key=True)
    for place in sources.unreadable(entry_points).values():
        inquiry.defect("AS048", "code", f"is no Python of this version: {place}")
    for part in parts:
        message = f"{part.place} imports {part.name!r}, which the code does not have"
        inquiry.defect("AS048", "code", message, "restore the code that was trained with")
    for name in sorted(sources.tops & sys.stdlib_module_names):
        message = f"its module {name!r} has the name of a standard library module"
        inquiry.defect("AS048", "code", message, "rename it")
