"""torch's switches that change how products are rounded: TF32, reduced sums, cuDNN's choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_MATMUL: Any = torch.backends.cuda.matmul
_CUDNN: Any = torch.backends.cudnn
_SWITCHES: dict[str, tuple[Any, str]] = {
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
    return {name: _read(*place) for name, place in _SWITCHES.items()}


@contextmanager
def numerics(recorded: Mapping[str, bool]) -> Iterator[None]:
    """Set the switches that are known as they were recorded, and put them back afterwards."""
    before = numerics_now()
    changed = [n for n, on in recorded.items() if n in before and before[n] is not on]
    for name in changed:
        setattr(*_SWITCHES[name], recorded[name])
    try:
        yield
    finally:
        for name in changed:
            setattr(*_SWITCHES[name], before[name])


def _read(owner: Any, name: str) -> bool:
    try:
        return bool(getattr(owner, name))
    except RuntimeError:  # torch refuses to tell allow_tf32 once its successor was set
        return bool(owner.fp32_precision == "tf32")
