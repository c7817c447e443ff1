"""The questions that the audited code's process answers, one method each."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.code_reads import CodeReads
from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.manifest import FileEntry
from auditspec.artifacts.named_files import named_files
from auditspec.engine.batched_gradient import NotVectorizedError, batched_gradient
from auditspec.engine.hessian_products import require_second_derivatives
from auditspec.engine.model_output import through_output
from auditspec.engine.widening import widened
from auditspec.errors import AuditspecError, UnsupportedError
from auditspec.record.batches import bytes_in
from auditspec.record.generators import Generators, go_to
from auditspec.record.uncompiled import pulled_back
from auditspec.record.unregistered import unregistered
from auditspec.sealed.ahead import AHEAD_BYTES
from auditspec.sealed.ambience import Drawn, in_modes, seeded, set_switches, switches
from auditspec.sealed.codec import NUMBERS, Many, Reader, Writer
from auditspec.sealed.shadow import STATE, Numbers, described, tensors_of


class Answers:
    """What the process holds, and how it answers by it."""

    def __init__(self) -> None:
        self._next = 0
        """What is left here next goes by this number: as the question's has it, so that it is the same wherever it is
        asked."""
        self._held: dict[int, Any] = {}
        """Functions, calls, models, and whatever has no other form, by number."""
        self._numbers: dict[int, Numbers] = {}
        """Of the models."""
        self._model_of: dict[int, int] = {}
        """Numbers of the models, by identity."""
        self._datasets: dict[str, Dataset] = {}
        self._bundle: CodeBundle | None = None
        self._reads = CodeReads(())
        self._switches: dict[str, Any] = {}
        self._drawn = Drawn()
        self._stack = ExitStack()
        seeded()

    def answer(
        self, message: Mapping[str, Any], tensors: list[Tensor], blocks: list[list[Tensor]]
    ) -> tuple[Any, list[Tensor], list[list[Tensor]]]:
        """The answer to one question: a value, or what was raised.

        Args:
            message: the question.
            tensors: of it, for good.
            blocks: of it, to be copied.
        """
        self._next = message["number"] * NUMBERS
        if "device" in message:
            self._drawn = Drawn(torch.device(message["device"]))
        for number in message.get("release", ()):
            self._release(number)
        writer = Writer(special=self._special, keep=self._keep)
        reply: dict[str, Any] = {}
        try:
            reader = Reader(tensors, blocks, self._kinds(), self._copy)
            question = reader.value(message["ask"])
            if (wanted := message.get("switches")) is not None:
                set_switches(reader.value(wanted), self._switches)
                self._switches = switches()
            self._drawn.take({k: bytes.fromhex(v) for k, v in message.get("drawn", {}).items()})
            value = getattr(self, f"answer_{message['kind']}")(**question)
            reply["value"] = writer.value(value)
        except (Exception, SystemExit) as error:  # whatever the audited code raises is an answer
            reply = {"error": self._error(error)}
            writer = Writer()
        reply["drawn"] = {k: v.hex() for k, v in self._drawn.news().items()}
        return reply, writer.tensors, writer.blocks

    # --- values -----------------------------------------------------------------------------------

    def _special(self, value: Any) -> list[Any] | None:
        return ["model", self._model(value)] if isinstance(value, nn.Module) else None

    def _kinds(self) -> dict[str, Any]:
        return {"model": lambda number: self._held[number], "dataset": self._dataset}

    def _keep(self, value: Any) -> int:
        number, self._next = self._next, self._next + 1
        self._held[number] = value
        return number

    def _copy(self, number: int) -> Any:
        """What stayed here: a class itself, anything else as a copy, since its user may change it."""
        value = self._held[number]
        return value if isinstance(value, type) else copy.deepcopy(value)

    def _model(self, model: nn.Module) -> int:
        if id(model) not in self._model_of:
            self._model_of[id(model)] = self._keep(model)
        return self._model_of[id(model)]

    def _release(self, number: int) -> None:
        value = self._held.pop(number, None)
        self._numbers.pop(number, None)
        if isinstance(value, nn.Module):
            self._model_of.pop(id(value), None)

    def _dataset(self, key: str) -> Dataset:
        return self._datasets[key]

    # --- errors -----------------------------------------------------------------------------------

    def _error(self, error: BaseException) -> dict[str, Any]:
        try:
            if self._bundle is not None:
                self._bundle.blame_environment(error)
        except AuditspecError as blamed:
            error = blamed
        if isinstance(error, NotVectorizedError):
            values = error.reason.values
            return {
                "not_vectorized": error.reason.code,
                "error": str(values.get("error", ""))[:400],
            }
        if isinstance(error, AuditspecError):
            name = type(error).__name__
            return {"own": name, "message": error.message[:4000], "remedy": error.remedy[:2000]}
        place = self._bundle.place(error) if self._bundle is not None else ""
        base = next(
            (k.__name__ for k in type(error).__mro__ if k.__module__ == "builtins"), "Exception"
        )
        text = str(error)[:4000]
        return {
            "name": type(error).__name__[:200],
            "base": base,
            "text": text,
            "place": place[:400],
        }

    # --- the code ---------------------------------------------------------------------------------

    def answer_begin(
        self, root: str, digest: str, package: str, files: list[Any], path: list[str]
    ) -> None:
        """Take the code, and let it be imported."""
        sys.path[:] = path
        contents = {name: data.numpy().tobytes() for name, data, _ in files}
        entries = tuple(FileEntry(name, len(contents[name]), d) for name, _, d in files)
        self._bundle = CodeBundle(Path(root), digest, entries, contents, package)
        self._reads = CodeReads(map(self._bundle.filename, contents))
        self._reads.start()
        self._stack.enter_context(self._bundle.importable())

    def answer_load(self, entry: str) -> dict[str, Any]:
        """Import a callable; its number, and for an optimizer class how it is made."""
        assert self._bundle is not None  # noqa: S101 - asked to begin first
        function = self._bundle.load(entry)
        made = None
        if isinstance(function, type) and issubclass(function, Optimizer):
            given = list(inspect.signature(function).parameters.values())[1:]
            made = [[a.name, a.default is a.empty] for a in given]
        return {"number": self._keep(function), "optimizer": made}

    def answer_reads(self) -> dict[str, list[str]]:
        """The files that the code opened."""
        return {path: sorted(by) for path, by in self._reads.files().items()}

    def answer_named_files(self, function: int, folders: list[str]) -> list[str]:
        """The files that a function names."""
        assert self._bundle is not None  # noqa: S101 - asked to begin first
        sources = [self._bundle.filename(path) for path in self._bundle.contents]
        return sorted(map(str, named_files(self._held[function], sources, map(Path, folders))))

    def answer_unregistered(self, function: int, model: nn.Module) -> dict[str, Tensor]:
        """What a model and a function hold beside parameters and buffers."""
        return unregistered(model, self._held[function])

    def answer_dataset(
        self, key: str, name: str, path: str, digest: str, original: Any, rows: Any
    ) -> None:
        """Open a data set; or disguise one, with other rows where an Arrow stream is given."""
        if original is None:
            self._datasets[key] = Dataset.open(path, name, digest)
            return
        frame = None
        if rows is not None:
            import pyarrow as pa

            with pa.ipc.open_stream(rows.numpy().tobytes()) as stream:
                frame = stream.read_all().to_pandas()
        source = self._datasets[original]
        self._datasets[key] = source.disguised(
            name=name, path=Path(path), digest=digest, frame=frame
        )

    # --- calls ------------------------------------------------------------------------------------

    def answer_call(
        self,
        function: int,
        arguments: list[Any],
        models: list[Any],
        modes: Mapping[str, Any],
        output: bool,
        widening: Any,
        expected: float | None,
    ) -> dict[str, Any]:
        """Call a function; its value, and what became of the models that it was given."""
        before = [_registered(*self._put(**state)) for state in models]
        given = [self._held[state["number"]] for state in models]
        called: Any = self._held[function]
        if widening is not None:
            called = widened(called, *widening)
        with in_modes(modes, given[0] if given else None):
            if output:
                loss, z, e = through_output(called, *arguments)
                value: Any = [loss, z]
                extra = [e]
            else:
                value, extra = called(*arguments), []
        answer: dict[str, Any] = {"models": []}
        for model, registered in zip(given, before, strict=True):
            changes = value is None or isinstance(value, nn.Module)
            answer["models"].append(self._after(model, [] if changes else registered))
        leaves = value if output else [value]
        if modes["grad"] and all(isinstance(v, Tensor) for v in leaves) and given:
            inputs = [p for p in given[0].parameters() if p.requires_grad] + extra
            if any(v.requires_grad for v in leaves):
                answer["call"] = self._keep((leaves, inputs))
                if expected is not None and len(leaves) == 1 and value.dim() == 0:
                    answer["gradients"] = Many(
                        _gradients(leaves, inputs, [value.new_tensor(expected)])
                    )
        if isinstance(value, nn.Module):
            known = self._numbers.get(models[0]["number"]) if models else None
            answer["description"] = self._described(value, known)
        return answer | {"value": value}

    def answer_loads(
        self, function: int, batches: list[tuple[Dataset, list[int]]], modes: Mapping[str, Any]
    ) -> list[Any]:
        """Several batches; up to the first that draws random numbers, since the next may not be asked for then, or while
        there is room.
        """
        load, values, room = self._held[function], list[Any](), AHEAD_BYTES
        with in_modes(modes, None):
            for dataset, ids in batches:
                before = Generators.now(self._drawn.device)
                try:
                    value = [load(dataset, ids)]
                except Exception:
                    if not values:
                        raise
                    value = []  # it is raised when that batch is asked for
                room -= bytes_in(value)
                drawn = before.drawn_from(Generators.now(self._drawn.device))
                if values and drawn:
                    go_to(drawn, self._drawn.device)
                    break
                values += value
                if drawn or not value or room < 0:
                    break
        return values

    def answer_outputs(
        self,
        function: int,
        models: list[Any],
        states: int,
        modes: Mapping[str, Any],
        batches: list[Any],
        widening: Any,
    ) -> dict[str, Any]:
        """A function's outputs on several batches at several states of a model, without gradients.

        The tensors of the states have the states in their first dimension.
        """
        (told,) = models
        model: nn.Module = self._held[told["number"]]
        called: Any = self._held[function]
        if widening is not None:
            called = widened(called, *widening)
        began = Generators.now(self._drawn.device)
        answer: dict[str, Any] = {"outputs": [], "models": []}
        for place in range(states):
            state = told | {kind: [t[place] for t in told[kind]] for kind in STATE}
            go_to(began.drawn_from(Generators.now(self._drawn.device)), self._drawn.device)
            before = _registered(*self._put(**state))
            with in_modes(modes, model):
                answer["outputs"].append([called(model, batch) for batch in batches])
            answer["models"].append(self._after(model, before))
        return answer

    def _put(
        self,
        number: int,
        training: bool,
        device: torch.device,
        trains: str,
        parameters: list[Tensor],
        buffers: list[Tensor],
    ) -> tuple[list[nn.Parameter], list[Tensor]]:
        """Make a model what the audit says that it is; its parameters and buffers."""
        model: nn.Module = self._held[number]
        own, own_buffers = tensors_of(model)
        if model.training != training:
            model.train(training)
        changed = next(
            (v.dtype for p, v in zip(own, parameters, strict=True) if p.dtype != v.dtype), None
        )
        if changed is not None or (own and own[0].device != device):
            model.to(device, changed)
            own, own_buffers = tensors_of(model)
        own_data = [t.data for t in (*own, *own_buffers)]
        values = [*parameters, *buffers]
        if [t.dtype for t in own_data] == [v.dtype for v in values]:
            if own_data:
                torch._foreach_copy_(own_data, values)
        else:
            for tensor, value in zip([*own, *own_buffers], values, strict=True):
                tensor.data = value.to(tensor.device, copy=True)
        for parameter, on in zip(own, trains, strict=True):
            if parameter.requires_grad != (on == "1"):
                parameter.requires_grad_(on == "1")
        return own, own_buffers

    def _after(self, model: nn.Module, before: list[tuple[int, int]]) -> Any:
        """What became of a model: its buffers; or all of it, where a call changed its parameters, or may have."""
        parameters, buffers = tensors_of(model)
        if _registered(parameters, buffers) != before:
            return {"description": self._described(model, None)}
        # Copies: the next state may be put in before they are sent.
        return {"buffers": Many(buffer.clone() for buffer in buffers)}

    def _described(self, model: nn.Module, known: Numbers | None) -> list[Any]:
        number = self._model(model)
        numbers = self._numbers.setdefault(number, known or Numbers())
        description, values = described(model, numbers)
        return [number, description, values]

    def answer_pullback(self, call: int, cotangents: list[Any], create: bool) -> dict[str, Any]:
        """Gradients of a call's outputs, each times its cotangent; kept where they are to be differentiated."""
        outputs, inputs = self._held[call]
        if create:
            cotangents = [None if c is None else c.requires_grad_() for c in cotangents]
        pairs = [
            (o, c)
            for o, c in zip(outputs, cotangents, strict=True)
            if c is not None and o.requires_grad
        ]
        gradients = _gradients([o for o, _ in pairs], inputs, [c for _, c in pairs], create=create)
        answer: dict[str, Any] = {"gradients": Many(gradients)}
        if create:
            once = _once({str(i): g for i, g in enumerate(gradients)})
            answer["smooth"] = [g is not None and g.requires_grad for g in gradients]
            answer["pull"] = self._keep(
                (gradients, [*(c for c in cotangents if c is not None), *inputs], once)
            )
        return answer

    def answer_second(self, pull: int, directions: list[Any]) -> list[Any]:
        """Gradients of those gradients, each times its direction: by the cotangents, then by the inputs."""
        gradients, inputs, once = self._held[pull]
        if once:
            raise UnsupportedError(*once)
        pairs = [
            (g, v)
            for g, v in zip(gradients, directions, strict=True)
            if g is not None and v is not None and g.requires_grad
        ]
        if not pairs:
            return [None] * len(inputs)
        return list(
            pulled_back(
                [g for g, _ in pairs],
                inputs,
                [v for _, v in pairs],
                retain_graph=True,
                allow_unused=True,
            )
        )

    # --- several parameter vectors at once --------------------------------------------------------

    def answer_batched_new(
        self, function: int, model: nn.Module, trained: list[str], buffers: list[str], widening: Any
    ) -> int:
        """A batched gradient of an objective; its number."""
        objective = self._held[function]
        if widening is not None:
            objective = widened(objective, *widening)
        return self._keep((batched_gradient(objective, model, trained, buffers), model))

    def answer_batched(
        self,
        number: int,
        models: list[Any],
        modes: Mapping[str, Any],
        theta: dict[str, Tensor],
        buffers: dict[str, Tensor],
        weight: float,
        batch: Any,
    ) -> dict[str, Any]:
        """One pass of it."""
        for state in models:
            self._put(**state)
        batched, model = self._held[number]
        with in_modes(modes, model):
            outcome = batched(theta, buffers, weight, batch)
        return dict(vars(outcome))

    # --- optimizers of the code -------------------------------------------------------------------

    def answer_optimizer_new(
        self, function: int, groups: list[Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        """An optimizer over parameters of these shapes; its number, and its options by group."""
        given = [{**g, "params": [nn.Parameter(p) for p in g["params"]]} for g in groups]
        optimizer: Optimizer = self._held[function](given, **options)
        return {
            "number": self._keep(optimizer),
            "groups": _options(optimizer),
            "defaults": dict(optimizer.defaults),
        }

    def answer_optimizer_step(
        self, number: int, groups: list[Any], values: list[Any], state: list[Any]
    ) -> dict[str, Any]:
        """One step from these values, gradients, and state."""
        optimizer: Optimizer = self._held[number]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.state.clear()
        for parameter, (value, gradient), slots in zip(parameters, values, state, strict=True):
            parameter.data = value
            parameter.grad = gradient
            if slots:
                optimizer.state[parameter] = dict(slots)
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(own)
        optimizer.step()
        return {
            "values": [p.detach() for p in parameters],
            "state": [dict(optimizer.state.get(p, {})) for p in parameters],
            "groups": _options(optimizer),
        }


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, create: bool = False
) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor | None, ...] = pulled_back(
        outputs, inputs, cotangents, create_graph=create, retain_graph=True, allow_unused=True
    )
    return gradients


def _registered(parameters: list[nn.Parameter], buffers: list[Tensor]) -> list[tuple[int, int]]:
    return [(id(p), p._version) for p in parameters] + [(id(b), 0) for b in buffers]


def _once(gradients: dict[str, Any]) -> tuple[str, str] | None:
    try:
        require_second_derivatives(gradients)
    except UnsupportedError as error:
        return error.message, error.remedy
    return None


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
