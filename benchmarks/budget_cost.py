"""What a budget saves: processor time of whole audits of the examples at a quarter and an eighth of the exact audit's gradients.

    python -m benchmarks.budget_cost [digits] [lending] [vision] [--times 2]

Each audit is a whole `auditspec run --no-cache`, signed, with all reports, on one thread; of several the one that took least counts.
Training is run before and is not counted. `lending` and `vision` need `examples/fetch.py`, so a network. Exits 1 where a budget takes
more time than none.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from .floor_cost import auditspec, example

EXAMPLES = ("digits", "lending", "vision")
SHARES = (4, 8)
"""Parts of the gradients that the whole exact audit takes."""
BUDGET = re.compile(r"budget: \{gradients: \d+\}")
NONE = 10**9
"""As good as no limit."""
DONE = (0, 1, 5)
"""Exit codes of audits that came to an end."""


def audit(folder: Path, gradients: int, times: int) -> tuple[float, float, set[str]]:
    """Processor time of the quickest of some audits, the gradients it took, and its estimators."""
    spec = folder / "audit.yaml"
    spec.write_text(BUDGET.sub(f"budget: {{gradients: {gradients}}}", spec.read_text(), count=1))
    run = ("run", "audit.yaml", "--no-cache", "-q", "--force", "-o", "packet")
    took = min(auditspec(*run, folder=folder, codes=DONE) for _ in range(times))
    results = json.loads((folder / "packet" / "results.json").read_text())
    return took, results["run"]["gradients"], {e["method"] for e in results["estimates"]}


def measure(name: str, folder: Path, times: int) -> bool:
    """Print what an example's audits take; whether every budget is cheaper."""
    example(name, folder)
    auditspec("digest", "--lock", "audit.yaml", "--update-all", folder=folder)
    exact, whole, _ = audit(folder, NONE, times)
    print(f"{name}: exact, {whole:,.0f} gradients, {exact:.1f} s of processor time", flush=True)
    held = True
    for share in SHARES:
        took, gradients, methods = audit(folder, int(whole / share), times)
        held &= took <= exact
        print(
            f"{name}: 1/{share}, {gradients:,.0f} gradients ({', '.join(sorted(methods))}), {took:.1f} s, "
            f"{took / exact:.2f} of exact: {'cheaper' if took <= exact else 'DEARER'}",
            flush=True,
        )
    return held


def main() -> int:
    """Measure the examples that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("examples", nargs="*", choices=[*EXAMPLES, []], default=[])
    parser.add_argument("--times", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        held = [
            measure(name, Path(temporary) / name, asked.times)
            for name in asked.examples or EXAMPLES
        ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
