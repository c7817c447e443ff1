"""Optimizers and derivatives of torch without torch's compiler.

Every step of an optimizer tells the compiler to leave it alone, and a derivative compares shapes as the compiler would; torch loads
the whole of it for that: more than a second, for nothing where nothing is compiled.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch

COMPILER, SHAPES = "torch._dynamo", "torch.fx.experimental.symbolic_shapes"
_LEFT_ALONE = "__dynamo_disable"
"""Where torch keeps, with a function, what the compiler made of it."""


@contextmanager
def uncompiled() -> Iterator[None]:
    """What is done within loads no compiler, unless it asks for more than this; nothing of this stays behind."""
    with ExitStack() as stack:
        for kind in (_NoCompiler, _NoSymbols):
            if kind.stands_for not in sys.modules:
                stack.callback(kind().enter().leave)
        yield


def pulled_back(outputs: Any, inputs: Any, grad_outputs: Any, **options: Any) -> Any:
    """`torch.autograd.grad` of outputs that are weighed by `grad_outputs`."""
    with uncompiled():
        return torch.autograd.grad(outputs, inputs, grad_outputs=grad_outputs, **options)


class _Absent(ModuleType):
    """Stands for a module: has what is asked of it all the time, and gives way to the real one for all else."""

    stands_for: str
    is_package: bool = False

    def __init__(self) -> None:
        super().__init__(self.stands_for)
        package, _, self._name = self.stands_for.rpartition(".")
        self._package = importlib.import_module(package)

    def enter(self) -> _Absent:
        """Be what is imported by the name."""
        sys.modules[self.stands_for] = self
        setattr(self._package, self._name, self)
        return self

    def leave(self) -> None:
        """Take everything back."""
        if sys.modules.get(self.stands_for) is self:
            del sys.modules[self.stands_for]
        if vars(self._package).get(self._name) is self:
            delattr(self._package, self._name)

    def __getattr__(self, name: str) -> Any:
        if name == "__path__" and not self.is_package:  # asked before every `from … import`
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(self.stands_for), name)


class _NoCompiler(_Absent):
    stands_for = COMPILER
    is_package = True

    def __init__(self) -> None:
        super().__init__()
        self._told: list[Callable[..., Any]] = []

    def graph_break(self, msg: str = "") -> None:
        """Outside a compiled function there is nothing to break."""

    def disable(self, function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """What nobody compiles is left alone as it is."""
        self._told.append(function)
        return function

    def leave(self) -> None:
        for function in self._told:
            vars(function).pop(_LEFT_ALONE, None)
        super().leave()


class _NoSymbols(_Absent):
    stands_for = SHAPES

    def sym_eq(self, a: Any, b: Any) -> bool:
        """Sizes that are numbers are compared as numbers."""
        return bool(a == b)

    def expect_true(self, a: Any, skip: int = 0) -> bool:
        """What is known is not expected."""
        return bool(a)
