"""What an audit costs at the least: processor time of everything that `auditspec run` starts, beside that of the training.

    python -m benchmarks.floor_cost [small] [digits] [--times 3]

| setting | audits | bar |
|---|---|---|
| small | three stages of at most twelve steps on made-up data (tests/support/small_audit.py) | 5 s of processor time |
| digits | the digits example | – |

Each audit is a whole `auditspec run --no-cache`: isolated as well as the machine can, signed, with HTML, PDF, and JSON. The bar is held
against the least time: what else a machine does can only add to it. Exits 1 above the bar.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from .isolation_cost import ROOT

BARS = {"small": 5.0, "digits": float("inf")}
SEED = (
    "import sys; from pathlib import Path; import small_audit; small_audit.make(Path(sys.argv[1]))"
)
"""Makes the small audit: data, training, spec."""
SIGNING = "\nsigning: {key: auditor.key, certificate: auditor.pem}\n"
UNTOLD = {"OMP_NUM_THREADS": "1", "AUDITSPEC_SELF_CHECK": "0", "PYTHONDONTWRITEBYTECODE": ""}
"""One thread; the training is not re-run while it trains; modules are compiled once, as where they are installed."""


def cpu(command: list[str], folder: Path, codes: tuple[int, ...] = (0,), **more: str) -> float:
    """Seconds of processor time that a command and all that it starts take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment: Mapping[str, str] = {**os.environ, **UNTOLD, **more}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if ran.returncode not in codes:
        raise SystemExit(ran.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def small(folder: Path) -> tuple[Path, float]:
    """The tests' small audit, with all reports and signed; its spec, and what its training takes."""
    folder.mkdir()
    cpu([sys.executable, "-c", SEED, "."], folder, PYTHONPATH=_paths(ROOT / "tests" / "support"))
    shutil.rmtree(folder / "record")
    training = cpu([sys.executable, "small_training.py"], folder)
    spec = folder / "audit.yaml"
    text, _, _ = spec.read_text().partition('"report":')
    spec.write_text(text + SIGNING)
    auditspec("keys", "new", "auditor", folder=folder)
    return spec, training


def example(name: str, folder: Path) -> tuple[Path, float]:
    """An example, trained, with a key; its spec, and what its training takes."""
    examples = ROOT / "examples"
    shutil.copytree(
        examples / name, folder, ignore=shutil.ignore_patterns("build*", "*.packet", "packet")
    )
    if (folder / "archives.toml").exists():
        cpu([sys.executable, str(examples / "fetch.py")], folder)
    training = cpu([sys.executable, "train.py"], folder)
    auditspec("keys", "new", "build/auditor", folder=folder)
    return folder / "audit.yaml", training


def auditspec(*arguments: str, folder: Path, codes: tuple[int, ...] = (0,)) -> float:
    """Seconds of processor time that a command of ours takes."""
    command = [sys.executable, "-m", "auditspec", *arguments]
    return cpu(command, folder, codes, PYTHONPATH=_paths(ROOT))


def _paths(first: Path) -> str:
    return os.pathsep.join([str(first), str(ROOT), os.environ.get("PYTHONPATH", "")])


def measure(name: str, make: Callable[[Path], tuple[Path, float]], times: int) -> bool:
    """Print what training and audits take; whether the least of them is within the bar."""
    with tempfile.TemporaryDirectory() as temporary:
        spec, training = make(Path(temporary) / name)
        auditspec("digest", "--lock", "audit.yaml", "--update-all", folder=spec.parent)
        run = ("run", "audit.yaml", "--no-cache", "-q", "--force", "-o", "packet")
        took = [auditspec(*run, folder=spec.parent, codes=(0, 1, 5)) for _ in range(times)]
    bar = BARS[name]
    held = (
        "no bar"
        if bar == float("inf")
        else f"bar {bar:g} s: {'met' if min(took) <= bar else 'MISSED'}"
    )
    listed = ", ".join(f"{seconds:.2f}" for seconds in took)
    print(
        f"{name}: training {training:.2f} s, audits {listed} s of processor time; least {min(took):.2f} s, {held}"
    )
    return min(took) <= bar


def main() -> int:
    """Measure the settings that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", choices=[*BARS, []], default=[])
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    makers: dict[str, Callable[[Path], tuple[Path, float]]] = {
        "small": small,
        "digits": partial(example, "digits"),
    }
    held = [measure(name, makers[name], asked.times) for name in asked.settings or BARS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
