"""The sealed process as a process."""

from __future__ import annotations

import os
import time

from auditspec.sealed.start import SealedCode


def test_ctrl_c_is_for_the_audit_alone(sealed: SealedCode) -> None:
    """A terminal tells every process of its foreground group, and the audit alone says what follows."""
    assert os.getsid(sealed.client._process.pid) != os.getsid(0)


def test_what_it_printed_is_shown_when_it_is_ended(sealed: SealedCode, printed: list[str]) -> None:
    """Not when its buffer is full, since it is killed."""
    sealed.load("sealed_sample:say")("half a line", False)
    sealed.load("sealed_sample:say")(" and the rest", True)
    deadline = time.monotonic() + 5
    while "half a line and the rest" not in printed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "half a line and the rest" in printed
