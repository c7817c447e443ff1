"""The spec's stages and functions against the record: order, names, data, optimizers.

A declaration that the record contradicts is a fault of the spec, told with the record's value: which
of the two is right, the auditor must find out before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping

from auditspec.checks.declared import RATE_TOLERANCE, Difference, differences
from auditspec.consistency.inquiry import Inquiry
from auditspec.errors import EvidenceError
from auditspec.record.format import RecordHeader, StageHeader
from auditspec.record.outline import StageOutline, read_outline
from auditspec.report.words import text
from auditspec.spec.models import OPTIMIZERS, Stage
from auditspec.spec.suggest import did_you_mean, nearest
from auditspec.spec.tree import Location

ASK = "if the record is right, correct the spec; if not, ask the trainer"


def check_record(inquiry: Inquiry) -> None:
    """Hold the spec's declarations against the record; also without one, optimizers must exist."""
    record = inquiry.record
    if record is None:
        _check_optimizers_exist(inquiry)
        return
    _check_functions(inquiry, record)
    pairs = _pair_stages(inquiry, record)
    for index, header in pairs.items():
        stage = inquiry.spec.stages[index]
        _check_data(inquiry, index, stage, header)
        try:
            outline = read_outline(inquiry.path("record"), record, header)
        except EvidenceError as error:
            inquiry.defect("AS042", "record", error.message, error.remedy)
        else:
            _check_stage(inquiry, index, stage, outline)
    _check_bytes(inquiry, record)


# --- functions ---------------------------------------------------------------------------------


def _check_functions(inquiry: Inquiry, record: RecordHeader) -> None:
    model = inquiry.spec.model
    for key, declared, recorded in (
        ("factory", model.factory, record.factory.name),
        ("load_batch", model.load_batch, record.load_batch.name),
    ):
        if declared != recorded:
            message = f"{key} {declared} declared, {recorded} recorded"
            inquiry.fault("AS071", message, ("model", key), _hint(declared, recorded))


def _hint(declared: str, recorded: str) -> str:
    """What was meant, where the two look alike; else whom to ask."""
    return f"did you mean {recorded!r}?" if nearest(declared, [recorded]) else ASK


# --- stages ------------------------------------------------------------------------------------


def _pair_stages(inquiry: Inquiry, record: RecordHeader) -> dict[int, StageHeader]:
    """The recorded stage of each declared one, by its index; faults for those that have none."""
    declared = [stage.id for stage in inquiry.spec.stages]
    recorded = [stage.id for stage in record.stages]
    headers = dict(zip(recorded, record.stages, strict=True))
    pairs = {i: headers[id_] for i, id_ in enumerate(declared) if id_ in headers}
    unclaimed = [id_ for id_ in recorded if id_ not in declared]
    for index, id_ in enumerate(declared):
        if id_ in headers:
            continue
        meant = _meant(id_, index, declared, recorded, unclaimed)
        if meant is None:
            hint = f"its stages: {', '.join(recorded) or 'none'}"
        else:
            unclaimed.remove(meant)
            pairs[index] = headers[meant]
            hint = f"did you mean {meant!r}?"
        inquiry.fault("AS070", f"the record has no stage {id_!r}", ("stages", index, "id"), hint)
    for id_ in unclaimed:
        after = recorded.index(id_)
        index = min(after, len(declared) - 1)
        hint = f"declare every stage, in the order of training: {', '.join(recorded)}"
        message = f"the record's stage {id_!r} is not declared"
        inquiry.fault("AS070", message, ("stages", index), hint)
    _check_order(inquiry, pairs, recorded)
    return pairs


def _meant(
    id_: str, index: int, declared: list[str], recorded: list[str], unclaimed: list[str]
) -> str | None:
    """The recorded stage that a declared one without a match stands for."""
    if alike := nearest(id_, unclaimed):
        return alike
    in_place = recorded[index] if index < len(recorded) else None
    return in_place if len(declared) == len(recorded) and in_place in unclaimed else None


def _check_order(inquiry: Inquiry, pairs: Mapping[int, StageHeader], recorded: list[str]) -> None:
    """Tell the first declared stage that stands out of the order of training."""
    order = sorted((header.id for header in pairs.values()), key=recorded.index)
    for index, expected in zip(sorted(pairs), order, strict=True):
        if pairs[index].id != expected:
            inquiry.fault(
                "AS070",
                f"stage {pairs[index].id!r} stands here, where the record has {expected!r}",
                ("stages", index, "id"),
                f"the order of training: {', '.join(recorded)}",
            )
            return


def _check_stage(inquiry: Inquiry, index: int, stage: Stage, outline: StageOutline) -> None:
    for found in differences(stage, outline):
        if not found.location:
            inquiry.defect("AS045", "record", f"stage {stage.id!r}: {text(found.note)}")
        elif found.location != ("data",):
            hint = _hint_of(found, outline)
            location: Location = ("stages", index, *found.location)
            inquiry.fault("AS071", f"stage {stage.id!r}: {text(found.note)}", location, hint)
    if not outline.steps and stage.optimizer.course is not None:
        _warn_of_first_rate(inquiry, index, stage, outline.header)


def _warn_of_first_rate(inquiry: Inquiry, index: int, stage: Stage, header: StageHeader) -> None:
    """Without steps, a record shows only the rate with which the optimizer came to the stage."""
    rates = [r for group in header.groups if isinstance(r := group.options.get("lr"), float | int)]
    lr, course = stage.optimizer.lr, stage.optimizer.course
    declared = lr if course is None else lr * course.share(0, header.steps)
    if rates and abs(max(rates) - declared) > RATE_TOLERANCE * lr:
        message = (
            f"stage {stage.id!r}: lr {declared:g} declared, and the record, which holds no steps, "
            f"begins with {max(rates):g}"
        )
        inquiry.warn("AS039", message, ("stages", index, "optimizer", "lr"), ASK)


def _hint_of(found: Difference, outline: StageOutline) -> str:
    if found.location == ("optimizer", "name"):
        names = {outline.header.optimizer, *OPTIMIZERS}
        if found.declared not in names:
            return did_you_mean(found.declared, sorted(names), "torch.optim has")
    key = str(found.location[-1])
    if found.location[0] == "optimizer" and found.recorded == "None":
        held = {k for group in outline.header.groups for k in group.options}
        if key not in held:
            return did_you_mean(key, sorted(held), f"options of {outline.header.optimizer}")
    if found.location in (("objective",), ("extend",)):
        return _hint(found.declared, found.recorded)
    return ASK


def _check_optimizers_exist(inquiry: Inquiry) -> None:
    for index, stage in enumerate(inquiry.spec.stages):
        name = stage.optimizer.name
        if ":" not in name and name not in OPTIMIZERS:
            hint = did_you_mean(name, OPTIMIZERS, "torch.optim has")
            location = ("stages", index, "optimizer", "name")
            inquiry.fault("AS071", f"torch.optim has no optimizer {name!r}", location, hint)


# --- data --------------------------------------------------------------------------------------


def _check_data(inquiry: Inquiry, index: int, stage: Stage, header: StageHeader) -> None:
    """The artifacts of a stage are those that the record names, by name and by digest."""
    names = {digest: name for name, digest in header.datasets.items()}
    others = [name for name in header.datasets if name not in stage.data]
    for place, name in enumerate(stage.data):
        if name in header.datasets or not header.datasets:
            continue
        found = inquiry.evidence[name].found
        location: Location = ("stages", index, "data", place)
        if found in names and inquiry.usable(name) and names[found] not in inquiry.spec.artifacts:
            message = f"artifact {name!r} is what the record calls {names[found]!r}"
            hint = f"give the artifact that name: artifacts.{names[found]}"
        else:
            message = (
                f"stage {stage.id!r} was not trained on {name!r}, by the record, but on "
                f"{', '.join(header.datasets)}"
            )
            hint = _hint(name, others[0]) if len(others) == 1 else ASK
        inquiry.fault("AS072", message, location, hint)
    for name in header.datasets:
        faulty = any(n not in header.datasets for n in stage.data)
        if name not in stage.data and not faulty:
            message = f"stage {stage.id!r} was also trained on {name!r}, by the record"
            inquiry.fault("AS072", message, ("stages", index, "data"), f"add {name} to its data")


def _check_bytes(inquiry: Inquiry, record: RecordHeader) -> None:
    """Every data set that the record names has the bytes that it was trained on."""
    places: dict[str, Location] = {
        name: ("stages", s, "data", d)
        for s, stage in enumerate(inquiry.spec.stages)
        for d, name in enumerate(stage.data)
    }
    for header in record.stages:
        for name, digest in header.datasets.items():
            if name not in places or not inquiry.usable(name):
                continue
            if inquiry.evidence[name].found == digest:
                continue
            others = [n for n, e in inquiry.evidence.items() if e.found == digest]
            if others:
                path = inquiry.spec.artifacts[others[0]].path
                message = f"artifact {name!r}: the record's {name!r} lies at {path}"
                location = ("artifacts", name, "path")
                inquiry.fault("AS046", message, location, "correct the path", key=True)
            else:
                message = f"not the data that the record's stage {header.id!r} was trained on"
                inquiry.defect("AS045", name, message, "restore it, or ask the trainer")
