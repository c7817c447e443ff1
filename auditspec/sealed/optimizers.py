"""Optimizer classes of the audited code: their steps are made in its process."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from auditspec.record.uncompiled import uncompiled
from auditspec.sealed.forms import checked, like, present

if TYPE_CHECKING:
    from auditspec.sealed.functions import Function


class _RemoteOptimizer(Optimizer):
    """An optimizer class of the audited code: its steps are made there."""

    function: Function

    def __init__(self, groups: Any, **options: Any) -> None:
        groups = [dict(g, params=list(g["params"])) for g in groups]
        handed = [{**g, "params": [p.detach() for p in g["params"]]} for g in groups]
        ask, entry = self.function.code.ask, self.function.entry
        answer = ask("optimizer_new", function=self.function.number, groups=handed, options=options)
        with checked(entry):
            self._number = int(answer["number"])
            completed = [
                {**dict(own), "params": g["params"]}
                for g, own in zip(groups, answer["groups"], strict=True)
            ]
            with uncompiled():
                super().__init__(completed, dict(answer["defaults"]))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step, made by the code."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        own = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        answer = self.function.code.ask(
            "optimizer_step",
            number=self._number,
            groups=own,
            values=[[p.detach(), p.grad] for p in parameters],
            state=[dict(self.state.get(p, {})) for p in parameters],
        )
        with checked(self.function.entry), torch.no_grad():
            for parameter, value, slots in zip(
                parameters, answer["values"], answer["state"], strict=True
            ):
                parameter.copy_(present(like(value, parameter)))
                if slots:
                    self.state[parameter] = dict(slots)
            for group, options in zip(self.param_groups, answer["groups"], strict=True):
                group.update({k: v for k, v in options.items() if k != "params"})


def optimizer_class(function: Function, arguments: Sequence[Any]) -> type[Optimizer]:
    """A class of this process by the name of one of the code."""
    kind = inspect.Parameter.KEYWORD_ONLY
    signature = [inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY)]
    signature += [
        inspect.Parameter(str(name), kind, default=inspect.Parameter.empty if needed else None)
        for name, needed in arguments
        if str(name).isidentifier()
    ]
    name = function.entry.partition(":")[2]
    body = {"function": function, "__signature__": inspect.Signature(signature)}
    return type(name, (_RemoteOptimizer,), body)
