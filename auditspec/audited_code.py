"""The audited code, ready to be called: in a sealed process of its own, or in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.code_reads import CodeReads
from auditspec.confinement import Confinement
from auditspec.engine.loading import Functions, no_logits
from auditspec.errors import AuditspecError, EstimationError
from auditspec.gather import Opened
from auditspec.results import Isolation
from auditspec.sealed.witness import Repeated
from auditspec.spec.models import Spec
from auditspec.spec.source import LoadedSpec


class AuditedCode(Protocol):
    """The code, imported."""

    @property
    def isolation(self) -> Isolation:
        """What it runs under."""

    def load(self, entry_point: str) -> Any:
        """The callable that `module:name` means; as `CodeBundle.load`."""

    def reads(self) -> dict[str, set[str]]:
        """Files that the code opened so far, each with the outermost functions on whose behalf."""

    def asked_again(self) -> Repeated | None:
        """What came of asking a second process the same; None where there is none."""


class _Here:
    """In this process."""

    @property
    def isolation(self) -> Isolation:
        return Isolation(process=False)

    def __init__(self, bundle: CodeBundle, reads: CodeReads) -> None:
        self._reads = reads
        self.load = bundle.load

    def reads(self) -> dict[str, set[str]]:
        return self._reads.files()

    def asked_again(self) -> None:
        return None


@contextmanager
def audited_code(
    loaded: LoadedSpec,
    opened: Opened,
    confinement: Confinement,
    device: torch.device,
    *,
    again: bool = False,
) -> Iterator[AuditedCode]:
    """Import the code, and turn whatever it raises into one clear error with its place.

    Args:
        loaded: the spec.
        opened: what it names, the code among it.
        confinement: how the code is kept apart.
        device: on which it computes.
        again: whether `asked_again` will be called.

    Raises:
        EvidenceError: if a module of it would take another's name.
        UsageError: if the machine does not isolate it as required, or it imports what is not installed.
        EstimationError: naming the exception and the line of the code that it passed through.
    """
    bundle = opened.code
    if confinement.wanted == "none":
        reads = CodeReads(bundle.filename(path) for path in bundle.contents)
        with reads.watching(), bundle.importable(), code_errors(bundle):
            yield _Here(bundle, reads)
        return
    from auditspec.sealed.start import sealed_code

    with (
        confinement.process(loaded, lines=2 if again else 1) as process,
        code_errors(bundle, sealed=True),
    ):
        code = sealed_code(bundle, process, device)
        yield code
        if code.client.failure is not None:  # nobody may take it for a run that merely diverges
            raise code.client.failure


def load_functions(
    spec: Spec, code: CodeBundle | AuditedCode
) -> tuple[Functions, Mapping[str, Callable[..., Tensor]]]:
    """The training code's functions, and the callables of custom metrics by entry point.

    Raises:
        EvidenceError: if the code lacks one or cannot be imported.
    """
    functions = Functions(
        factory=code.load(spec.model.factory),
        load_batch=code.load(spec.model.load_batch),
        objectives={stage.id: code.load(stage.objective) for stage in spec.stages},
        predict=no_logits if spec.model.predict is None else code.load(spec.model.predict),
        optimizers={
            stage.optimizer.name: code.load(stage.optimizer.name)
            for stage in spec.stages
            if ":" in stage.optimizer.name
        },
        extensions={
            stage.extend: code.load(stage.extend)
            for stage in spec.stages
            if stage.extend is not None
        },
    )
    custom = {
        entry_point: code.load(entry_point)
        for b in spec.behaviors
        for entry_point in b.metric.functions.values()
    }
    return functions, custom


@contextmanager
def code_errors(code: CodeBundle, *, sealed: bool = False) -> Iterator[None]:
    """Turn whatever the audited code raises into one clear error with its place.

    Raises:
        EstimationError: naming the exception and the line of the code that it passed through.
        UsageError: if the code imports a package that is not installed here.
    """
    try:
        yield
    except AuditspecError:
        raise
    except (Exception, SystemExit) as error:  # an exit of the code is not the audit's own
        code.blame_environment(error)
        place = code.place(error)
        at = f" at {place}" if place else ""
        raise EstimationError(
            f"the audited code failed{at}: {type(error).__name__}: {error}",
            _remedy(error, sealed=sealed),
        ) from error


def _remedy(error: BaseException, *, sealed: bool) -> str:
    denied = ("PermissionError", "Permission denied", "Operation not permitted")
    if sealed and any(text in f"{type(error).__name__} {error}" for text in denied):
        return (
            "sealed code reads the artifacts, what stands beside the spec, and what is installed; it writes "
            "nothing, starts no process (num_workers=0), compiles nothing, and opens no connection: name what it needs as "
            "an artifact, or audit in a machine of its own with --isolation none"
        )
    missing = "; sealed code has no network, no home folder, and none of your environment variables"
    return (
        f"check that the code, the data, and the record belong together{missing if sealed else ''}"
    )
