"""The small audit, trained under seal: every stage committed to, logged, and followed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import small_audit
from click.testing import CliRunner
from small_audit import edit_spec, lock

from auditspec.cli.main import cli
from auditspec.sign import keys
from auditspec.sign.dsse import Envelope

STAGES = ("base", "labels", "polish")
IMPORTS = "from auditspec import Dataset, Recorder\n"
BEGINS = "            with recorder.stage("
SEALS = """\
            batches = [
                [(11 * step + 7 * number + 5 * i) % 80 for i in range(16)] for step in range(steps)
            ]
            commitment = recorder.commit(
                name, optimizer, objective, Plan(batches), code="small_training.py", dataset=data
            )
            seal_commitment(commitment, trainer, f"{name}.dsse.json")
"""
TRAINING = (
    small_audit.TRAINING.replace(
        IMPORTS, "from auditspec import Dataset, Plan, Recorder, seal_commitment, sealer\n"
    )
    .replace(BEGINS, SEALS + BEGINS)
    .replace(
        "    with Recorder(",
        '    trainer = sealer("trainer.key", log="log", log_key="log.key")\n    with Recorder(',
    )
)


def make(folder: Path, training: str = TRAINING) -> Path:
    """Train, sign the record, and write the spec; gives its path."""
    for name in ("trainer", "log"):
        key = keys.generate("ed25519")
        keys.write_private(folder / f"{name}.key", key)
        keys.write_public(folder / f"{name}.pub", key.public_key())
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AUDITSPEC_STATE", str(folder / "state"))
        spec = small_audit.make(folder, training)
    sign(folder)
    edit_spec(spec, name_commitments)
    lock(spec)
    return spec


def sign(folder: Path) -> None:
    """Sign the record, and enter that into the log."""
    run(folder, "record", "sign", str(folder / "record"))


def commit(folder: Path, stage: str) -> None:
    """Sign once more what was committed to for a stage, and enter that into the log."""
    sealed = folder / f"{stage}.dsse.json"
    plan = folder / f"{stage}.json"
    plan.write_bytes(Envelope.decode(sealed.read_bytes()).payload)
    run(folder, "record", "commit", str(plan), "-o", str(sealed))


def run(folder: Path, *command: str) -> None:
    """A command of the trainer, who keeps the log too."""
    key, log, log_key = (str(folder / name) for name in ("trainer.key", "log", "log.key"))
    options = ["--key", key, "--log", log, "--log-key", log_key]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AUDITSPEC_STATE", str(folder / "state"))
        CliRunner().invoke(cli, [*command, *options], catch_exceptions=False)


def name_commitments(spec: dict[str, Any]) -> None:
    sealed = {"signed_by": "trainer.pub", "dated_by": {"log": "log.pub"}}
    spec["artifacts"]["record"] |= sealed
    for stage in spec["stages"]:
        stage["commitment"] = f"plan-{stage['id']}"
        spec["artifacts"][f"plan-{stage['id']}"] = {"path": f"{stage['id']}.dsse.json"} | sealed


def copied(trained: Path, folder: Path) -> Path:
    """The spec of a copy."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("__pycache__", "packet"))
    return folder / "audit.yaml"
