"""The scheduler files have the form that Slurm and Kubernetes take, and keep the key from the audited code."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from auditspec.cli.main import cli

FOLDER = Path(__file__).parents[2] / "examples" / "schedulers"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
NUMBER, SIZE, TIME = r"\d+", r"\d+[KMGT]?", r"(\d+-)?\d+:\d\d:\d\d"
SBATCH = {
    "job-name": r"[\w-]+",
    "nodes": NUMBER,
    "ntasks": NUMBER,
    "ntasks-per-node": NUMBER,
    "gpus-per-node": NUMBER,
    "cpus-per-task": NUMBER,
    "mem": SIZE,
    "time": TIME,
    "requeue": "",
    "open-mode": "append|truncate",
    "output": r"[%\w.-]+",
}
"""Options of sbatch (its manual page) and the form of their values."""
TORCHRUN = {
    "--nnodes",
    "--nproc-per-node",
    "--rdzv-id",
    "--rdzv-backend",
    "--rdzv-endpoint",
    "--max-restarts",
    "--standalone",
}


def documents() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pod specs of a document."""
    spec = document["spec"]
    if document["kind"] == "Job":
        yield spec["template"]["spec"]
    for replica in spec.get("pytorchReplicaSpecs", {}).values():
        yield replica["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def commands() -> Iterator[str]:
    """What every file runs, on one line."""
    for script in SCRIPTS:
        yield script.read_text().replace("\\\n", " ")
    for document in documents():
        for pod in pods(document):
            yield from (" ".join(container["args"]) for container in containers(pod))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash_with_options_that_slurm_knows(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(options)] == options, "sbatch reads options up to the first command"
    for line in options:
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert match, line
        assert re.fullmatch(SBATCH[match[1]], match[2] or ""), line
    assert "set -euo pipefail" in lines


def test_manifests_are_there_and_named() -> None:
    kinds = [(d["apiVersion"], d["kind"]) for d in documents()]
    assert sorted(kinds) == [("batch/v1", "Job"), ("batch/v1", "Job"), ("kubeflow.org/v1", "PyTorchJob")]  # fmt: skip
    names = [d["metadata"]["name"] for d in documents()]
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)


def test_a_pytorchjob_is_what_the_operator_takes() -> None:
    (spec,) = [d["spec"] for d in documents() if d["kind"] == "PyTorchJob"]
    assert spec["elasticPolicy"].keys() <= {"rdzvBackend", "minReplicas", "maxReplicas", "maxRestarts"}  # fmt: skip
    assert spec["elasticPolicy"]["rdzvBackend"] == "c10d"
    assert isinstance(spec["nprocPerNode"], str)
    assert spec["runPolicy"]["cleanPodPolicy"] in ("None", "Running", "All")
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    least, most = (spec["elasticPolicy"][k] for k in ("minReplicas", "maxReplicas"))
    assert 1 <= least <= worker["replicas"] <= most
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    assert [c["name"] for c in worker["template"]["spec"]["containers"]] == ["pytorch"]


@pytest.mark.parametrize("document", [*documents()], ids=lambda d: f"{d['kind']} {d['metadata']['name']}")  # fmt: skip
def test_pods_hold_together(document: dict[str, Any]) -> None:
    for pod in pods(document):
        if document["kind"] == "Job":
            assert pod["restartPolicy"] in ("Never", "OnFailure")
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        kinds = {"configMap", "persistentVolumeClaim", "emptyDir", "secret"}
        assert all(len(v) == 2 and v.keys() - {"name"} <= kinds for v in volumes.values())
        mounted = {m["name"] for c in containers(pod) for m in c["volumeMounts"]}
        assert mounted == volumes.keys()
        for container in containers(pod):
            assert {"name", "image", "command", "args", "resources"} <= container.keys()
            assert all(isinstance(e["value"], str) for e in container.get("env", []))
            limits = container["resources"]["limits"]
            assert re.fullmatch(r"\d+Gi", limits["memory"])
            assert container["resources"]["requests"]["memory"] == limits["memory"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False


def test_no_container_has_both_the_code_and_the_key() -> None:
    sealing = auditing = 0
    for document in documents():
        for pod in pods(document):
            keys = {v["name"] for v in pod["volumes"] if "secret" in v}
            for container in containers(pod):
                ran = " ".join(container["args"])
                has_key = bool(keys & {m["name"] for m in container["volumeMounts"]})
                assert has_key == ("auditspec seal" in ran)
                assert has_key != ("auditspec run" in ran)
                assert not (has_key and "envFrom" in container)
                sealing, auditing = sealing + has_key, auditing + (not has_key)
    assert (sealing, auditing) == (2, 2)
    (audit,) = [s.read_text() for s in SCRIPTS if "auditspec run" in s.read_text()]
    assert "--key" not in audit and "passphrase" not in audit


def test_commands_have_options_that_there_are() -> None:
    """Of torchrun and of auditspec; audits share a cache, are unsigned, and are restarted."""
    seen = []
    for command in commands():
        for run in re.findall(r"torchrun [^|;]*", command):
            torch, _, audit = run.partition(" -m auditspec run ")
            flags = set(re.findall(r"(?<= )--[a-z-]+", torch))
            assert flags <= TORCHRUN, flags
            assert {"--max-restarts", "--nproc-per-node"} <= flags
            assert set(re.findall(r"--[a-z-]+", audit)) == {"--out", "--unsigned"}
            _known("run", audit)
            seen.append("run")
        for audit in re.findall(r"auditspec seal [^;|]*", command):
            _known("seal", audit)
            assert "--passphrase-fd" in audit
            seen.append("seal")
    assert sorted(seen) == ["run"] * 3 + ["seal"] * 3
    assert all("AUDITSPEC_CACHE" in path.read_text() for path in (*MANIFESTS, FOLDER / "audit.sbatch"))  # fmt: skip


def _known(name: str, arguments: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    assert {a for a in shlex.split(arguments) if a.startswith("--")} <= options
