"""What the audited code raises becomes one error with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from auditspec.artifacts.code import CodeBundle
from auditspec.audited_code import code_errors
from auditspec.errors import EstimationError

REFUSED = [
    PermissionError(13, "Permission denied", "/etc/shadow"),
    RuntimeError("InductorError: PermissionError: [Errno 1] Operation not permitted"),
    OSError(1, "Operation not permitted"),
]


@pytest.fixture
def bundle(tmp_path: Path) -> CodeBundle:
    (tmp_path / "code.py").write_text("")
    return CodeBundle.read(tmp_path / "code.py", None)


@pytest.mark.parametrize("error", REFUSED)
def test_what_a_seal_refuses_is_said_to_be_its_refusal(
    bundle: CodeBundle, error: Exception
) -> None:
    with pytest.raises(EstimationError) as caught, code_errors(bundle, sealed=True):
        raise error
    assert "name what it needs as an artifact" in caught.value.remedy


@pytest.mark.parametrize("error", [*REFUSED, KeyError("HF_TOKEN")])
def test_without_a_seal_it_is_no_reason(bundle: CodeBundle, error: Exception) -> None:
    with pytest.raises(EstimationError) as caught, code_errors(bundle):
        raise error
    assert "sealed" not in caught.value.remedy


def test_a_seal_may_be_why_something_is_missing(bundle: CodeBundle) -> None:
    with pytest.raises(EstimationError) as caught, code_errors(bundle, sealed=True):
        raise KeyError("HF_TOKEN")
    assert "none of your environment variables" in caught.value.remedy
