"""The sealed process as a process."""

from __future__ import annotations

import os

from auditspec.sealed.start import SealedCode


def test_ctrl_c_is_for_the_audit_alone(sealed: SealedCode) -> None:
    """A terminal tells every process of its foreground group, and the audit alone says what follows."""
    assert os.getsid(sealed.client._process.pid) != os.getsid(0)
