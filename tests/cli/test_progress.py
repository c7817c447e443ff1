from __future__ import annotations

import sys

import pytest

from auditspec.cli import progress
from auditspec.cli.progress import Lines, progress_on_stderr
from auditspec.progress import SILENT


@pytest.mark.parametrize(("worth", "told"), [(0.0, True), (60.0, False)])
def test_long_phases_have_a_line_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, worth: float, told: bool
) -> None:
    monkeypatch.setattr(progress, "WORTH_A_LINE", worth)
    with Lines().phase("training without one", 12) as advance:
        advance(12)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("training without one: 0.0 s, 12 steps") is told
    assert bool(err) is told


def test_a_phase_that_fails_says_nothing_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WORTH_A_LINE", 0.0)
    with pytest.raises(KeyError), Lines().phase("failing"):
        raise KeyError("x")
    assert capsys.readouterr().err == ""


def test_quiet_is_silent_and_pipes_get_lines() -> None:
    with progress_on_stderr(quiet=True) as quiet:
        assert quiet is SILENT
    with progress_on_stderr(quiet=False) as piped:
        assert isinstance(piped, Lines)


def test_a_terminal_gets_bars_that_leave_nothing_behind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_on_stderr(quiet=False) as bars:
        assert not isinstance(bars, Lines)
        with bars.phase("known", 3) as advance:
            advance(2)
        with pytest.raises(KeyError), bars.phase("unknown") as advance:
            advance(1)
            raise KeyError("x")
    assert capsys.readouterr().out == ""
