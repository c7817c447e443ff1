"""Clean data that stands in for a stage's own: of the same form, and not the same."""

from __future__ import annotations

from auditspec.consistency.inquiry import Inquiry
from auditspec.spec.tree import Location


def check_references(inquiry: Inquiry) -> None:
    """The reference of every stage has the columns of the stage's data, and other bytes."""
    for index, stage in enumerate(inquiry.spec.stages):
        if stage.reference is None or not inquiry.usable(stage.reference):
            continue
        location: Location = ("stages", index, "reference")
        columns = inquiry.columns(stage.reference)
        for name in stage.data:
            if not inquiry.usable(name):
                continue
            if inquiry.evidence[name].found == inquiry.evidence[stage.reference].found:
                message = f"{stage.reference!r} and the stage's {name!r} are the same data"
                hint = "name clean data to train on instead"
                inquiry.fault("AS037", message, location, hint)
            held = inquiry.columns(name)
            if columns is None or held is None or columns == held:
                continue
            odd = sorted(set(columns) ^ set(held))
            differ = f"in {', '.join(odd[:5])}" if odd else "in their order"
            message = f"the columns of {stage.reference!r} and the stage's {name!r} differ {differ}"
            inquiry.fault("AS037", message, location, "load_batch reads both in the same way")
