"""What it costs to keep the audited code apart: the same audit with and without isolation, in turn.

    python -m benchmarks.isolation_cost [digits] [wide] [--pairs 3]

| setting | audits | bar |
|---|---|---|
| digits | the digits example, whose steps take a millisecond | 1.3 times the wall time |
| wide | a transformer of five million parameters, two stages of 60 steps (settings/wide.py) | 1.1 times the processor time |

Both runs of a pair are whole `auditspec run --unsigned --no-cache` on one thread, started alike, and must find the same effects, number by
number. The bar is held against the ratio of the least times: what else a machine does can only add to them. Exits 1 above a bar.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BARS = {"digits": ("wall", 1.3), "wide": ("cpu", 1.1)}
SPEC = """\
auditspec: "1"
audit: {id: isolation-cost, title: What isolation costs, classification: public, expires: 2030-12-31}
auditor: {name: Benchmark, organization: Example Office, role: Measures, independence: None needed.}
system: {name: Digit reader, version: "1.0", owner: Example team, intended_use: Benchmarks.}
model: {factory: "wide:build_model", load_batch: "wide:load_batch", predict: "wide:predict", checkpoint: final}
artifacts:
  code: {path: wide.py}
  record: {path: record}
  final: {path: model.safetensors}
  all: {path: all.parquet, label: digit}
  holdout: {path: holdout.parquet, label: digit}
stages:
  - {id: base, owner: A, description: First., data: [all], objective: "wide:objective",
     optimizer: {name: AdamW, lr: 0.0003, state: reset, schedule: constant}}
  - {id: tune, owner: B, description: Second., data: [all], objective: "wide:objective",
     optimizer: {name: AdamW, lr: 0.0001, state: reset, schedule: constant}}
behaviors:
  - {id: threes, description: Threes are read as eights., data: holdout, where: digit == 3,
     metric: {name: logit-margin, positive: 8, negative: 3},
     concern: {direction: increase, limit: 1.0, tolerance: 0.5, severity: high}}
"""


def digits(folder: Path) -> Path:
    """The example, trained; its spec."""
    shutil.copytree(
        ROOT / "examples" / "digits", folder, ignore=shutil.ignore_patterns("build", "*.packet")
    )
    _run([sys.executable, "train.py"], folder)
    return folder / "audit.yaml"


def wide_audit(folder: Path) -> Path:
    """Two stages of the transformer; their spec."""
    digits(folder / "digits")
    for name in ("all", "holdout"):
        shutil.copy(folder / "digits" / "build" / f"{name}.parquet", folder)
    shutil.copy(ROOT / "benchmarks" / "settings" / "wide.py", folder)
    _run([sys.executable, "wide.py"], folder)
    (folder / "audit.yaml").write_text(SPEC)
    return folder / "audit.yaml"


def measured(spec: Path, isolation: str) -> dict[str, Any]:
    """Wall and processor time of an audit, and its effects."""
    out = spec.parent / f"{isolation}.packet"
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "auditspec",
        "run",
        str(spec),
        "--unsigned",
        "--no-cache",
        "-q",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AUDITSPEC_ISOLATION": isolation}
    before, began = os.times(), time.perf_counter()
    ran = subprocess.run(
        [*command, "-o", str(out)], env=environment, capture_output=True, text=True, check=False
    )
    wall, after = time.perf_counter() - began, os.times()
    if not (out / "results.json").exists():
        raise SystemExit(ran.stderr)
    results = json.loads((out / "results.json").read_text())
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    isolated = results["run"]["isolation"]
    return {"wall": wall, "cpu": cpu, "effects": results["effects"], "isolation": isolated}


def _run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


def compare(name: str, make: Callable[[Path], Path], pairs: int) -> bool:
    """Print every pair and the ratio of the least times; whether it is within the bar."""
    with tempfile.TemporaryDirectory() as temporary:
        spec = make(Path(temporary) / name)
        _run([sys.executable, "-m", "auditspec", "digest", "--lock", "audit.yaml"], spec.parent)
        runs: dict[str, list[dict[str, Any]]] = {"best": [], "none": []}
        for pair in range(pairs):
            for isolation in ("best", "none") if pair % 2 else ("none", "best"):
                runs[isolation].append(measured(spec, isolation))
            apart, plain = runs["best"][-1], runs["none"][-1]
            same = apart["effects"] == plain["effects"]
            print(
                f"{name} pair {pair + 1}: wall {apart['wall']:.1f} / {plain['wall']:.1f} s, "
                f"processor {apart['cpu']:.1f} / {plain['cpu']:.1f} s, "
                f"effects {'equal' if same else 'DIFFER'}, {apart['isolation']['measures']}"
            )
            if not same:
                return False
    what, bar = BARS[name]
    for kind in ("wall", "cpu"):
        ratio = min(r[kind] for r in runs["best"]) / min(r[kind] for r in runs["none"])
        held = "" if kind != what else f", bar {bar}: {'met' if ratio <= bar else 'MISSED'}"
        print(f"{name}: ratio of least {kind} times {ratio:.3f}{held}")
    least = {i: min(r[what] for r in runs[i]) for i in runs}
    return least["best"] / least["none"] <= bar


def main() -> int:
    """Compare the settings that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", choices=[*BARS, []], default=[])
    parser.add_argument("--pairs", type=int, default=3)
    asked = parser.parse_args()
    makers = {"digits": digits, "wide": wide_audit}
    held = [compare(name, makers[name], asked.pairs) for name in asked.settings or BARS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
