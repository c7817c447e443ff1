"""The models of an audit's runs as ordinary checkpoints, for other tools to score.

MODELS/manifest.json                        which model is which: digest, run, place, exact or estimated
MODELS/deployed/model.safetensors           by the deployed names; what else the deployed folder holds, beside it, and
                                            the spec's tokenizer.json where it holds none
MODELS/without-labels/model.safetensors
MODELS/without-labels.base-end/…            and the models that a run went through
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from auditspec.answerable.courses import end_of
from auditspec.artifacts import strict_json
from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.files import exchanged, read_regular, write_atomically
from auditspec.artifacts.manifest import Manifest
from auditspec.artifacts.weight_files import ADAPTER_CONFIG, SUFFIXES
from auditspec.as_deployed import AsDeployed
from auditspec.attribute import Attribution
from auditspec.consistency.check import check
from auditspec.elsewhere import ModelOf
from auditspec.errors import AuditspecError, EvidenceError, UsageError
from auditspec.estimator.interventions import RECORDED
from auditspec.gates import run_gates
from auditspec.report.words import text
from auditspec.results import Evidence
from auditspec.spec.source import LoadedSpec
from auditspec.workplace import ALONE, Workplace

MANIFEST, WEIGHTS, TOKENIZER = "manifest.json", "model.safetensors", "tokenizer.json"
VERSION = "1"
DEPLOYED = "deployed"


@dataclass
class _Writer:
    """Writes each different model once."""

    folder: Path
    form: AsDeployed
    last: str
    """Id of the last stage."""
    beside: Path | None
    """The deployed folder, whose other files go with every model; None where a file is deployed."""
    tokenizer: Path | None
    """Of the model's texts; None where the spec names none."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the manifest says of each, by digest."""

    def write(self, model: ModelOf) -> None:
        """Write a model, unless it is one that was written, or of another architecture than the deployed one."""
        data = self.form.encoded(model.state)
        if data is None:
            return
        digest = digest_bytes(data)
        if digest not in self.models:
            name = self._name(model)
            self._put(name, data)
            self.models[digest] = {"digest": digest, "path": f"{name}/{WEIGHTS}", "of": []}
        facts = {"run": list(model.arm.name), "state": model.place, "exact": model.exact}
        facts |= {"method": model.method}
        self.models[digest]["of"].append(facts | ({"twin": True} if model.twin else {}))

    def _name(self, model: ModelOf) -> str:
        ended = model.place == end_of(self.last)
        parts = [kind.replace("omit ", "without-").replace(" ", "-") for kind in model.arm.name]
        run = "+".join(parts) or ("recorded" if not ended else DEPLOYED)
        name = run if ended else f"{run}.{model.place}"
        name = name.replace(":", "-") + (".twin" if model.twin else "")
        taken = {row["path"].partition("/")[0] for row in self.models.values()}
        return name if name not in taken else f"{name}.{len(self.models)}"

    def _put(self, name: str, data: bytes) -> None:
        place = self.folder / name
        place.mkdir()
        if self.beside is not None:
            for file in Manifest.scan(self.beside).files:
                if not _holds_weights(file.path):
                    target = place / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(read_regular(self.beside / file.path))
        if self.tokenizer is not None and not (place / TOKENIZER).exists():
            (place / TOKENIZER).write_bytes(read_regular(self.tokenizer))
        write_atomically(place / WEIGHTS, data)


def write_counterfactuals(
    loaded: LoadedSpec,
    out: Path,
    *,
    force: bool = False,
    workplace: Workplace = ALONE,
) -> dict[str, Any]:
    """Write the deployed model, the model without each stage, and those that these runs went through.

    Args:
        loaded: the spec.
        out: the folder, which appears whole or not at all.
        force: replace models that an earlier call wrote there.
        workplace: what is around it.

    Returns:
        The manifest.

    Raises:
        UsageError: if the folder holds something else, or the deployed form cannot be written.
        SpecError: if the spec does not fit what it names.
        EvidenceError: if the evidence does not carry an estimate.
        EstimationError: if no estimate can be made.
    """
    checked = check(loaded, signing=False)
    checked.require_fitting()
    written: list[dict[str, Any]] = []
    with _appearing(out, force) as folder:

        def keep(form: AsDeployed, found: Attribution) -> None:
            path, words = loaded.where(loaded.spec.model.checkpoint), loaded.spec.model.tokenizer
            beside = path if path.is_dir() and not (path / ADAPTER_CONFIG).exists() else None
            tokenizer = None if words is None else loaded.where(words)
            writer = _Writer(folder, form, loaded.spec.stages[-1].id, beside, tokenizer)
            with workplace.progress.phase("writing the models"):
                for model in sorted(found.models(), key=_ends_first):
                    writer.write(model)
            written.append(_manifest(loaded, checked.evidence, writer))
            encoded = json.dumps(written[0], indent=1) + "\n"
            write_atomically(folder / MANIFEST, encoded.encode())

        examined = run_gates(loaded, checked.evidence, workplace, keep)
        if not written:
            gates = [c for c in examined.checks if c.bars == "all" and c.in_the_way]
            why = (*gates, *(c for c in examined.checks if c.bars == "estimated"))[0]
            raise EvidenceError(
                f"the evidence does not carry an estimate: {text(why.reasons)}",
                "auditspec run says what every check found",
            )
    return written[0]


def _ends_first(model: ModelOf) -> bool:
    """A model that several runs share is named by the recorded run."""
    return model.arm != RECORDED


def _manifest(
    loaded: LoadedSpec,
    evidence: tuple[Evidence, ...],
    writer: _Writer,
) -> dict[str, Any]:
    digests = {item.name: item.found for item in evidence}
    conversion = loaded.spec.model.conversion
    return {
        "auditspec_models": VERSION,
        "tool": f"auditspec {version('auditspec')}",
        "spec": digest_bytes(loaded.text),
        "record": digests["record"],
        "code": digests["code"],
        "deployed": digests[loaded.spec.model.checkpoint],
        "conversion": None if conversion is None else conversion.model_dump(exclude_none=True),
        "models": list(writer.models.values()),
    }


def _holds_weights(path: str) -> bool:
    return path.endswith((*SUFFIXES, ".index.json"))


@contextmanager
def _appearing(out: Path, replace: bool) -> Iterator[Path]:
    """A folder that is put in its place where the block ends well.

    Raises:
        UsageError: if something else stands there, or it cannot be written.
    """
    out = out.absolute()
    _refuse_taken(out, replace)
    made = out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")
    try:
        made.mkdir(parents=True)
        yield made
        _refuse_taken(out, replace)
        if out.exists() and any(out.iterdir()) and exchanged(made, out):
            return
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(out)
        made.rename(out)
    except OSError as error:
        raise UsageError(
            f"{out}: cannot be written ({error.strerror})", "check its folder"
        ) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _refuse_taken(out: Path, replace: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not out.is_symlink():
        if not any(out.iterdir()):
            return
        if replace and _is_ours(out):
            return
        if _is_ours(out):
            raise UsageError(f"{out}: holds models already", "--force replaces them")
    raise UsageError(f"{out}: is something else than models of auditspec", "name another folder")


def _is_ours(out: Path) -> bool:
    try:
        manifest = strict_json.parse(read_regular(out / MANIFEST), MANIFEST)
    except (AuditspecError, OSError):
        return False
    return isinstance(manifest, dict) and "auditspec_models" in manifest
