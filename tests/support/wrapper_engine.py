"""An engine that counts what another is asked: one class."""

from __future__ import annotations

from collections import Counter
from typing import Any

from auditspec.engine.interface import StepGradient
from auditspec.engine.wrapper import EngineWrapper


class Counting(EngineWrapper):
    """Counts the gradients, updates, and products by name."""

    name = "counting"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked: Counter[str] = Counter()

    def gradient(self, *args: Any, **options: Any) -> StepGradient:
        self.asked["gradient"] += 1
        return super().gradient(*args, **options)

    def update(self, step_gradient: StepGradient) -> None:
        self.asked["update"] += 1
        super().update(step_gradient)

    def hessian_vector(self, *args: Any) -> Any:
        self.asked["hessian_vector"] += 1
        return super().hessian_vector(*args)
