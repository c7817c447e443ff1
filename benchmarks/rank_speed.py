"""How much sooner several ranks finish an exact audit of a GPT than one process does.

    python -m benchmarks.rank_speed [--ranks 2] [--pairs 3] [--steps 60]

Five stages, so four arms. Each audit is a whole `auditspec run` with an empty cache, one thread a process, alone and by torchrun in turn.
Wall time counts here, so run it where the ranks have a processor each and nothing else runs. Exits 1 where the median ratio is below
0.85 of the ranks, or effects differ by more than 1e-6.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from .audit_cost import Audited, Size

BAR = 0.85
"""Of the ranks: 1.7 of two."""
WITHIN = 1e-6
"""Effects of several ranks against those of one process, relative."""


def main() -> int:
    """Measure pairs of audits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Size.steps)
    asked = parser.parse_args()
    ratios, off = [], 0.0
    with tempfile.TemporaryDirectory() as temporary:
        audited = Audited(Size(steps=asked.steps, stages=5), Path(temporary) / "gpt")
        for pair in range(asked.pairs):
            alone, expected = audited.exact(1)
            shared, found = audited.exact(asked.ranks)
            ratios.append(alone.wall / shared.wall)
            off = max(abs(x - y) / abs(y) for x, y in zip(found, expected, strict=True))
            print(
                f"pair {pair}: one process {alone.wall:.0f} s ({alone.cpu:.0f} s of processor time), {asked.ranks} ranks "
                f"{shared.wall:.0f} s ({shared.cpu:.0f} s): {ratios[-1]:.2f} times as fast; effects {off:.1g} apart",
                flush=True,
            )
    ratio = statistics.median(ratios)
    print(f"median {ratio:.2f}, at least {BAR * asked.ranks:.2f} wanted")
    return 0 if ratio >= BAR * asked.ranks and off <= WITHIN else 1


if __name__ == "__main__":
    sys.exit(main())
