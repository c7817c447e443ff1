"""The switches of rounding: noted in the header, set for a re-run, put back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import SGD3, train

from auditspec.errors import RecordError
from auditspec.record.numerics import numerics, numerics_now


@pytest.fixture(autouse=True)
def switches_put_back():  # type: ignore[no-untyped-def]
    before = torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32 = before


def test_the_header_notes_the_switches(tmp_path: Path) -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    noted = train(tmp_path, SGD3).trajectory.header.numerics
    assert noted["cudnn.benchmark"] is True
    assert noted["cuda.matmul.allow_tf32"] is True
    assert noted["cudnn.deterministic"] is torch.backends.cudnn.deterministic
    torch.backends.cudnn.benchmark = False
    with pytest.raises(RecordError, match="another numerics"):
        train(tmp_path, SGD3, resume=True)


def test_a_re_run_sets_the_recorded_switches_and_puts_them_back() -> None:
    before = numerics_now()
    recorded = {name: not on for name, on in before.items()}
    with numerics(recorded | {"nothing.of.torch": True}):
        assert numerics_now() == recorded
    assert numerics_now() == before
    with pytest.raises(ZeroDivisionError), numerics(recorded):
        raise ZeroDivisionError
    assert numerics_now() == before


def test_torchs_newer_switch_can_be_read_too() -> None:
    """In a process of its own: torch does not let a program use both kinds."""
    code = (
        "import torch; torch.backends.cuda.matmul.fp32_precision = 'tf32';"
        "from auditspec.record.numerics import numerics_now;"
        "assert numerics_now()['cuda.matmul.allow_tf32'] is True;"
        "torch.backends.cuda.matmul.fp32_precision = 'ieee';"
        "assert numerics_now()['cuda.matmul.allow_tf32'] is False"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
