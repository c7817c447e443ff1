"""What whole audits of a GPT cost, exact and at a quarter, beside the training that they audit; and how that grows.

    python -m benchmarks.audit_cost [--rows 8 32] [--steps 60] [--no-growth]

Writes `results/audit_cost.json` and `audit_cost.md`. Every audit is a whole `auditspec run` with an empty cache, of the record of
four stages (settings/gpt.py), in processes of its own on one thread. README.md beside this file says what is measured. Exits 1
where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from auditspec.api import load_spec
from auditspec.budget import allot
from auditspec.estimator.forecast import replay_cost, state_bytes
from auditspec.record.trajectory import Trajectory

from .isolation_cost import ROOT
from .ladder import RESULTS, environment, finite
from .settings.gpt import DATA, RATE
from .settings.larger_tables import HELD, spellings
from .settings.pipeline import HOLDOUT
from .watched import Use, watched

SIZE = "LAYERS, WIDTH, BATCH, STEPS, STAGES = {layers}, {width}, {rows}, {steps}, {stages}\n"
"""The line of the audited code that says how large everything is."""
ROWS = 6_000
"""Of a table; no multiple of the stride of settings/gpt.py."""
SHARE = 0.25
BARS = {8: 0.5, 32: 0.4}
"""A quarter's processor time against the exact audit's, by rows a step."""
EXACT, FORECAST, DISK = 2.5, 0.2, 2.0
"""The exact audit's processor time against training's; how far an audit may be from its forecast; states that may be written."""
GRADIENT_AND_STATE = 4
"""Copies of the weights that training with AdamW holds."""
SLACK = 1.1
"""What counts as linear: increments that double may do so within a tenth."""
HELD_OUT = "long-s"
"""The one behaviour: the loss of held-out rows of the second stage's spelling."""


@dataclass(frozen=True)
class Size:
    """How large model and training are."""

    layers: int = 6
    width: int = 256
    rows: int = 8
    """Of 128 characters, a step."""
    steps: int = 60
    """Of each stage."""
    stages: int = 4


SMALL, LEAST = Size(layers=2, width=64, steps=30), Size(layers=1, width=32, steps=8)
"""What growth is measured of, and what weighs nothing beside the processes themselves."""
AUDITS = ("exact", "quarter", "whole-quarter")
"""Without a budget; with estimates and their errors at a quarter of exact replay's gradients, beside the re-run of the record; all
of it at a quarter of the exact audit's gradients, so that one window of the record is re-run only."""


class Audited:
    """A trained and recorded GPT, and its audits.

    Args:
        size: of it.
        folder: for everything.
    """

    def __init__(self, size: Size, folder: Path) -> None:
        self.size, self.folder = size, folder
        self.scratch = folder / "scratch"
        folder.mkdir(parents=True)
        code = (ROOT / "benchmarks" / "settings" / "gpt.py").read_text()
        default = SIZE.format(**asdict(Size()))
        if default not in code:
            raise SystemExit(f"settings/gpt.py does not say {default!r}")
        (folder / "gpt.py").write_text(code.replace(default, SIZE.format(**asdict(size))))
        for name, rows in _tables().items():
            _frame(rows).to_parquet(folder / f"{name}.parquet")
        self.training = self._run("gpt.py", "plain")
        self.recording = self._run("gpt.py")
        self.trajectory = Trajectory.open(folder / "record")
        self.weights, moments = state_bytes(self.trajectory)
        self.state = self.weights + moments

    def audit(self, name: str) -> dict[str, Any]:
        """What one of `AUDITS` takes."""
        self._write({}, {})
        record = allot(load_spec(self.folder / "audit.yaml").spec, self.trajectory).fidelity
        whole = sum(replay_cost(self.trajectory.stages).values())
        if name == "exact":
            return self._audit(name, {}, {})
        if name == "quarter":
            return self._audit(name, {"gradients": int(record + SHARE * whole)}, {})
        budget = {"gradients": int(SHARE * (record + whole))}
        return self._audit(name, budget, {"record-fidelity": {"windows": 1}})

    def exact(self, ranks: int) -> tuple[Use, list[float]]:
        """What an audit without a budget takes, by so many ranks; its effects."""
        self._write({}, {})
        self._auditspec("digest", "--lock", "audit.yaml", "--update-all")
        packet = self.folder / f"{ranks}.packet"
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
        command = ("run", "audit.yaml", "-q", "--no-cache", "--force", "-o", str(packet))
        use = self._run(*(launcher if ranks > 1 else ()), "-m", "auditspec", *command)
        if not (packet / "results.json").exists():
            raise SystemExit(use.log)
        results = json.loads((packet / "results.json").read_text())
        return use, [effect["value"] for effect in results["effects"]]

    def _audit(
        self, name: str, budget: Mapping[str, int], checks: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What an audit takes; what `plan` forecasts of it."""
        self._write(budget, checks)
        self._auditspec("digest", "--lock", "audit.yaml", "--update-all")
        told = self._auditspec("plan", "audit.yaml", "--measure", "--format", "json").log
        plan = json.loads(told[told.index("{") :])
        chosen = {c["method"] for c in plan["choices"] if c["gradients"]}
        packet = self.folder / f"{name}.packet"
        use = self._auditspec(
            "run", "audit.yaml", "-q", "--cache", str(self.scratch / "cache"), "-o", str(packet)
        )
        found = {
            "budget": budget.get("gradients"),
            "methods": sorted(chosen),
            "forecast": plan["whole_audit"],
            "refused": plan["refused"],
            "verdicts": {},
        } | {key: value for key, value in asdict(use).items() if key != "log"}
        if not (packet / "results.json").exists():
            return found | {"refused": plan["refused"] or use.log.strip()}
        results = json.loads((packet / "results.json").read_text())
        verdicts = {v["behavior"]: v["verdict"] for v in results["verdicts"]}
        return found | {"verdicts": verdicts}

    def _write(self, budget: Mapping[str, int], checks: Mapping[str, Any]) -> None:
        spec = _spec(self.size) | {"estimator": {"budget": dict(budget)}, "checks": dict(checks)}
        (self.folder / "audit.yaml").write_text(json.dumps(spec, indent=1))

    def _auditspec(self, *arguments: str) -> Use:
        return self._run("-m", "auditspec", *arguments)

    def _run(self, *arguments: str) -> Use:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        untold = {"OMP_NUM_THREADS": "1", "AUDITSPEC_SELF_CHECK": "0", "PYTHONPATH": paths}
        variables = {**os.environ, **untold, "TMPDIR": str(self.scratch)}
        return watched([sys.executable, *arguments], self.folder, self.scratch, variables)


def _tables() -> dict[str, Tensor]:
    """Characters of some rows of every stage, and of those that are held out: [N, 129]."""
    tables = {name: torch.cat([x, y[:, -1:]], 1) for name, (x, y) in spellings().items()}
    trained = {name: tables[name][:: len(tables[name]) // ROWS][:ROWS] for name in DATA}
    return trained | {HELD_OUT: tables[HOLDOUT][HELD : 2 * HELD]}


def _frame(rows: Tensor) -> pd.DataFrame:
    return pd.DataFrame(rows.numpy(), columns=[f"c{place}" for place in range(rows.shape[1])])


def _spec(size: Size) -> dict[str, Any]:
    files = {"code": "gpt.py", "record": "record", "final": "model.safetensors"}
    files |= {name: f"{name}.parquet" for name in (*DATA, HELD_OUT)}
    return {
        "auditspec": "1",
        "audit": {"id": "audit-cost", "title": "What an audit costs"},
        "auditor": {"name": "Benchmark", "organization": "Example Office", "role": "Measures", "independence": "None needed."},
        "system": {"name": "Speller", "version": "1.0", "owner": "Example team", "intended_use": "Benchmarks."},
        "model": {"factory": "gpt:build_model", "load_batch": "gpt:load_batch", "checkpoint": "final"},
        "artifacts": {name: {"path": path} for name, path in files.items()},
        "stages": [
            {
                "id": f"stage-{stage}", "owner": f"Supplier {stage}", "description": DATA[stage % len(DATA)],
                "data": [DATA[stage % len(DATA)]], "objective": "gpt:objective",
                "optimizer": {"name": "AdamW", "lr": RATE, "state": "reset"},
            }
            for stage in range(size.stages)
        ],
        "behaviors": [
            {
                "id": HELD_OUT, "description": "The model writes the long s", "data": HELD_OUT,
                "metric": {"name": "custom", "entrypoint": "gpt:loss", "unit": "nats"},
                "concern": {"direction": "decrease", "limit": 2.5, "tolerance": 0.01, "severity": "high"},
            }
        ],
    }  # fmt: skip


def measure_audits(size: Size, folder: Path, audits: Sequence[str] = AUDITS) -> dict[str, Any]:
    """Training and its audits."""
    audited = Audited(size, folder)
    found: dict[str, Any] = {
        "size": asdict(size),
        "weights": audited.weights,
        "state": audited.state,
        "training": _plain(audited.training),
        "recording": _plain(audited.recording),
    }
    for name in audits:
        found[name] = audited.audit(name)
        _say(
            f"{_title(size)}, {name}: {found[name]['cpu']:.0f} s of {found['training']['cpu']:.0f} s of training"
        )
    shutil.rmtree(folder)
    return found


def measure_growth(folder: Path) -> dict[str, dict[str, Any]]:
    """The same of a small model, of more steps, more parameters, more stages."""
    sizes = {f"steps x {n}": replace(SMALL, steps=n * SMALL.steps) for n in (1, 2, 4, 8)}
    sizes |= {"parameters x 11": replace(SMALL, width=224), "stages x 2": replace(SMALL, width=224, stages=8)}  # fmt: skip
    return {name: measure_audits(size, folder / name, AUDITS[:2]) for name, size in sizes.items()}


def _plain(use: Use) -> dict[str, Any]:
    return {key: value for key, value in asdict(use).items() if key != "log"}


def lines_of(
    found: Mapping[str, Any], least: Mapping[str, Any]
) -> Iterator[tuple[str, float, float]]:
    """What is held against a bar: in words, as measured, and at most.

    Args:
        found: of a model.
        least: of one that weighs nothing.
    """
    base, arms = found["training"], found["size"]["stages"] - 1
    rows, name = found["size"]["rows"], _title(Size(**found["size"]))
    exact, copies = found["exact"], GRADIENT_AND_STATE * found["weights"]
    others = least["exact"]["memory"] + base["memory"] - least["training"]["memory"] - copies
    yield f"{name}: exact / training, processor time", exact["cpu"] / base["cpu"], EXACT
    for part in AUDITS:
        audit = found[part]
        if audit["refused"]:
            continue
        if part != "exact":
            yield f"{name}: {part} / exact, processor time", audit["cpu"] / exact["cpu"], BARS[rows]
        held = audit["memory"] - others
        yield f"{name}: {part}, states in memory", held / found["state"], arms + 4
        yield from lines_of_forecast(f"{name}: {part}", audit)
        yield f"{name}: {part}, states written beside the record", audit["disk"] / found["state"], DISK  # fmt: skip


def lines_of_forecast(name: str, audit: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """How far an audit was off what `plan --measure` said of it, in shares of that."""
    for figure, forecast in (("cpu", "seconds"), ("memory", "memory"), ("disk", "disk")):
        if audit["forecast"]:
            off = abs(audit[figure] / audit["forecast"][forecast] - 1)
            yield f"{name}, {forecast} off the forecast", off, FORECAST


def lines_of_growth(growth: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """The same of how costs grow."""
    for part in ("exact", "quarter"):
        once, twice, four, eight = (growth[f"steps x {n}"][part]["cpu"] for n in (1, 2, 4, 8))
        yield f"growth, {part}: steps x 2 to x 4 over x 1 to x 2", (four - twice) / (twice - once), 2 * SLACK  # fmt: skip
        yield f"growth, {part}: steps x 4 to x 8 over x 2 to x 4", (eight - four) / (four - twice), 2 * SLACK  # fmt: skip
        small, large = growth["steps x 1"], growth["parameters x 11"]
        more = large["weights"] / small["weights"]
        yield f"growth, {part}: time, parameters x {more:.0f}", large[part]["cpu"] / small[part]["cpu"], more  # fmt: skip
        double = growth["stages x 2"][part]["memory"] / large[part]["memory"]
        yield f"growth, {part}: memory of the process, stages x 2", double, 2.0


def table(result: Mapping[str, Any]) -> str:
    """What was measured, and the bars, in Markdown."""
    lines = [
        "| audit of | training | recording | audit | processor time | memory | forecast | written | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in (*result["audits"], *result["growth"].values()):
        begin = f"{_title(Size(**found['size']))} | {found['training']['cpu']:.0f} s | {found['recording']['cpu']:.0f} s"
        for part in (name for name in AUDITS if name in found):
            audit = found[part]
            forecast = (audit["forecast"] or {}).get("memory")
            told = audit["refused"] or ", ".join(audit["methods"])
            lines.append(
                f"| {begin} | {part} | {audit['cpu']:.0f} s | {_mb(audit['memory'])} | {_mb(forecast) if forecast else ''} "
                f"| {_mb(audit['disk'])} | {told.splitlines()[0]} |"
            )
    lines += ["", "| figure | measured | bar | |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {figure:.2f} | {bar:g} | {'met' if figure <= bar else 'MISSED'} |"
        for what, figure, bar in result["figures"]
    ]
    return "\n".join(lines) + "\n"


def _title(size: Size) -> str:
    return f"{size.layers} x {size.width}, {size.rows} x 128 characters, {size.stages} x {size.steps} steps"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=list(BARS), choices=list(BARS))
    parser.add_argument("--steps", type=int, default=Size.steps)
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        audits = [
            measure_audits(Size(rows=rows, steps=asked.steps), folder / str(rows))
            for rows in asked.rows
        ]
        least = measure_audits(LEAST, folder / "least", AUDITS[:1])
        growth = {} if asked.no_growth else measure_growth(folder)
    figures = [line for found in audits for line in lines_of(found, least)]
    figures += list(lines_of_growth(growth)) if growth else []
    command = f"python -m benchmarks.audit_cost {shlex.join(sys.argv[1:])}".strip()
    result = {"command": command, "versions": environment(), "least": least, "audits": audits, "growth": growth, "figures": figures}  # fmt: skip
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "audit_cost.json").write_text(json.dumps(finite(result), indent=1) + "\n")
    (asked.out / "audit_cost.md").write_text(table(result))
    print(table(result))
    return 0 if all(figure <= bar for _, figure, bar in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
