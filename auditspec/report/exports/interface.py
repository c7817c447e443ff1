"""What an export of the results is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from auditspec.artifacts.digest import digest_bytes
from auditspec.collector import unsearched
from auditspec.plugins import blamed
from auditspec.report.exports.readback import MisreportedError
from auditspec.results import AuditResult


class Source:
    """The results that exports are made from, and what was already made from them."""

    def __init__(self, result: AuditResult, data: bytes | None = None) -> None:
        """Take the results.

        Args:
            result: what the audit found.
            data: the bytes of results.json; None: those that a packet of `result` gets.
        """
        self.result = result
        self.data = (result.model_dump_json(indent=1) + "\n").encode() if data is None else data
        self._rendered: dict[str, bytes] = {}

    @property
    def digest(self) -> str:
        """Digest of the bytes of results.json."""
        return digest_bytes(self.data)

    def rendered(self, export: Export) -> bytes:
        """What an export makes of the results; made once, however many build on it.

        Raises:
            UsageError: if a plug-in fails.
        """
        if export.name not in self._rendered:
            with blamed("exports", export.name, export), unsearched():
                self._rendered[export.name] = export.render(self)
        return self._rendered[export.name]


class Export(ABC):
    """A form in which results are handed out: a file of the packet, made from results.json alone."""

    name: ClassVar[str]
    """In the spec's `report.formats`, and after `render --format`."""
    file: ClassVar[str]
    """In the packet."""
    media_type: ClassVar[str]
    """Of the file (RFC 6838)."""
    default: ClassVar[bool] = False
    """Whether it is made where nobody says which."""
    pades: ClassVar[bool] = False
    """Whether it is a PDF, which can carry a signature of its own (PAdES)."""

    @abstractmethod
    def render(self, source: Source) -> bytes:
        """The file; the same bytes for the same results."""

    def look_into(self, data: bytes, source: Source) -> None:  # noqa: B027 - most carry nothing
        """Refuse a file that cannot be of these results, before anything is made again to compare it with; cheap.

        Raises:
            MisreportedError: if it carries others.
        """

    def read_back(self, data: bytes, source: Source) -> str:
        """Hold a file that was looked into against the results that it must show.

        Unless an export knows better, the file is made again, and every byte must be the same.

        Returns:
            What was compared, for whoever verifies: `312 numbers`.

        Raises:
            MisreportedError: if it shows something else; the text says where.
        """
        if source.rendered(self) != data:
            raise MisreportedError("it is not what the results give here")
        return "every byte"
