"""What auditspec offers to Python: a function for each command, which the command line itself calls.

`from auditspec import …` gives everything here, loaded on first use (docs/python.md).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditspec.artifacts.digest import digest_file
from auditspec.collector import unsearched
from auditspec.errors import EvidenceError, UsageError
from auditspec.progress import SILENT, Progress
from auditspec.urls import as_path, is_url
from auditspec.user_folders import state_folder

if TYPE_CHECKING:
    import datetime as dt

    from torch import Tensor, nn

    from auditspec.confinement import Confinement
    from auditspec.planning import Plan
    from auditspec.record.commitment import Commitment
    from auditspec.record.format import RecordHeader
    from auditspec.results import AuditResult
    from auditspec.sealed.isolation import Wanted
    from auditspec.sign.credentials import Credentials
    from auditspec.sign.sealing import Sealer
    from auditspec.spec.source import LoadedSpec
    from auditspec.team import Team
    from auditspec.verification.verifier import Verification

PathLike = str | os.PathLike[str]


def load_spec(path: PathLike) -> LoadedSpec:
    """Read an audit spec, and check everything about it that can be checked without its artifacts.

    Raises:
        UsageError: if there is no such file, or it cannot be read.
        SpecError: with every problem of the spec, by line and column.
    """
    with unsearched():
        from auditspec.spec.source import load

    return load(Path(path))


def audit(
    spec: PathLike | LoadedSpec,
    *,
    out: PathLike | None = None,
    force: bool = False,
    unsigned: bool = False,
    cache: PathLike | None = None,
    allow_code: bool = True,
    announce: Callable[[str], None] = lambda line: None,
    progress: Progress = SILENT,
    command: str = "auditspec.audit",
    passphrase: Callable[[str], bytes] | None = None,
    isolation: Wanted | None = None,
) -> AuditResult:
    """Audit: check the evidence, estimate, check the estimate, judge, and write a packet.

    This executes the training code that the spec names, in a sealed process of its own, once its digest was
    found right.

    Args:
        spec: the spec, or its file.
        out: folder of the packet, which appears there whole or not at all, or a URL in a store; None: no packet
            is written.
        force: replace the packet that stands in the folder.
        unsigned: do not sign, whatever the spec says.
        cache: folder of finished estimates, which are taken from there and kept there; None: every
            estimate is computed anew.
        allow_code: whether the spec's code may be executed.
        announce: told of every code file before it is executed.
        progress: told of the long phases.
        command: how the audit was started, for the report.
        passphrase: gives the passphrase of an encrypted key, or a token's PIN, when asked with what it is for.
        isolation: how the code is kept apart: `required` (refused where the machine cannot), `best` (as far as it
            can), `none` (in this process: for code that you trust as yourself); None: what the environment
            variable AUDITSPEC_ISOLATION says, or `best`.

    Returns:
        The content of `results.json`. `result.gate.exit_code` is what the command exits with.

    Raises:
        UsageError: if a key, the output folder, or a plug-in cannot be used, or code would have to be
            executed that may not.
        SpecError: if the spec does not fit what it names; no evidence is blamed.
        EstimationError: if the evidence is sound but no estimate can be made.
    """
    loaded, out = _loaded(spec, progress), None if out is None else as_path(out)
    confinement = _confinement(isolation, (out, cache), allowed=allow_code)
    with contextlib.ExitStack() as stack:
        team = _team(stack)
        stack.enter_context(confinement.early(loaded))
        with unsearched():
            credentials = None if unsigned or out is None else _credentials(loaded, passphrase)
        packet = None
        if out is not None:
            from auditspec.sign.packet import PacketWriter
            from auditspec.sign.packet_in_store import folder_for

            folder = stack.enter_context(folder_for(out, replace=force))
            packet = stack.enter_context(PacketWriter(folder, force))
        with progress.phase("loading torch"), unsearched():
            from auditspec import flow
            from auditspec.estimator.cache import Cache
            from auditspec.workplace import Workplace
        result = flow.run_audit(
            loaded,
            command=command,
            credentials=credentials,
            workplace=Workplace(
                None if cache is None else Cache(Path(cache)), confinement, team, announce, progress
            ),
        )
        if packet is not None:
            with unsearched():
                flow.write_packet(
                    packet, result, loaded, credentials=credentials, progress=progress
                )
    return result


def assist(spec: PathLike | LoadedSpec, *, isolation: Wanted | None = None) -> None:
    """On every rank but the first that a launcher such as torchrun started: make what the first hands out, until it ends.

    This executes the training code that the spec names, once its digest was found right here.

    Args:
        spec: the spec, or its file.
        isolation: as in `audit`.

    Raises:
        UsageError: if this process is alone or the first, or the code cannot be kept apart as asked.
        SpecError: if the spec does not fit what it names.
        EstimationError: if the code cannot be imported.
    """
    loaded = _loaded(spec)
    confinement = _confinement(isolation, allowed=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(confinement.early(loaded))
        team = _team(stack)
        if team is None or team.rank == 0:
            raise UsageError("this process is alone, or the first of its ranks", "use audit")
        from auditspec import assisting

        assisting.assist(loaded, team, confinement)


def _team(stack: contextlib.ExitStack) -> Team | None:
    """The ranks that a launcher started, this one among them; None where it started one."""
    from auditspec.team import Team

    team = Team.here()
    if team is not None:
        stack.enter_context(team.present())
    return team


def _confinement(
    isolation: Wanted | None, secrets: Sequence[PathLike | None] = (), *, allowed: bool = True
) -> Confinement:
    """Whether the audited code may run, how it is kept apart, and from what beside the spec's key.

    Raises:
        UsageError: if the environment asks for what there is not.
    """
    from auditspec.confinement import Confinement

    wanted = isolation or os.environ.get("AUDITSPEC_ISOLATION", "best")
    if wanted not in ("required", "best", "none"):
        raise UsageError(
            f"AUDITSPEC_ISOLATION is {wanted!r}", "set it to required, best, or none, or unset it"
        )
    chosen: Any = wanted
    given = [Path(path) for path in secrets if path is not None]
    return Confinement(chosen, (*given, state_folder()), allowed=allowed)


def plan(
    spec: PathLike | LoadedSpec,
    *,
    measure: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    isolation: Wanted | None = None,
) -> Plan:
    """Forecast what each estimator costs on a spec's record, what it needs, and which one each stage gets.

    Args:
        spec: the spec, or its file.
        measure: time one step of every stage here; this executes the code that the spec names.
        announce: told of every code file before it is executed.
        isolation: as in `audit`.

    Raises:
        SpecError: if the spec is wrong, or does not fit what it names.
        EvidenceError: if an artifact is missing, changed, not pinned, or unreadable.
        EstimationError: if a measured step fails.
    """
    from auditspec.planning import plan_audit

    loaded = _loaded(spec)
    confinement = _confinement(isolation)
    return plan_audit(loaded, measure=measure, announce=announce, confinement=confinement)


def counterfactuals(
    spec: PathLike | LoadedSpec,
    out: PathLike,
    *,
    force: bool = False,
    cache: PathLike | None = None,
    announce: Callable[[str], None] = lambda line: None,
    progress: Progress = SILENT,
    isolation: Wanted | None = None,
) -> dict[str, Any]:
    """Write the deployed model and the model without each stage as checkpoints, for other tools to score.

    Args:
        spec: the spec, or its file.
        out: folder of the models, which appears there whole or not at all.
        force: replace the models that stand there.
        cache: folder of finished estimates, as in `audit`.
        announce: told of every code file before it is executed.
        progress: told of the long phases.
        isolation: as in `audit`.

    Returns:
        The content of `manifest.json`: of every model its path, its digest, and which it is.

    Raises:
        UsageError: if the folder holds something else, or the deployed form cannot be written.
        SpecError: if the spec does not fit what it names.
        EvidenceError: if the evidence does not carry an estimate.
        EstimationError: if no estimate can be made.
    """
    from auditspec.counterfactual_models import write_counterfactuals
    from auditspec.estimator.cache import Cache
    from auditspec.workplace import Workplace

    loaded, confinement = _loaded(spec, progress), _confinement(isolation, (out, cache))
    kept = None if cache is None else Cache(Path(cache))
    workplace = Workplace(kept, confinement, announce=announce, progress=progress)
    return write_counterfactuals(loaded, Path(out), force=force, workplace=workplace)


def import_record(
    spec: PathLike | LoadedSpec,
    checkpoints: Mapping[str, PathLike],
    *,
    run: str | None = None,
    out: PathLike | None = None,
    every: int = 1,
    announce: Callable[[str], None] = lambda line: None,
) -> RecordHeader:
    """Make a record of a run that nobody recorded: train it again, and hold it against what it had saved.

    This executes the training code that the spec names, in this process.

    Args:
        spec: the audit's spec, or its file; its record is what is made.
        checkpoints: what each stage saved, by stage: a folder of checkpoints, or a file.
        run: `module:function` of the spec's code: (recorder) -> None, which trains `recorder.model` as the run
            was trained, and records every stage, whatever library trains; None: the stages' objectives are
            made by `trainer_objective`, and build their trainers.
        out: folder of the record; None: where the spec's artifact `record` is.
        every: steps between recorded states.
        announce: told of every code file before it is executed, and of every checkpoint once it was compared.

    Returns:
        The record's header; `header.regenerated` says how close each saved checkpoint was met, and
        `header.every` is `boundaries` where one was missed.

    Raises:
        UsageError: if the checkpoints are not those of the spec's stages, the record is there already, or
            `run` names no function of the recorder alone.
        EvidenceError: if code, data, weights, or checkpoints cannot be read or do not belong together.
        RecordError: if the run cannot be recorded, or its code fails.
    """
    from auditspec.importing.from_spec import import_as_specified

    loaded = _loaded(spec, without=("record",))
    if out is None and is_url(record := loaded.spec.artifacts["record"].path):
        raise UsageError(f"{record}: a record is imported into a folder", "name one with --out")
    folder = loaded.where("record") if out is None else Path(out)
    given = {stage: Path(path) for stage, path in checkpoints.items()}
    return import_as_specified(loaded, given, folder, run=run, every=every, announce=announce)


def render(
    results: PathLike,
    out: PathLike,
    *,
    formats: Collection[str] | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> tuple[Path, ...]:
    """Make the reports again from a results.json; nothing is computed or verified.

    The reports are marked UNSIGNED, because no signature covers them: the signed ones are those inside the
    packet.

    Args:
        results: the file.
        out: folder for the reports, made if it does not exist; never a signed packet.
        formats: exports by name; None: those that are made by default.
        force: replace reports that stand in the folder.
        progress: told of the drawing.

    Returns:
        The files that were written.

    Raises:
        UsageError: if the results or the folder cannot be used, there is no export of a name, or a plug-in
            cannot be used.
    """
    from auditspec.report.exports import Source, chosen

    result, data = _results(Path(results))
    wanted = chosen(formats)
    folder = Path(out)
    _require_free(folder, [folder / export.file for export in wanted], force)
    source = Source(result.model_copy(update={"signer": None}), data)
    with progress.phase("drawing the report"):
        rendered = {folder / export.file: source.rendered(export) for export in wanted}
    for path, content in rendered.items():
        _write(path, content, force)
    return tuple(rendered)


def verify(
    packet: PathLike,
    *,
    trust: PathLike | None = None,
    log: PathLike | None = None,
    at: dt.datetime | None = None,
    spec: PathLike | None = None,
    artifacts: Mapping[str, PathLike] | None = None,
    disclosures: PathLike | None = None,
    system_version: str | None = None,
    limit: int = 1,
) -> Verification:
    """Verify a packet, offline; a failure is in the verification, and not raised.

    Args:
        packet: its folder; or its URL in a store, from which it is fetched first.
        trust: trust file, which says whose signatures count; without one the signer stays unknown.
        log: folder of the log that the trust file names.
        at: the moment as of which to verify; None: now.
        spec: the spec that the packet must be about.
        artifacts: artifacts that the packet must be about, by their names in the spec; paths, or URLs in a store.
        disclosures: withheld values that their holder wants to prove.
        system_version: the system's version that the packet must be about.
        limit: times the processor time and memory that the packet's contents may take (10 s and 512 MiB, more for
            drawing a long report).

    Returns:
        Every step with its outcome. `error` is None where everything holds.

    Raises:
        UsageError: if the trust file, or another of the verifier's own inputs, cannot be used, or lies inside the
            packet.
        EvidenceError: if an artifact cannot be read.
    """
    from auditspec.artifacts.fetch import Most
    from auditspec.artifacts.files import read_regular
    from auditspec.artifacts.manifest import digest_path
    from auditspec.fetched import local
    from auditspec.sign.packet_in_store import brought_here
    from auditspec.sign.redaction import Disclosures
    from auditspec.sign.seen_checkpoints import SeenCheckpoints
    from auditspec.verification.expectation import Expectation
    from auditspec.verification.own_inputs import require_outside
    from auditspec.verification.trust import Trust
    from auditspec.verification.verifier import (
        MAX_BYTES,
        MAX_FILES,
        VerificationInputs,
        verify_all,
    )

    place = as_path(packet)
    policy = None if trust is None else Trust.read(Path(trust), Path(place))
    if log is not None and (policy is None or policy.log is None):
        raise UsageError("a log needs a trust file that names the log's key", "add log: log.pub")
    named = {f"artifact '{name}'": path for name, path in (artifacts or {}).items()}
    for what, given in ({"the log": log, "the spec": spec} | named).items():
        if given is not None:
            require_outside(Path(place), Path(as_path(given)), what)
    disclosed = None
    if disclosures is not None:
        disclosed = Disclosures.decode(read_regular(Path(disclosures)), str(disclosures))
    expected = Expectation(
        None if spec is None else digest_file(Path(spec))[0],
        {name: digest_path(local(path)).digest for name, path in (artifacts or {}).items()},
        system_version,
    )
    against = VerificationInputs(
        at=at,
        expected=expected,
        disclosures=disclosed,
        log=None if log is None else Path(log),
        memory=SeenCheckpoints(state_folder() / "logs"),
        limit=limit,
    )
    with brought_here(place, Most(MAX_FILES, MAX_BYTES)) as folder:
        return verify_all(folder, policy, against)


def save_checkpoint(path: PathLike, model: nn.Module | Mapping[str, Tensor]) -> str:
    """Write a model's weights as an audit reads them: one safetensors file, written whole or not at all.

    Equal weights give equal bytes.

    Args:
        path: the file; its name ends in `.safetensors`.
        model: a module, of which parameters and persistent buffers are written, or tensors by name.

    Returns:
        The file's digest, `sha256:…`, as a spec pins it.

    Raises:
        EvidenceError: if the name ends otherwise, or the format cannot hold a tensor's type.
        UsageError: if the file cannot be written.
    """
    from auditspec.artifacts.checkpoints import write_tensors

    tensors = model if isinstance(model, Mapping) else model.state_dict()
    try:
        write_tensors(Path(path), tensors)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror})", "check the folder"
        ) from None
    return digest_file(Path(path))[0]


def sealer(
    key: PathLike,
    *,
    timestamp: str | None = None,
    log: PathLike | None = None,
    log_key: PathLike | None = None,
    passphrase: Callable[[str], bytes] | None = None,
) -> Sealer:
    """Whoever signs records and commitments as a trainer.

    Args:
        key: the trainer's private key (PEM), or one on a token.
        timestamp: address of an RFC 3161 service that dates each signature.
        log: folder of an append-only log that each signature is entered into.
        log_key: the log's private key.
        passphrase: gives the passphrase of an encrypted key, or a token's PIN, when asked with what it is for.

    Raises:
        UsageError: if a key cannot be used, or a log is named without its key.
    """
    from auditspec.sign.confidential import nobody
    from auditspec.sign.credentials import signer_of
    from auditspec.sign.sealing import Sealer
    from auditspec.sign.seen_checkpoints import SeenCheckpoints
    from auditspec.sign.timestamps import TimestampAuthority

    if (log is None) != (log_key is None):
        raise UsageError("a log has a folder and a key", "name both, or neither")
    ask = passphrase or nobody
    return Sealer(
        signer_of(str(key), Path(), ask),
        TimestampAuthority(timestamp) if timestamp else None,
        None if log is None else Path(log),
        None if log_key is None else signer_of(str(log_key), Path(), ask),
        SeenCheckpoints(state_folder() / "kept"),
    )


def seal_commitment(commitment: Commitment, sealer: Sealer, out: PathLike) -> None:
    """Sign what `Recorder.commit` gave, before the stage is trained.

    Args:
        commitment: of the stage.
        sealer: whoever signs, and what dates that (`sealer`).
        out: the file, which the spec names as an artifact; a log's proof stands beside it as `OUT.log`.

    Raises:
        UsageError: if the authority does not answer, the log cannot be kept, or a file cannot be written.
    """
    from auditspec.sign.sealing import seal_commitment

    seal_commitment(commitment.encode(), sealer, Path(out))


def _loaded(
    spec: PathLike | LoadedSpec, progress: Progress = SILENT, without: Collection[str] = ()
) -> LoadedSpec:
    """A spec that is loaded already, or its file; with what it names in stores, fetched."""
    from auditspec.fetched import fetched
    from auditspec.spec.source import LoadedSpec

    loaded = spec if isinstance(spec, LoadedSpec) else load_spec(spec)
    return fetched(loaded, without=without, progress=progress)


def _credentials(
    loaded: LoadedSpec, passphrase: Callable[[str], bytes] | None
) -> Credentials | None:
    """What the spec signs with; None where it names no key.

    Raises:
        UsageError: if a key or certificate cannot be used.
    """
    from auditspec.consistency.check import require_keys
    from auditspec.report.exports import chosen
    from auditspec.sign.confidential import nobody
    from auditspec.sign.credentials import Credentials, signer_of

    signing = loaded.spec.signing
    if signing is None:
        return None
    require_keys(loaded)
    credentials = Credentials.load(
        signer_of(signing.key, loaded.path.parent, passphrase or nobody),
        loaded.path.parent,
        signing.certificate,
        signing.timestamp.url if signing.timestamp else None,
        signing.level,
        signing.authorities,
        signing.crls,
    )
    signs_a_pdf = any(export.pades for export in chosen(loaded.spec.report.formats))
    return credentials if signs_a_pdf else replace(credentials, level=None)


def _results(path: Path) -> tuple[AuditResult, bytes]:
    """The audit result in a file, and the file's bytes.

    Raises:
        UsageError: if it cannot be read, is not JSON (with line and column), or does not hold results of a known version
            (with the place inside it).
    """
    from auditspec.artifacts.files import read_regular
    from auditspec.sign.packet import decode_results

    remedy = "give the results.json that `auditspec run` wrote"
    try:
        data = read_regular(path)
        json.loads(data)
        return decode_results(data, str(path)), data
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise UsageError(f"{place}: not JSON: {error.msg}", remedy) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}", remedy) from None
    except EvidenceError as error:
        raise UsageError(error.message, error.remedy or remedy) from None


def _require_free(folder: Path, targets: Sequence[Path], force: bool) -> None:
    from auditspec.sign.packet import ENVELOPE

    if (folder / ENVELOPE).exists():
        raise UsageError(
            f"{folder}: holds a signed packet ({ENVELOPE}), which render never changes",
            "choose another folder",
        )
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder", "choose another name")
    taken = [path for path in targets if path.exists() or path.is_symlink()]
    if taken and not force:
        names = ", ".join(str(path) for path in taken)
        raise UsageError(f"{names}: exists already", "choose another folder, or add --force")


def _write(path: Path, data: bytes, force: bool) -> None:
    from auditspec.artifacts.files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, overwrite=force)
    except FileExistsError:
        raise UsageError(f"{path}: exists already", "add --force to replace it") from None
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror})", "check the folder's permissions"
        ) from None
