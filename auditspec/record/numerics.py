"""torch's switches that change how results are rounded: TF32, reduced sums, kernels to choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_MATMUL: Any = torch.backends.cuda.matmul
_CUDNN: Any = torch.backends.cudnn
SWITCHES: dict[str, tuple[Any, str]] = {
    "cuda.matmul.allow_tf32": (_MATMUL, "allow_tf32"),
    "cuda.matmul.allow_bf16_reduced_precision_reduction": (
        _MATMUL,
        "allow_bf16_reduced_precision_reduction",
    ),
    "cudnn.allow_tf32": (_CUDNN, "allow_tf32"),
    "cudnn.benchmark": (_CUDNN, "benchmark"),
    "cudnn.deterministic": (_CUDNN, "deterministic"),
}


def numerics_now() -> dict[str, bool]:
    """The switches as they stand, by their path in torch.backends."""
    return {name: _read(*place) for name, place in SWITCHES.items()}


@contextmanager
def numerics(recorded: Mapping[str, bool]) -> Iterator[None]:
    """Set the switches that are known as they were recorded, and put them back afterwards."""
    before = numerics_now()
    changed = [n for n, on in recorded.items() if n in before and before[n] is not on]
    for name in changed:
        setattr(*SWITCHES[name], recorded[name])
    try:
        yield
    finally:
        for name in changed:
            setattr(*SWITCHES[name], before[name])


def twice_differentiable() -> AbstractContextManager[None]:
    """Compute attention from operations that have second derivatives, as torch's fused kernels have not.

    To be entered around a forward pass whose gradient is to be differentiated once more. Its results
    differ from the fused kernels' by rounding; on CUDA, dropout inside attention draws other numbers
    besides.
    """
    kernel: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return kernel


def _read(owner: Any, name: str) -> bool:
    try:
        return bool(getattr(owner, name))
    except RuntimeError:  # torch refuses to tell allow_tf32 once its successor was set
        return bool(owner.fp32_precision == "tf32")
