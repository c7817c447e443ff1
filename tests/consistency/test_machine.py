"""What a spec asks of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import SPEC_TEXT, write_spec

from auditspec.consistency.check import require_keys
from auditspec.errors import SpecError
from auditspec.spec.source import load


def test_an_export_that_is_not_installed(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, SPEC_TEXT + "report:\n  formats: [html, htlm]\n")
    with pytest.raises(SpecError) as caught:
        require_keys(load(spec))
    (problem,) = caught.value.problems
    assert (problem.code, problem.hint) == ("AS092", "did you mean 'html'?")
    assert (problem.line, problem.column) == (SPEC_TEXT.count("\n") + 2, 19)
