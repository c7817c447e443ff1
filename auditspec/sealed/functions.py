"""The audited code's functions, as the audit calls them: every call is a question to their process."""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.remote import RemoteFunction
from auditspec.record.state import State, restore
from auditspec.sealed.ahead import Loads
from auditspec.sealed.ambience import modes
from auditspec.sealed.client import Client
from auditspec.sealed.codec import Many
from auditspec.sealed.derivatives import Call, RemoteBatched, differentiable
from auditspec.sealed.forms import checked
from auditspec.sealed.optimizers import optimizer_class
from auditspec.sealed.shadow import STATE, Shadow, shadow_of, tensors_of


class Code:
    """The audited code in its process.

    Args:
        client: the process, which has the code already.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._known: weakref.WeakKeyDictionary[Shadow, dict[int, Tensor]] = (
            weakref.WeakKeyDictionary()
        )
        self.expected: dict[int, float] = {}
        """The cotangent of the last gradient of each function's scalar: the next one's, mostly."""
        self.loads = Loads()
        self._datasets: weakref.WeakKeyDictionary[Dataset, str] = weakref.WeakKeyDictionary()

    def load(self, entry: str) -> Any:
        """A callable of the code; an optimizer class as a class of this process.

        Raises:
            EvidenceError: if the code lacks it, or cannot be imported.
        """
        answer = self.ask("load", entry=entry)
        with checked(entry):
            function = Function(self, int(answer["number"]), entry)
            if answer["optimizer"] is None:
                return function
            return optimizer_class(function, answer["optimizer"])

    def ask(self, kind: str, **question: Any) -> Any:
        """Ask the process; models, functions, and data sets are handed over by their numbers."""
        return self.client.ask(kind, question, self._special)

    def _special(self, value: Any) -> list[Any] | None:
        if isinstance(value, Shadow):
            return ["model", value.number]
        if isinstance(value, Dataset):
            return ["dataset", self._datasets[value]]
        return None

    # --- data sets --------------------------------------------------------------------------------

    def hand_over(self, values: Iterable[Any]) -> None:
        """Tell the process of data sets that it has not seen."""
        for value in values:
            if isinstance(value, Dataset) and value not in self._datasets:
                self._tell(value)

    def _tell(self, dataset: Dataset) -> None:
        original, rows = dataset.original, None
        if original is not None:
            self.hand_over([original])
            if dataset.frame is not original.frame:
                rows = _stream(dataset.frame)
        key = f"d{len(self._datasets)}"
        self.ask(
            "dataset",
            key=key,
            name=dataset.name,
            path=str(dataset.path.absolute()),
            digest=dataset.digest,
            original=None if original is None else self._datasets[original],
            rows=rows,
        )
        self._datasets[dataset] = key

    # --- models -----------------------------------------------------------------------------------

    def state_of(self, model: Shadow) -> dict[str, Any]:
        """What the process has to know of a model before it computes with it."""
        if model.tensors is None:
            parameters, buffers = tensors_of(model)
            model.tensors = parameters, bool(buffers)
        parameters, buffered = model.tensors
        return {
            "number": model.number,
            "training": model.training,
            "device": parameters[0].device if parameters else self.client.device,
            "trains": "".join("01"[p.requires_grad] for p in parameters),
            "parameters": Many(parameters),
            "buffers": Many(tensors_of(model)[1] if buffered else ()),
        }

    def model(self, described: Sequence[Any], earlier: Shadow | None) -> Shadow:
        """The shadow of a model that a function gave.

        Args:
            described: its number, description, and tensors.
            earlier: the model that it was before; tensors that survived are the same objects.
        """
        shadow, tensors = self._described(described, earlier)
        self._known[shadow] = tensors
        weakref.finalize(shadow, self.client.release, shadow.number)
        return shadow

    def _described(
        self, described: Sequence[Any], earlier: Shadow | None
    ) -> tuple[Shadow, dict[int, Tensor]]:
        number, description, values = described
        known = self._known.get(earlier, {}) if earlier is not None else {}
        return shadow_of(int(number), description, values, known)

    def became(self, model: Shadow, news: Mapping[str, Any]) -> None:
        """Take over what a call made of a model that it was given."""
        if "description" in news:
            other, tensors = self._described(news["description"], model)
            if other.number != model.number:
                raise ValueError("a model became another")
            for part in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
                setattr(model, part, getattr(other, part))
            self._known[model] = tensors
            model.tensors = None
            return
        buffers = tensors_of(model)[1] if news["buffers"] else []
        for buffer, value in zip(buffers, news["buffers"], strict=True):
            if buffer.shape != value.shape or buffer.dtype != value.dtype:
                raise ValueError("a buffer changed its form")
            with torch.no_grad():
                buffer.copy_(value)


@dataclass(frozen=True)
class Function(RemoteFunction):
    """A function of the audited code, by its number in the process."""

    code: Code
    number: int
    entry: str
    widening: tuple[torch.dtype, torch.dtype] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call it there."""
        if len(arguments) == 2 and isinstance(arguments[0], Dataset) and _are_ids(arguments[1]):
            return self.code.loads.batch(self, *arguments)
        return self.called(*arguments)

    def expect(self, batches: Iterable[tuple[Dataset, Sequence[int]]]) -> None:
        """Told in what order batches will mostly be asked for."""
        given = [*batches]
        self.code.hand_over(dataset for dataset, _ in given)
        self.code.loads.expect(self, given)

    def called(self, *arguments: Any) -> Any:
        """Call it there now, by a question of its own."""
        value, _ = self._called(arguments, output=False)
        return value

    def outputs(
        self, model: nn.Module, states: Sequence[State], batches: Sequence[Any]
    ) -> list[list[Any]]:
        """Its outputs on several batches, at several states of the model."""
        given = cast(Shadow, model)
        put = [self._put(given, state, alone=len(states) == 1) for state in states]
        answer = self.code.ask(
            "outputs",
            function=self.number,
            models=[put[-1] | {kind: _stacked([s[kind] for s in put]) for kind in STATE}],
            states=len(put),
            modes=modes(),
            batches=list(batches),
            widening=self.widening,
        )
        with checked(self.entry):
            self.code.became(given, answer["models"][-1])
            values = [[_placed(value, [given]) for value in at] for at in answer["outputs"]]
            if [len(at) for at in values] != [len(batches)] * len(states):
                raise ValueError("outputs are missing")
            return values

    def _put(self, model: Shadow, state: State, *, alone: bool) -> dict[str, Any]:
        """What the process has to know of a model at a state, whatever it is put to next, if it is not `alone`."""
        restore(state, model)
        told = self.code.state_of(model)
        if alone:
            return told
        return told | {kind: [t.detach().clone() for t in told[kind]] for kind in STATE}

    def widened(self, drawn: torch.dtype, dtype: torch.dtype) -> Function:
        """The same under `Widening`."""
        return replace(self, widening=(drawn, dtype))

    def through_output(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the model's output, and what was added to it."""
        (loss, z), e = self._called((model, batch), output=True)
        return loss, z, e

    def batched(
        self, model: nn.Module, trained: Sequence[str], buffers: Sequence[str]
    ) -> RemoteBatched:
        """The batched gradient of an objective."""
        number = self.code.ask(
            "batched_new",
            function=self.number,
            model=model,
            trained=list(trained),
            buffers=list(buffers),
            widening=self.widening,
        )
        return RemoteBatched(self, model, list(trained), int(number))

    def named_files(self, folders: Iterable[Path]) -> set[Path]:
        """Files that it names."""
        found = self.code.ask("named_files", function=self.number, folders=list(map(str, folders)))
        with checked(self.entry):
            return {Path(str(path)) for path in found}

    def unregistered(self, model: nn.Module) -> dict[str, Tensor]:
        """What it and a model hold beside parameters and buffers."""
        found = self.code.ask("unregistered", function=self.number, model=model)
        with checked(self.entry):
            return {str(n): t for n, t in found.items() if isinstance(t, Tensor)}

    def _called(self, arguments: Sequence[Any], *, output: bool) -> tuple[Any, Any]:
        code = self.code
        code.hand_over(arguments)
        expected = None if output else code.expected.get(self.number)
        models = [a for a in arguments if isinstance(a, Shadow)]
        answer = code.ask(
            "call",
            function=self.number,
            arguments=list(arguments),
            models=[code.state_of(m) for m in models],
            modes=modes(),
            output=output,
            widening=self.widening,
            expected=expected,
        )
        with checked(self.entry):
            for model, news in zip(models, answer["models"], strict=True):
                code.became(model, news)
            value = answer["value"]
            if isinstance(value, tuple) and len(value) == 2 and value[0] == "model":
                return self._given(value[1], models, answer["description"]), None
            outputs = [_placed(v, models) for v in (value if output else [value])]
            e = torch.zeros_like(outputs[1], requires_grad=True) if output else None
            if "call" in answer:
                call = Call(code, int(answer["call"]), self.number)
                if "gradients" in answer:
                    call.ahead = expected, answer["gradients"]
                inputs: list[Tensor] = [p for p in models[0].parameters() if p.requires_grad]
                inputs += [e] if e is not None else []
                outputs = differentiable(call, outputs, inputs)
            return (outputs, e) if output else (outputs[0], None)

    def _given(self, number: int, models: Sequence[Shadow], described: Sequence[Any]) -> Shadow:
        """The model that a function gave: one that it was given, or another."""
        for model in models:
            if model.number == number:
                return model
        return self.code.model(described, models[0] if models else None)


def _stacked(states: Sequence[Sequence[Tensor]]) -> Many:
    """The tensors of several states, each with all states in its first dimension."""
    if len(states) == 1:
        return Many(tensor[None] for tensor in states[0])
    return Many(map(torch.stack, zip(*states, strict=True)))


def _are_ids(value: Any) -> bool:
    return type(value) is list and all(type(n) is int for n in value)


def _placed(value: Any, models: Sequence[Shadow]) -> Any:
    """A tensor on the device of the model that it was computed by."""
    if not isinstance(value, Tensor) or not models:
        return value
    parameter = next(models[0].parameters(), None)
    return value if parameter is None else value.to(parameter.device)


def _stream(frame: Any) -> Tensor:
    """A table as an Arrow stream."""
    import pyarrow as pa

    table = pa.Table.from_pandas(frame)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)
