"""A packet's files, made again from its results and spec: every byte must be the same.

What was drawn by another renderer, as the results name it, can differ without a lie. Such a report is read number by number
instead, which is weaker: what else it shows to a person is then not known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from auditspec.errors import SignatureError, SpecError
from auditspec.plugins import blamed
from auditspec.report.exports import Export, MisreportedError, Source, exports
from auditspec.report.renderer import differences
from auditspec.results import AuditResult, Severity
from auditspec.sign.contents import evidence_file, lock_file, resolved_file
from auditspec.sign.packet import ENVIRONMENT, EVIDENCE, RESOLVED, RESULTS, SPEC, file_names
from auditspec.sign.pdf import RefusedPdfError, is_signed_over
from auditspec.spec.source import LoadedSpec, parse

STEP = "rebuild"


@dataclass
class Rebuilt:
    """What was compared."""

    same: list[str] = field(default_factory=list)
    """Files of which every byte is the same."""
    read: list[str] = field(default_factory=list)
    """What was compared in the others: `312 numbers in report.pdf`."""
    because: set[str] = field(default_factory=set)
    """How the renderer that drew those differs from the one here; empty where every file is the same."""


def rebuild(files: Mapping[str, bytes], result: AuditResult, again: AbstractSet[str]) -> Rebuilt:
    """Make a packet's files again and compare.

    Args:
        files: the packet's files, without the envelope and what is made after it.
        result: results.json, read.
        again: files that are not as they were signed, because something is withheld: left out, or made again by whoever withheld.
            Nobody signed these, so that for them nothing is weaker than every byte. What the results themselves and the list of
            evidence must be was compared before (`withholding`).

    Raises:
        SignatureError: at step `rebuild`, naming the file and where it differs.
        UsageError: if a plug-in cannot be used.
    """
    other = differences(result.run.renderer, printed=False)
    beside, formats = _beside(files, result, again)
    made = [export for export in exports().values() if export.name in formats]
    rebuilt = Rebuilt([SPEC] if SPEC in files else [])
    whole = {} if RESULTS in again else {RESULTS: (Source(result).data,)}
    for name, ways in (whole | beside).items():
        if files.get(name) in ways:
            rebuilt.same.append(name)
        elif other and name in files:
            rebuilt.read.append(f"nothing in {name}")
            rebuilt.because.update(other)
        else:
            raise _differs(name, files.get(name), ways[0])
    source = Source(result, files[RESULTS])
    for export in made:
        if export.file != RESULTS and (export.file in files or export.file not in again):
            _compare(export, files, source, rebuilt, again)
    exported = {export.file for export in made}
    # What the audit ran with is named by its digest in the results, and was held against that.
    rest = sorted(files.keys() - {SPEC, RESULTS, EVIDENCE, ENVIRONMENT, *beside, *exported})
    if unsigned := again & set(rest):
        raise SignatureError(STEP, f"nobody signed {min(unsigned)}, and nothing here makes it")
    _allow_unknown(rest, result, rebuilt)
    return rebuilt


def _beside(
    files: Mapping[str, bytes], result: AuditResult, again: AbstractSet[str]
) -> tuple[dict[str, tuple[bytes, ...]], Collection[str]]:
    """What each file beside the reports may be, and the names of the exports.

    Raises:
        SignatureError: if the spec cannot be read.
    """
    here = exports()
    listed: dict[str, tuple[bytes, ...]] = (
        {} if EVIDENCE in again else {EVIDENCE: (evidence_file(result),)}
    )
    if SPEC not in files:
        return listed, [name for name, export in here.items() if export.file in files]
    try:
        loaded = parse(files[SPEC], Path(SPEC))
    except SpecError as error:
        raise SignatureError(STEP, f"{SPEC} is not a spec: {error.message}") from None
    asked = loaded.spec.report.formats
    formats = [n for n, export in here.items() if (export.default if asked is None else n in asked)]
    formats += sorted({*(asked or ())} - {*formats})
    lock = {name: (data,) for name, data in lock_file(result).items()}
    resolved = tuple(resolved_file(way.spec, formats) for way in _ways(loaded))
    return {RESOLVED: resolved} | listed | lock, formats


def _ways(loaded: LoadedSpec) -> tuple[LoadedSpec, ...]:
    """The spec as it stands, and with each policy that `run --fail-on` can put in its place."""
    return (loaded, *(loaded.failing_on(until) for until in ("never", *get_args(Severity))))


def _compare(
    export: Export,
    files: Mapping[str, bytes],
    source: Source,
    rebuilt: Rebuilt,
    again: AbstractSet[str],
) -> None:
    """Hold one report against what is drawn here."""
    name, signer = export.file, source.result.signer
    if name not in files:
        raise SignatureError(STEP, f"{name} is missing, which the spec asks for")
    data = files[name]
    signed = export.pades and signer is not None and signer.pdf is not None and name not in again
    try:
        with blamed("exports", export.name, export):
            export.look_into(data, source)
        rendered = source.rendered(export)
        if is_signed_over(data, rendered) if signed else data == rendered:
            rebuilt.same.append(name)
            return
        other = differences(source.result.run.renderer, printed=export.pades)
        if not other or name in again:
            raise _differs(name, data, rendered)
        with blamed("exports", export.name, export):
            rebuilt.read.append(f"{export.read_back(data, source)} in {name}")
    except (MisreportedError, RefusedPdfError) as error:
        raise SignatureError(STEP, f"{name}: {error}") from None
    rebuilt.because.update(other)


def _allow_unknown(rest: list[str], result: AuditResult, rebuilt: Rebuilt) -> None:
    """Other files may be by exports of plug-ins that were installed there and are not here, and by nothing else."""
    names = exports()
    elsewhere = [
        name
        for name in result.run.renderer
        if name.startswith("exports/") and name.removeprefix("exports/") not in names
    ]
    for name in rest:
        if name in file_names() or len(rest) > len(elsewhere):
            raise SignatureError(
                STEP,
                f"{name} does not follow from results and spec",
                "ask for the packet as it was written",
            )
        rebuilt.read.append(f"nothing in {name}, which no export here makes")
        rebuilt.because.update(f"{name} there, none here" for name in elsewhere)


def _differs(name: str, there: bytes | None, here: bytes) -> SignatureError:
    """Where a file is not what it must be."""
    if there is None:
        return SignatureError(STEP, f"{name} is missing, which results and spec give")
    pairs = enumerate(zip(there, here, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(there), len(here)))
    line = there.count(b"\n", 0, at) + 1
    return SignatureError(
        STEP,
        f"{name} is not what results and spec give: it differs from byte {at} (line {line}) on",
        "ask the auditor for the packet as `auditspec run` wrote it",
    )
