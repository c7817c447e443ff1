"""An engine that bounds how many gradients an audit may compute."""

from typing import Any

from auditspec.engine import EngineWrapper
from auditspec.engine.interface import StepGradient
from auditspec.errors import EstimationError

MOST = 100_000


class Bounded(EngineWrapper):
    """Refuses to go on beyond `MOST` gradients."""

    name = "bounded"

    def gradient(self, *args: Any, **options: Any) -> StepGradient:
        if self.gradients > MOST:
            raise EstimationError(f"more than {MOST} gradients were asked for")
        return super().gradient(*args, **options)
