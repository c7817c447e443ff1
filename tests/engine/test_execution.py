"""Devices, threads, and determinism."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from auditspec.engine.execution import device_name, execution, resolve_device
from auditspec.errors import EstimationError


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(EstimationError, match="cuda:99 is not there"):
        resolve_device("cuda:99")


def test_threads_and_determinism_are_set_and_put_back() -> None:
    before = torch.get_num_threads()
    with execution(before + 1, deterministic=True):
        assert torch.get_num_threads() == before + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("compiler", ["before", "after"])
def test_the_compiler_knows_whenever_it_is_imported(compiler: str) -> None:
    """And is not imported for it."""
    late = "assert 'torch._inductor' not in sys.modules; import torch._inductor.config"
    script = f"""
import sys, torch
from auditspec.engine.execution import execution
{"import torch._inductor.config" if compiler == "before" else ""}
with execution(1, deterministic=True):
    assert torch.are_deterministic_algorithms_enabled()
    {late if compiler == "after" else "pass"}
    assert torch._inductor.config.deterministic
"""
    subprocess.run([sys.executable, "-c", script], check=True)
