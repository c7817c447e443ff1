"""`torchrun -m auditspec run`: several ranks say what one process says; one that is killed is survived."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_audit import CODE, TRAINING, edit_spec, make

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
SLOW = TRAINING.replace(
    "    return F.cross_entropy(model(batch[0]), batch[1])",
    "    import time\n    time.sleep(0.05 * (len(batch[0]) == 16))\n    return F.cross_entropy(model(batch[0]), batch[1])",
)


def started(
    spec: Path, *launcher: str, out: str, cache: Path | None = None
) -> subprocess.Popen[str]:
    where = ("--no-cache",) if cache is None else ("--cache", str(cache))
    command = [*launcher, "-m", "auditspec", "run", spec.name, "-o", out, *where]
    return subprocess.Popen(
        command, cwd=spec.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def audited(spec: Path, ranks: int, out: str) -> dict[str, Any]:
    """Results of an audit by so many ranks."""
    launcher = (*TORCHRUN, "--nproc-per-node", str(ranks)) if ranks > 1 else (sys.executable,)
    process = started(spec, *launcher, out=out)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 or ranks == 1, said
    found: dict[str, Any] = json.loads((spec.parent / out / "results.json").read_text())
    return found


def numbers(found: dict[str, Any]) -> list[float]:
    """Levels of every run, effects, errors."""
    levels = [x for path in found["paths"] for x in _floats(path)]
    return [*levels, *_floats(found["effects"])]


def _floats(value: object) -> list[float]:
    if isinstance(value, dict):
        return [x for v in value.values() for x in _floats(v)]
    if isinstance(value, list):
        return [x for v in value for x in _floats(v)]
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize(
    ("ranks", "estimator", "within"),
    [
        (2, {"dtype": "float32"}, 1e-6),
        (4, {"dtype": "float64"}, 1e-10),
        (2, {"method": "paired-replay", "budget": {"gradients": 76}}, 1e-6),
        (2, {"method": "sub-batch-replay", "budget": {"gradients": 76}}, 1e-6),
    ],
)
def test_several_ranks_say_what_one_process_says(
    audit_spec: Path, ranks: int, estimator: dict[str, Any], within: float
) -> None:
    edit_spec(audit_spec, lambda data: data["estimator"].update(estimator))
    alone = audited(audit_spec, 1, "alone")
    together = audited(audit_spec, ranks, "together")
    assert all(e["exact"] for e in alone["estimates"]) == ("budget" not in estimator)
    assert numbers(together) == pytest.approx(numbers(alone), rel=within, abs=within)
    assert [v["verdict"] for v in together["verdicts"]] == [v["verdict"] for v in alone["verdicts"]]
    once, taken = alone["run"]["gradients"], together["run"]["gradients"]
    if estimator.get("method") == "sub-batch-replay":  # each rank makes the recorded run's steps
        assert once < taken < ranks * once
    else:
        assert taken == pytest.approx(once)
    placebos = [
        [d for c in found["checks"] if c["id"] == "placebo" for d in c["details"]]
        for found in (alone, together)
    ]
    assert placebos[0]
    assert _floats(placebos[1]) == pytest.approx(_floats(placebos[0]), rel=within, abs=within)
    fidelity = [
        next(c for c in found["checks"] if c["id"] == "record-fidelity")
        for found in (alone, together)
    ]
    assert fidelity[0]["gradients"] == fidelity[1]["gradients"]
    assert [d["subject"] for d in fidelity[0]["details"]] == [
        d["subject"] for d in fidelity[1]["details"]
    ]


def test_two_machines_meet(audit_spec: Path) -> None:
    """Two agents of torchrun, each with a rank of its own, by rendezvous on the loopback."""
    alone = audited(audit_spec, 1, "alone")
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}")
    launcher = (*TORCHRUN[:-1], "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "audit")
    agents = [started(audit_spec, *launcher, *meeting, out="together") for _ in range(2)]
    said = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert sum("executing" in one for one in said) == 1
    together = json.loads((audit_spec.parent / "together" / "results.json").read_text())
    assert numbers(together) == pytest.approx(numbers(alone), rel=1e-6, abs=1e-6)


def test_ranks_that_no_agent_watches(audit_spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by a scheduler, one command a rank: the gate's exit status is the first rank's own."""
    alone = audited(audit_spec, 1, "alone")
    around = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    ranks = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        ranks.append(started(audit_spec, sys.executable, out="together"))
    said = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [alone["gate"]["exit_code"], 0], said
    together = json.loads((audit_spec.parent / "together" / "results.json").read_text())
    assert numbers(together) == pytest.approx(numbers(alone), rel=1e-6, abs=1e-6)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_a_rank_that_is_killed_is_survived(tmp_path: Path) -> None:
    """The launcher starts all again; what had been finished, or noted, is not made again."""
    spec = make(tmp_path, SLOW)
    expected = audited(spec, 1, "alone")
    cache = tmp_path / "cache"
    launcher = (*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "2")
    process = started(spec, *launcher, out="packet", cache=cache)
    until = time.monotonic() + 120
    while not list(cache.glob("*.journal.*")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(_rank(process.pid, 1), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    found = json.loads((spec.parent / "packet" / "results.json").read_text())
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-6, abs=1e-6)
    assert said.count(f"executing {CODE}") == 2  # once a start, by the first rank alone
    shutil.rmtree(cache)


def test_ranks_on_other_evidence_make_nothing(audit_spec: Path) -> None:
    """Where the evidence is wrong, the first rank says so, and no rank executes anything."""
    code = audit_spec.parent / CODE
    code.write_text(code.read_text() + "\nprint('was ' + 'executed')\n")
    process = started(audit_spec, *TORCHRUN, "--nproc-per-node", "2", out="packet")
    said, _ = process.communicate(timeout=300)
    assert "was executed" not in said
    assert "the gate's exit status is 3" in said


def _rank(launcher: int, rank: int) -> int:
    """The process of a rank: the launcher starts them in their order."""
    listed = Path(f"/proc/{launcher}/task").glob("*/children")
    return sorted(int(child) for file in listed for child in file.read_text().split())[rank]
