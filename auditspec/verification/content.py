"""What is examined behind the fence: the files of a packet, and what they are held against."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from auditspec.sign.disclosure import Disclosure
from auditspec.sign.redaction import Disclosures
from auditspec.sign.statement import Statement
from auditspec.verification.expectation import Expectation
from auditspec.verification.signatures import Signing
from auditspec.verification.trust import Trust


@dataclass(frozen=True)
class Content:
    """A packet whose files are those that were signed, and what they are held against."""

    files: Mapping[str, bytes]
    statement: Statement
    """What was signed about them."""
    disclosure: Disclosure
    """What opens it."""
    signings: tuple[Signing, ...]
    """Good signatures by whom the policy names."""
    makers: frozenset[str]
    """Ids of all keys that are shown to have signed, whoever vouches for them."""
    trust: Trust | None
    now: dt.datetime
    expected: Expectation
    disclosures: Disclosures | None

    @property
    def again(self) -> frozenset[str]:
        """Listed files that are not as they were signed: made again without what is withheld, or left out."""
        return frozenset(self.statement.listed.keys() - self.disclosure.files.keys())
