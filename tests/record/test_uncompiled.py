"""Optimizers make steps, and derivatives are taken, without torch's compiler, which is there for whoever asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys

import torch
from auditspec.record.describe_optimizer import build
from auditspec.record.uncompiled import pulled_back, uncompiled

for name in ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Muon"):
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = build(getattr(torch.optim, name), [{"params": [parameter], "lr": 0.1}])
    parameter.grad = torch.ones(3, 2)
    with uncompiled():
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(parameter, torch.ones(3, 2)) and parameter.grad is None
x = torch.ones(2, 3, requires_grad=True)
(slope,) = pulled_back(x**3, x, torch.full((2, 3), 2.0))
assert torch.equal(slope, torch.full((2, 3), 6.0))
try:
    pulled_back(x**3, x, torch.ones(3))
except RuntimeError as error:
    assert "Mismatch in shape" in str(error)
else:
    raise AssertionError("a wrong shape passed")
assert "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch)
assert not any("sympy" in name or "symbolic_shapes" in name for name in sys.modules)
function = torch.optim.Optimizer.add_param_group.__wrapped__
assert "__dynamo_disable" not in vars(function)
"""
ASKED = """
with uncompiled():
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    assert compiled(torch.ones(1)).item() == 2
    optimizer.step()
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.__file__
optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, 2))]})
assert "__dynamo_disable" in vars(function)
with uncompiled():
    assert torch._dynamo.__file__
from torch.fx.experimental.symbolic_shapes import sym_eq
(slope,) = pulled_back(x**3, x, torch.full((2, 3), 2.0))
assert torch.equal(slope, torch.full((2, 3), 6.0))
"""


@pytest.mark.parametrize("program", [PROGRAM, PROGRAM + ASKED], ids=["not asked for", "asked for"])
def test_the_compiler_is_loaded_for_whoever_asks(program: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
