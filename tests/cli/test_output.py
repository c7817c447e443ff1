"""What `run` prints: every verdict has its symbol, and says what it does not clear."""

from pathlib import Path

import pytest
from sample_roles import roles_result

from auditspec.cli.output import print_result


def test_every_verdict_has_a_line_and_its_reservations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = roles_result()
    print_result(result, str(tmp_path), "text")
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    shown = {line[1]: (line[0], line[2]) for line in lines if len(line) > 2}
    for verdict in result.verdicts:
        assert shown[verdict.behavior][1] == verdict.verdict
    assert shown["repaired"][0] == "✓"
    assert shown["self"][0] == "△"
    assert "neither the initial weights nor the first stage is cleared" in out


def test_a_tick_is_for_what_every_gate_lets_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_result(roles_result().model_copy(update={"checks": ()}), str(tmp_path), "text")
    assert "✓" not in capsys.readouterr().out
