"""The packet on disk: its files, and how they appear all at once.

A packet is written in a hidden folder beside its destination and then renamed, so that whoever looks
at the destination sees a whole packet or none, whatever happens to the writer. One that is replaced is exchanged at one
moment where the system can. Any number may write to one destination: names change under a lock on the folder around it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from auditspec import bill_of_materials
from auditspec.artifacts import strict_json
from auditspec.artifacts.files import exchanged, sync_folder
from auditspec.artifacts.locks import hold, is_abandoned, locked
from auditspec.errors import EvidenceError, UsageError
from auditspec.report.exports import Export, Source, exports
from auditspec.report.exports.json import Json
from auditspec.results import VERSION, AuditResult
from auditspec.sign.disclosure import FILE as DISCLOSURE
from auditspec.sign.disclosure import Disclosure
from auditspec.sign.dsse import Envelope
from auditspec.sign.signer import Signer
from auditspec.sign.statement import PAYLOAD_TYPE, Statement
from auditspec.withheld import opened, withheld_in

if TYPE_CHECKING:
    from auditspec.sign.credentials import Credentials

SPEC = "spec.yaml"
LOCK = "spec.lock.json"
RESOLVED = "spec.resolved.json"
EVIDENCE = "evidence.json"
ENVIRONMENT = bill_of_materials.FILE
RESULTS = Json.file
ENVELOPE = "packet.dsse.json"
INCLUSION = "packet.log.json"

REQUIRED = (SPEC, RESOLVED, EVIDENCE, RESULTS)
"""Files that every packet holds."""
SIDECARS = (ENVELOPE, DISCLOSURE, INCLUSION)
"""Files that no envelope lists: the envelope itself, what opens it, and what is made after it."""
AS_SIGNED = (SPEC, LOCK, RESOLVED, ENVIRONMENT)
"""Files that stand in a packet as they were signed, or not at all."""


_OTHER = re.compile(r"[a-z0-9][a-z0-9_-]*\.[a-z0-9]+")


def file_names() -> tuple[str, ...]:
    """Every file that a packet may hold, without those that are made after it is sealed.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    reports = (export.file for export in exports().values() if export.file not in REQUIRED)
    return (*REQUIRED, LOCK, ENVIRONMENT, *reports)


def confusable(name: str) -> str:
    """Why a file of this name does not belong into a packet; empty where it may.

    Beside the files that packets hold, an export that is not installed here may have put one of a plain name.
    """
    known = {*file_names(), *SIDECARS}
    if name in known or _OTHER.fullmatch(name):
        return ""
    folded = unicodedata.normalize("NFKC", name).casefold()
    like = [other for other in sorted(known) if other == folded]
    return f"reads like {like[0]}, and is not" if like else "no packet holds a file of such a name"


def decode_results(data: bytes, what: str) -> AuditResult:
    """The results in a `results.json`; `what` names it in errors.

    Raises:
        EvidenceError: if it is not strict JSON, of another version of the format, or malformed.
    """
    document = strict_json.parse(data, what)
    written = document.get("auditspec_results", VERSION) if isinstance(document, dict) else VERSION
    if written != VERSION:
        raise EvidenceError(
            f"{what} is of format auditspec-results-{written}, and this version of auditspec reads "
            f"auditspec-results-{VERSION}",
            "use the version of auditspec that wrote it",
        )
    return read_results(document, what)


def read_results(document: Any, what: str) -> AuditResult:
    """The results that a document holds, some of which may be withheld.

    Raises:
        EvidenceError: if it is malformed.
    """
    try:
        withheld = withheld_in(document)
        if not withheld:
            return strict_json.fit(AuditResult, document, what)
        return opened(AuditResult, document).less(withheld)
    except ValueError as error:
        raise EvidenceError(f"{what}: {error}") from None


class PacketWriter:
    """Writes a packet; leaving the with-block publishes it, an exception discards it.

        with PacketWriter(destination) as packet:
            packet.write(RESULTS, data)
            packet.seal(signer, result)

    Raises:
        UsageError: if the destination is taken (with `replace`: by something that is not a packet),
            or its folder cannot be written.
    """

    def __init__(self, destination: Path, replace: bool = False) -> None:
        self._destination = destination.absolute()
        self._replace = replace
        self._contents: dict[str, bytes] = {}
        self._folder = self._sibling("new")
        self._held = contextlib.ExitStack()

    def __enter__(self) -> PacketWriter:
        around = self._destination.parent
        with contextlib.ExitStack() as stack:
            try:
                around.mkdir(parents=True, exist_ok=True)
                with locked(around):
                    self._clean_up_after_the_dead()
                    self._refuse_taken()
                    self._folder.mkdir()
                    hold(self._folder, stack)
            except OSError as error:
                raise self._unwritable(error) from None
            self._held = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._refuse_incomplete()
                self._publish()
        except OSError as failure:
            raise self._unwritable(failure) from None
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._held.close()

    def write(self, name: str, data: bytes) -> None:
        """Add one file.

        Raises:
            UsageError: if a packet has no such file, it was written before, the packet is sealed, or the
            disk is full.
        """
        if name not in (names := file_names()):
            raise UsageError(f"{name}: a packet has no such file", f"one of {', '.join(names)}")
        if name in self._contents or ENVELOPE in self._contents:
            raise UsageError(f"{name}: written twice, or after the packet was sealed")
        self._put(name, data)

    def write_exports(
        self, source: Source, wanted: Iterable[Export], credentials: Credentials | None
    ) -> None:
        """Add the results and the exports that are wanted; a PDF with its signature, where there is to be one.

        Raises:
            UsageError: as `write`, and if a PDF cannot be signed.
        """
        self.write(RESULTS, source.data)
        for export in wanted:
            if export.file == RESULTS:
                continue
            data = source.rendered(export)
            if export.pades and credentials is not None and credentials.level is not None:
                from auditspec.sign.pdf import sign_pdf

                data = sign_pdf(data, credentials)
            self.write(export.file, data)

    def seal(
        self,
        signer: Signer,
        result: AuditResult,
        certificates: Sequence[bytes] = (),
        stamp: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Sign the digests of all files written so far, and the facts of `result`.

        `certificates` and `stamp` are those of `Envelope.signed_by`.

        Raises:
            UsageError: if a file that every packet has was not written, or the results name another
            signer.
        """
        self._refuse_incomplete()
        if result.signer is not None and result.signer.keyid != signer.keyid:
            raise UsageError(
                f"the results name the signer {result.signer.keyid[:16]}…, the key is {signer.keyid[:16]}…"
            )
        disclosure = Disclosure.fresh(self._contents)
        statement = Statement.of(result, self._contents, disclosure)
        envelope = Envelope(PAYLOAD_TYPE, statement.encode())
        envelope = envelope.signed_by(signer, certificates, stamp)
        self.close(envelope, disclosure)

    def close(
        self, envelope: Envelope, disclosure: Disclosure, inclusion: bytes | None = None
    ) -> None:
        """Add what was signed elsewhere about these files; nothing can be written after it.

        Args:
            envelope: the signatures.
            disclosure: what opens them.
            inclusion: where the packet stands in a log.
        """
        self._put(ENVELOPE, envelope.encode())
        self._put(DISCLOSURE, disclosure.encode())
        if inclusion is not None:
            self._put(INCLUSION, inclusion)

    # --- publishing

    def _put(self, name: str, data: bytes) -> None:
        try:
            with (self._folder / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        self._contents[name] = data

    def _publish(self) -> None:
        """Rename the finished folder to its place; an old packet takes its name, and is removed after."""
        sync_folder(self._folder)
        around = self._destination.parent
        with locked(around):
            self._refuse_taken()
            if not os.path.lexists(self._destination):
                self._folder.rename(self._destination)
            elif not exchanged(self._folder, self._destination):
                self._replace_in_two_steps()
            sync_folder(around)

    def _replace_in_two_steps(self) -> None:
        aside = self._sibling("old")
        self._destination.rename(aside)
        try:
            self._folder.rename(self._destination)
        except OSError:
            aside.rename(self._destination)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def _unwritable(self, error: OSError) -> UsageError:
        return UsageError(
            f"{self._destination}: cannot be written ({error.strerror})",
            "choose another folder for the packet",
        )

    def _refuse_incomplete(self) -> None:
        signed_elsewhere = AS_SIGNED if ENVELOPE in self._contents else ()
        missing = [n for n in REQUIRED if n not in self._contents and n not in signed_elsewhere]
        if missing:
            raise UsageError(
                f"the packet lacks {', '.join(missing)}", "write every file before it ends"
            )

    def _refuse_taken(self) -> None:
        """Refuse a destination that holds something; with `replace`, unless it is a packet."""
        place = self._destination
        if not os.path.lexists(place):
            return
        if place.is_symlink() or not place.is_dir():
            raise UsageError(f"{place}: exists, and is not a folder", "choose another name")
        names = {entry.name for entry in place.iterdir()}
        if not names:
            return
        if not self._replace:
            raise UsageError(
                f"{place}: exists and is not empty",
                "choose another folder, or add --force to replace a packet",
            )
        if RESULTS not in names or not names <= {*file_names(), *SIDECARS}:
            raise UsageError(
                f"{place}: holds something other than a packet, so it is not replaced",
                "choose another folder",
            )

    # --- temporary folders

    def _sibling(self, state: str) -> Path:
        """A hidden name beside the destination that says whose it is: `.NAME.auditspec-PID-XXXX.new`."""
        tag = f"{os.getpid()}-{secrets.token_hex(4)}.{state}"
        return self._destination.with_name(f".{self._destination.name}.auditspec-{tag}")

    def _clean_up_after_the_dead(self) -> None:
        """Remove what killed writers left; put back an old packet that was never replaced."""
        for folder, state in self._abandoned():
            if state == "old" and not os.path.lexists(self._destination):
                folder.rename(self._destination)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def _abandoned(self) -> Iterator[tuple[Path, str]]:
        """Temporary folders of this destination whose process is gone, with their state."""
        ours = re.compile(
            re.escape(f".{self._destination.name}.auditspec-") + r"(\d+)-[0-9a-f]{8}\.(new|old)"
        )
        for entry in sorted(self._destination.parent.iterdir()):
            match = ours.fullmatch(entry.name)
            if not match or entry.is_symlink() or not entry.is_dir():
                continue
            if is_abandoned(entry, int(match[1])):
                yield entry, match[2]
