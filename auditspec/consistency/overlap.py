"""Evaluation data that a stage was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from auditspec.errors import Problem
from auditspec.spec.source import LoadedSpec


def overlaps(loaded: LoadedSpec, digests: Mapping[str, str | None]) -> Iterator[Problem]:
    """A warning for each behaviour whose data is, by name or by digest, that of a stage.

    Args:
        loaded: the spec.
        digests: what was measured, by artifact name; None where there is nothing sound.
    """
    for b, behavior in enumerate(loaded.spec.behaviors):
        stages = []
        for stage in loaded.spec.stages:
            read = {*stage.data, *([stage.reference] if stage.reference else [])}
            held = {digests.get(name) for name in read} - {None}
            if behavior.data in read or digests.get(behavior.data) in held:
                stages.append(stage.id)
        if stages:
            message = f"evaluation data {behavior.data!r} is training data of {', '.join(stages)}"
            hint = "evaluate on rows that no stage has seen"
            yield loaded.problem("AS038", message, ("behaviors", b, "data"), hint=hint)
