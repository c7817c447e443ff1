"""Where and how the numbers are computed: device, threads, deterministic kernels."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from auditspec.errors import EstimationError
from auditspec.team import local_rank


def resolve_device(wanted: str) -> torch.device:
    """`auto` takes CUDA where there is one; of several processes on a machine each its own, where no number is asked for.

    Raises:
        EstimationError: if the device asked for is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    local = local_rank()
    if device == torch.device("cuda") and local is not None:
        device = torch.device("cuda", local % max(torch.cuda.device_count(), 1))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EstimationError(
            f"device {wanted} is not there ({torch.cuda.device_count()} CUDA devices found)",
            "set estimator.device to auto or cpu",
        )
    return device


def device_name(device: torch.device) -> str:
    """The kind of device in words; which of several is no matter."""
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    return str(device)


@contextmanager
def execution(threads: int, *, deterministic: bool) -> Iterator[None]:
    """Set torch's threads and determinism for a while, and put them back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    set_deterministic(deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        set_deterministic(before[1])


def set_deterministic(on: bool) -> None:
    """As `torch.use_deterministic_algorithms`, without importing torch's compiler, which takes two seconds.

    The compiler takes its own switch from the environment when somebody imports it.
    """
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(on)
        return
    os.environ["TORCHINDUCTOR_DETERMINISTIC"] = str(int(on))
    torch.set_deterministic_debug_mode("error" if on else "default")
