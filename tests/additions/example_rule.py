"""Normalised momentum, as the training code's own optimizer class makes it."""

from torch import Tensor

from auditspec.engine.optimizers.interface import Options, Slots, UpdateRule


class Heavy(UpdateRule):
    """m' = mu m + (1 - mu) g, theta' = theta - lr m'."""

    name = "Heavy"
    elementwise = True
    counts_steps = False

    def slots(self, h: Options) -> tuple[str, ...]:
        return ("average",)

    def step(
        self, theta: Tensor, s: Slots, g: Tensor, count: int, h: Options
    ) -> tuple[Tensor, Slots]:
        average = h["mu"] * s["average"] + (1 - h["mu"]) * g
        return theta - h["lr"] * average, {"average": average}
