"""The audited code's functions, as the audit calls them: every call is a question to their process.

A call under `torch.enable_grad` can be differentiated twice. Its gradients are asked for when they are needed:

    g_i = sum_o  c_o  d out_o / d theta_i              a question about the call (`_Outputs`)
    sum_i v_i d g_i / d (c, theta)                     a question about those gradients (`_Gradients`)
"""

from __future__ import annotations

import inspect
import io
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.remote import RemoteFunction
from auditspec.engine.batched_gradient import Batched
from auditspec.errors import EstimationError
from auditspec.sealed.ambience import modes
from auditspec.sealed.client import Client
from auditspec.sealed.codec import Many
from auditspec.sealed.shadow import Shadow, shadow_of


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
        self._datasets: weakref.WeakKeyDictionary[Dataset, str] = weakref.WeakKeyDictionary()

    def load(self, entry: str) -> Any:
        """A callable of the code; an optimizer class as a class of this process.

        Raises:
            EvidenceError: if the code lacks it, or cannot be imported.
        """
        answer = self.ask("load", entry=entry)
        with _checked(entry):
            function = Function(self, int(answer["number"]), entry)
            if answer["optimizer"] is None:
                return function
            return _optimizer_class(function, answer["optimizer"])

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
            model.tensors = list(model.parameters()), any(True for _ in model.buffers())
        parameters, buffered = model.tensors
        return {
            "number": model.number,
            "training": model.training,
            "device": parameters[0].device if parameters else self.client.device,
            "trains": [p.requires_grad for p in parameters],
            "parameters": Many(parameters),
            "buffers": Many(model.buffers() if buffered else ()),
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
        buffers = list(model.buffers()) if news["buffers"] else []
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
        value, _ = self._called(arguments, output=False)
        return value

    def outputs(self, model: nn.Module, batches: Sequence[Any]) -> list[Any]:
        """Its outputs on several batches."""
        given = cast(Shadow, model)
        answer = self.code.ask(
            "outputs",
            function=self.number,
            models=[self.code.state_of(given)],
            modes=modes(),
            batches=list(batches),
            widening=self.widening,
        )
        with _checked(self.entry):
            self.code.became(given, answer["model"])
            values = [_placed(value, [given]) for value in answer["outputs"]]
            if len(values) != len(batches):
                raise ValueError("outputs are missing")
            return values

    def widened(self, drawn: torch.dtype, dtype: torch.dtype) -> Function:
        """The same under `Widening`."""
        return replace(self, widening=(drawn, dtype))

    def through_output(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the model's output, and what was added to it."""
        (loss, z), e = self._called((model, batch), output=True)
        return loss, z, e

    def batched(self, model: nn.Module, trained: Sequence[str], buffers: Sequence[str]) -> _Batched:
        """The batched gradient of an objective."""
        number = self.code.ask(
            "batched_new",
            function=self.number,
            model=model,
            trained=list(trained),
            buffers=list(buffers),
            widening=self.widening,
        )
        return _Batched(self, model, list(trained), int(number))

    def named_files(self, folders: Iterable[Path]) -> set[Path]:
        """Files that it names."""
        found = self.code.ask("named_files", function=self.number, folders=list(map(str, folders)))
        with _checked(self.entry):
            return {Path(str(path)) for path in found}

    def unregistered(self, model: nn.Module) -> dict[str, Tensor]:
        """What it and a model hold beside parameters and buffers."""
        found = self.code.ask("unregistered", function=self.number, model=model)
        with _checked(self.entry):
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
        with _checked(self.entry):
            for model, news in zip(models, answer["models"], strict=True):
                code.became(model, news)
            value = answer["value"]
            if isinstance(value, tuple) and len(value) == 2 and value[0] == "model":
                return self._given(value[1], models, answer["description"]), None
            outputs = [_placed(v, models) for v in (value if output else [value])]
            e = torch.zeros_like(outputs[1], requires_grad=True) if output else None
            if "call" in answer:
                call = _Call(code, int(answer["call"]), self.number)
                if "gradients" in answer:
                    call.ahead = expected, answer["gradients"]
                inputs: list[Tensor] = [p for p in models[0].parameters() if p.requires_grad]
                inputs += [e] if e is not None else []
                outputs = list(_apply(_Outputs, call, len(outputs), *outputs, *inputs))
            return (outputs, e) if output else (outputs[0], None)

    def _given(self, number: int, models: Sequence[Shadow], described: Sequence[Any]) -> Shadow:
        """The model that a function gave: one that it was given, or another."""
        for model in models:
            if model.number == number:
                return model
        return self.code.model(described, models[0] if models else None)


def _placed(value: Any, models: Sequence[Shadow]) -> Any:
    """A tensor on the device of the model that it was computed by."""
    if not isinstance(value, Tensor) or not models:
        return value
    parameter = next(models[0].parameters(), None)
    return value if parameter is None else value.to(parameter.device)


# --- derivatives -------------------------------------------------------------------------------------


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


class _Call:
    """A call whose graph the process keeps as long as somebody here may ask for it."""

    def __init__(self, code: Code, number: int, function: int = 0) -> None:
        self.code = code
        self.number = number
        self.function = function
        self.ahead: tuple[float | None, list[Any]] | None = None
        """Gradients that came with the call, for a cotangent that was expected."""
        weakref.finalize(self, code.client.release, number)


class _Outputs(torch.autograd.Function):
    """What a call gave, with its derivatives by the inputs (parameters, and what was added to an output)."""

    @staticmethod
    def forward(ctx: Any, call: _Call, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs as they are."""
        ctx.call, ctx.count, ctx.inputs = call, count, tensors[count:]
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        """Gradients by the inputs."""
        mask = [c is not None for c in cotangents]
        given = [c for c in cotangents if c is not None]
        expected = ctx.call.code.expected
        if torch.is_grad_enabled():
            expected.pop(ctx.call.function, None)
            gradients = _apply(_Gradients, ctx.call, mask, *given, *ctx.inputs)
        else:
            if ctx.count == 1 and given and given[0].dim() == 0:
                expected[ctx.call.function] = float(given[0])
            gradients = _pulled(ctx.call, mask, given, ctx.inputs, create=False)[0]
        return None, None, *([None] * ctx.count), *gradients


class _Gradients(torch.autograd.Function):
    """Gradients of a call, with their derivatives by the cotangents and the inputs."""

    @staticmethod
    def forward(ctx: Any, call: _Call, mask: list[bool], *tensors: Tensor) -> Any:
        """The gradients; None for an input that the outputs do not depend on."""
        count = sum(mask)
        gradients, answer = _pulled(call, mask, tensors[:count], tensors[count:], create=True)
        ctx.pull, ctx.like = _Call(call.code, int(answer["pull"])), tensors
        ctx.set_materialize_grads(False)
        smooth = [bool(s) for s in answer["smooth"]]
        flat = [g for g, s in zip(gradients, smooth, strict=True) if g is not None and not s]
        ctx.mark_non_differentiable(*flat)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> Any:
        """Their gradients; not differentiable once more."""
        code = ctx.pull.code
        second = code.ask("second", pull=ctx.pull.number, directions=list(directions))
        with _checked("a second derivative"):
            return None, None, *(_like(s, t) for s, t in zip(second, ctx.like, strict=True))


def _pulled(
    call: _Call,
    mask: Sequence[bool],
    cotangents: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    create: bool,
) -> tuple[list[Tensor | None], Any]:
    ahead = call.ahead
    if ahead is not None and not create and float(cotangents[0]) == ahead[0]:
        with _checked("a gradient"):
            return [_like(g, t) for g, t in zip(ahead[1], inputs, strict=True)], {}
    rest = iter(cotangents)
    every = [next(rest).detach() if there else None for there in mask]
    answer = call.code.ask("pullback", call=call.number, cotangents=every, create=create)
    with _checked("a gradient"):
        gradients = [_like(g, t) for g, t in zip(answer["gradients"], inputs, strict=True)]
        return gradients, answer


def _like(value: Any, tensor: Tensor) -> Tensor | None:
    """A derivative by a tensor has the tensor's form.

    Raises:
        ValueError: if it has not.
    """
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.shape != tensor.shape or value.dtype != tensor.dtype:
        raise ValueError("a derivative of another form than what it is taken by")
    return value.to(tensor.device)


class _Batched:
    """The batched gradient of an objective of the code."""

    def __init__(self, function: Function, model: Any, trained: list[str], number: int) -> None:
        self._code, self._entry = function.code, function.entry
        self._model, self._trained, self._number = model, trained, number
        weakref.finalize(self, self._code.client.release, number)

    def __call__(
        self, theta: Mapping[str, Tensor], buffers: Mapping[str, Tensor], weight: float, batch: Any
    ) -> Batched:
        """One pass, as `BatchedGradient` says."""
        answer = self._code.ask(
            "batched",
            number=self._number,
            models=[self._code.state_of(self._model)],
            modes=modes(),
            theta={n: t.detach() for n, t in theta.items()},
            buffers=dict(buffers),
            weight=weight,
            batch=batch,
        )
        with _checked(self._entry):
            return Batched(
                {n: _like(answer["gradients"][n], theta[n]) for n in self._trained},
                {n: _present(_like(answer["buffers"][n], b)) for n, b in buffers.items()},
                bool(answer["first_use"]),
                bool(answer["overhead_bound"]),
            )


def _present(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("a buffer is missing")
    return value


# --- optimizers --------------------------------------------------------------------------------------


class _RemoteOptimizer(Optimizer):
    """An optimizer class of the audited code: its steps are made there."""

    function: Function

    def __init__(self, groups: Any, **options: Any) -> None:
        groups = [dict(g, params=list(g["params"])) for g in groups]
        handed = [{**g, "params": [p.detach() for p in g["params"]]} for g in groups]
        ask, entry = self.function.code.ask, self.function.entry
        answer = ask("optimizer_new", function=self.function.number, groups=handed, options=options)
        with _checked(entry):
            self._number = int(answer["number"])
            completed = [
                {**dict(own), "params": g["params"]}
                for g, own in zip(groups, answer["groups"], strict=True)
            ]
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
        with _checked(self.function.entry), torch.no_grad():
            for parameter, value, slots in zip(
                parameters, answer["values"], answer["state"], strict=True
            ):
                parameter.copy_(_present(_like(value, parameter)))
                if slots:
                    self.state[parameter] = dict(slots)
            for group, options in zip(self.param_groups, answer["groups"], strict=True):
                group.update({k: v for k, v in options.items() if k != "params"})


def _optimizer_class(function: Function, arguments: Sequence[Any]) -> type[Optimizer]:
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


# --- answers that do not hold together ---------------------------------------------------------------


@dataclass
class _checked:  # noqa: N801 - a context manager
    """Turns what goes wrong with a malformed answer into one error that names the function."""

    what: str
    _wrong: tuple[type[Exception], ...] = field(
        default=(KeyError, TypeError, ValueError, IndexError, AttributeError), init=False
    )

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, self._wrong):
            raise EstimationError(
                f"the audited code's process gave an answer about {self.what} that does not hold together: {error}",
                "code that interferes with its own process cannot be audited",
            ) from None


def _stream(frame: Any) -> Tensor:
    """A table as an Arrow stream."""
    import pyarrow as pa

    table = pa.Table.from_pandas(frame)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)
