"""What the spec reads from tables: columns, slices, labels, and classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from auditspec.artifacts.datasets import Dataset
from auditspec.behaviors.statistics import Statistic
from auditspec.consistency.inquiry import Inquiry
from auditspec.consistency.overlap import overlaps
from auditspec.consistency.slices import check_slice, rows_of
from auditspec.consistency.texts import check_texts
from auditspec.errors import EvidenceError
from auditspec.spec import where
from auditspec.spec.models import Behavior
from auditspec.spec.suggest import did_you_mean
from auditspec.spec.tree import Location

if TYPE_CHECKING:
    import pandas as pd


def check_data(inquiry: Inquiry) -> None:
    """Tables are tables, columns are there, slices have rows, labels are classes, classes exist."""
    _check_kinds(inquiry)
    _check_columns(inquiry)
    for index, behavior in enumerate(inquiry.spec.behaviors):
        if inquiry.usable(behavior.data) and inquiry.is_table(behavior.data):
            rows = check_slice(inquiry, index, behavior)
            if rows is not None:
                _warn_of_skill(inquiry, index, behavior, *rows)
                _check_statistic(inquiry, index, behavior)
                _check_scores(inquiry, behavior)
                check_texts(inquiry, index, behavior)
        _warn_of_scale(inquiry, index, behavior)
    if inquiry.spec.model.outputs == "values":
        _check_true_values(inquiry)
    else:
        _check_classes(inquiry, dict(_label_ranges(inquiry)))
    _check_same_labels(inquiry)
    digests = {name: e.found for name, e in inquiry.evidence.items() if inquiry.usable(name)}
    inquiry.warnings += overlaps(inquiry.loaded, digests)


# --- kinds and columns -------------------------------------------------------------------------


def _check_kinds(inquiry: Inquiry) -> None:
    tables = ", ".join(n for n in inquiry.evidence if inquiry.is_table(n)) or "none"
    for index, behavior in enumerate(inquiry.spec.behaviors):
        if inquiry.usable(behavior.data) and not inquiry.is_table(behavior.data):
            path = inquiry.spec.artifacts[behavior.data].path
            message = f"{path} is no table of examples (.parquet, .csv)"
            inquiry.fault("AS036", message, ("behaviors", index, "data"), f"tables: {tables}")
    for s, stage in enumerate(inquiry.spec.stages):
        named: list[tuple[Location, str]] = [
            (("stages", s, "data", d), name) for d, name in enumerate(stage.data)
        ]
        if stage.reference is not None:
            named.append((("stages", s, "reference"), stage.reference))
        for location, name in named:
            if inquiry.usable(name) and inquiry.is_weights(name):
                message = f"artifact {name!r} is no data to train on"
                inquiry.fault("AS036", message, location, f"tables: {tables}")
    for name, artifact in inquiry.spec.artifacts.items():
        if artifact.label is not None and inquiry.usable(name) and not inquiry.is_table(name):
            message = f"{artifact.path} is no table, and has no column {artifact.label!r}"
            inquiry.fault("AS036", message, ("artifacts", name, "label"), "remove label")


def _check_scores(inquiry: Inquiry, behavior: Behavior) -> None:
    """Tables of scores that were made elsewhere are such tables, of this behaviour's examples."""
    for name in behavior.metric.artifacts.values() if behavior.metric.elsewhere else ():
        if not inquiry.usable(name):
            continue
        # only here: whoever has no such table needs no torch
        from auditspec.behaviors.bound import bind
        from auditspec.behaviors.score_table import ScoreTable

        try:
            data = Dataset.open(inquiry.path(behavior.data), behavior.data)
            ScoreTable.read(Dataset.open(inquiry.path(name), name), bind(behavior, data, None))
        except EvidenceError as error:
            inquiry.defect("AS042", name, error.message, error.remedy)


def _check_columns(inquiry: Inquiry) -> None:
    for name, column, location in _columns_read(inquiry):
        held = inquiry.columns(name)
        if held is not None and column not in held:
            path = inquiry.spec.artifacts[name].path
            hint = did_you_mean(column, held, "columns")
            problem = inquiry.loaded.problem(
                "AS031", f"{path} has no column {column!r}", location, hint=hint
            )
            inquiry.faults.append(problem)  # a `where` may name several


def _columns_read(inquiry: Inquiry) -> Iterator[tuple[str, str, Location]]:
    for name, artifact in inquiry.spec.artifacts.items():
        if artifact.label is not None:
            yield name, artifact.label, ("artifacts", name, "label")
    for index, behavior in enumerate(inquiry.spec.behaviors):
        if behavior.where is not None:
            for column in sorted(where.columns(where.parse(behavior.where))):
                yield behavior.data, column, ("behaviors", index, "where")
        for part in ("metric", "statistic"):
            for column, option in getattr(behavior, part).columns.items():
                yield behavior.data, column, ("behaviors", index, part, option)


def _check_statistic(inquiry: Inquiry, index: int, behavior: Behavior) -> None:
    """The statistic is defined on the slice: groups are there, and large enough."""
    statistic = cast(Statistic, behavior.statistic)
    columns = [*statistic.columns]
    found = rows_of(inquiry, behavior, columns) if columns else None
    if found is not None:
        frame, rows = found
        told = statistic.misfit({name: frame[name].to_numpy()[rows] for name in columns})
        if told is not None:
            place: Location = ("behaviors", index, "statistic", told.option)
            inquiry.fault("AS056", told.reason, place, told.remedy)


# --- labels ------------------------------------------------------------------------------------


def _label_ranges(inquiry: Inquiry) -> Iterator[tuple[str, int]]:
    """The largest class of each table that has a label; faults for columns of anything else."""
    for name, column in inquiry.labelled():
        frame = inquiry.frame(name, [column])
        if frame is None or not len(frame):
            continue
        values = frame[column]
        if wrong := _no_classes(values):
            hint = "store the true classes as whole numbers from 0, one in every row"
            message = f"column {column!r} of {inquiry.spec.artifacts[name].path} {wrong}"
            inquiry.fault("AS034", message, ("artifacts", name, "label"), hint)
        else:
            yield name, int(values.max())


def _check_true_values(inquiry: Inquiry) -> None:
    """Where the model's outputs are values, labels are numbers."""
    import numpy as np

    for name, column in inquiry.labelled():
        frame = inquiry.frame(name, [column])
        if frame is None or not len(frame):
            continue
        values = frame[column]
        numbers = values.dtype.kind in "iuf"
        lacking = int((~np.isfinite(values)).sum()) if numbers else 0
        if not numbers or lacking:
            path = inquiry.spec.artifacts[name].path
            wrong = f"has no number in {lacking} of {len(values)} rows"
            wrong = wrong if numbers else f"does not hold numbers: its values are {_kind(values)}"
            hint = "store the true value of every row as a number"
            message = f"column {column!r} of {path} {wrong}"
            inquiry.fault("AS034", message, ("artifacts", name, "label"), hint)


def _no_classes(values: pd.Series[Any]) -> str:
    """Why a column does not hold classes; empty where it does."""
    import numpy as np

    missing = int(values.isna().sum())
    if missing:
        return f"has no class in {missing} of {len(values)} rows"
    if not np.issubdtype(values.to_numpy().dtype, np.integer):
        return f"does not hold classes: its values are {_kind(values)}"
    if values.min() < 0:
        return f"does not hold classes: its smallest value is {values.min()}"
    return ""


def _kind(values: pd.Series[Any]) -> str:
    kind = str(values.dtype)
    if kind.startswith("float"):
        whole = bool((values == values.round()).all())
        return f"{kind}, though whole numbers" if whole else f"{kind}"
    return {"bool": "truth values", "object": "text", "str": "text"}.get(kind, kind)


def _check_same_labels(inquiry: Inquiry) -> None:
    """Tables of the same columns have the same column of true classes.

    One that no other of them has is wrong; of two tables that differ, the one that is evaluated on.
    """
    labels = dict(inquiry.labelled())
    evaluated = {behavior.data for behavior in inquiry.spec.behaviors}
    for name, column in labels.items():
        others = {
            n: label
            for n, label in labels.items()
            if n != name and inquiry.columns(n) == inquiry.columns(name)
        }
        if not others or column in others.values():
            continue
        if len(others) == 1 and name not in evaluated and set(others) <= evaluated:
            continue
        meant = max(set(others.values()), key=list(others.values()).count)
        message = f"{column!r} is the label here, and {meant!r} in {', '.join(others)}"
        hint = f"did you mean {meant!r}?"
        inquiry.fault("AS034", message, ("artifacts", name, "label"), hint)


# --- classes -----------------------------------------------------------------------------------


def _check_classes(inquiry: Inquiry, ranges: dict[str, int]) -> None:
    """Labels and metrics name classes that the model has, as far as its last layer shows them."""
    outputs = _outputs(inquiry)
    wide = _widths(inquiry)
    sound: dict[str, int] = {}
    for name, largest in ranges.items():
        if outputs is not None and largest >= outputs and largest + 1 not in wide:
            column = inquiry.spec.artifacts[name].label
            message = (
                f"column {column!r} holds values up to {largest}, and the model's last layer has "
                f"{outputs} outputs"
            )
            hint = "name the column with the true class"
            inquiry.fault("AS035", message, ("artifacts", name, "label"), hint)
        else:
            sound[name] = largest
    classes = _count_classes(outputs, wide, max(sound.values(), default=-1) + 1)
    if classes is None:
        return
    for b, behavior in enumerate(inquiry.spec.behaviors):
        for key, value in behavior.metric.named_classes.items():
            if value >= classes:
                message = f"class {value} is asked for; there are classes 0 to {classes - 1}"
                hint = "classes count from 0"
                inquiry.fault("AS035", message, ("behaviors", b, "metric", key), hint)


def _count_classes(outputs: int | None, widths: frozenset[int], labelled: int) -> int | None:
    """How many classes the model may have at most; None where nothing tells.

    Where the last layer is not seen, one that is as wide as there are labelled classes is taken for it.
    """
    if outputs is not None:
        return max(outputs, labelled)
    if not widths:
        return None
    return labelled if labelled in widths else max(*widths, labelled)


def _outputs(inquiry: Inquiry) -> int | None:
    """Outputs of the record's last linear layer; None where the last parameter is of no such layer."""
    parameters = inquiry.last_parameters()
    if not parameters:
        return None
    last = parameters[-1]
    if len(last.shape) == 2:
        return last.shape[0] if last.shape[0] > 1 else None
    if len(last.shape) != 1 or len(parameters) < 2 or last.shape[0] < 2:
        return None
    layer, before = last.name.rpartition(".")[0], parameters[-2]
    is_its_weight = before.name.rpartition(".")[0] == layer and len(before.shape) == 2
    return last.shape[0] if is_its_weight and before.shape[0] == last.shape[0] else None


def _widths(inquiry: Inquiry) -> frozenset[int]:
    """Outputs of every layer of the record's last model."""
    return frozenset(p.shape[0] for p in inquiry.last_parameters() if len(p.shape) >= 2)


# --- warnings ----------------------------------------------------------------------------------


def _warn_of_skill(
    inquiry: Inquiry, index: int, behavior: Behavior, selected: int, rows: int
) -> None:
    if behavior.skill is not None or not behavior.metric.of_classes:
        return
    if behavior.where is not None and selected == rows:
        message = (
            f"the slice holds all {rows} rows, so that nothing beside it shows the model's skill"
        )
        hint = "add rows outside the slice, or name another behaviour: skill"
        inquiry.warn("AS039", message, ("behaviors", index, "where"), hint)


def _warn_of_scale(inquiry: Inquiry, index: int, behavior: Behavior) -> None:
    """A scale that nobody counts in is the only measure of what people count."""
    counted_by = behavior.metric.counted_by
    counted = any(
        (other.data, other.where) == (behavior.data, behavior.where)
        and other.metric.unit == "share"
        for other in inquiry.spec.behaviors
    )
    if counted_by and not counted:
        message = (
            f"{behavior.metric.name!r} in {behavior.metric.unit} is the only measure of "
            f"{behavior.id!r}, and readers count examples"
        )
        hint = f"add a behaviour on the same rows that counts: {counted_by} (docs/choosing.md)"
        inquiry.warn("AS058", message, ("behaviors", index, "metric", "name"), hint)
