"""Draws the layers, and two ways through them: `python docs/architecture.py` writes docs/images/architecture.svg.

The layers are those that import-linter enforces (pyproject.toml). A way is a few descents; each stop of
one imports the next, which stands on a lower layer, or the drawing is refused.
"""

from __future__ import annotations

import itertools
import sys
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
WIDTH, ROW, BOX, LEFT, GAP = 960, 36, 26, 20, 10


@dataclass(frozen=True)
class Way:
    """How one thing goes through the house: descents, each from the module that the first one starts from."""

    title: str
    colour: str
    descents: tuple[tuple[str, ...], ...]
    """Modules in order: each imports the next, which stands lower."""

    def stops(self) -> list[tuple[str, str]]:
        """The modules with their labels: 1a, 1b, and so on."""
        return [
            (f"{number}{chr(97 + n)}", module)
            for number, descent in enumerate(self.descents, 1)
            for n, module in enumerate(descent)
        ]


WAYS = (
    Way(
        "a spec becomes a packet",
        "#1d4ed8",
        (
            ("cli.run", "api", "flow", "consistency", "record", "artifacts"),
            ("flow", "gates", "attribute", "estimator", "engine", "record"),
            ("flow", "conclusions", "verdicts", "answerable"),
            ("flow", "report", "results"),
            ("flow", "sign", "artifacts"),
        ),
    ),
    Way(
        "a training step becomes a record",
        "#b45309",
        (("recorder", "record", "artifacts"),),
    ),
)


def layers() -> list[list[str]]:
    """Names of packages and modules, the highest layer first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    rows = next(c["layers"] for c in contracts if c["type"] == "layers")
    return [[name.strip() for name in row.split("|")] for row in rows]


def climbs(way: Way, rows: list[list[str]], graph: grimp.ImportGraph) -> list[str]:
    """Stops that the one before does not import, or that do not stand lower."""
    level = {name: number for number, row in enumerate(rows) for name in row}

    def place(stop: str) -> int:
        return level[stop.partition(".")[0]]

    def modules(stop: str) -> set[str]:
        return {f"auditspec.{stop}"} | graph.find_descendants(f"auditspec.{stop}")

    def imports(above: str, below: str) -> bool:
        taken = {m for one in modules(above) for m in graph.find_modules_directly_imported_by(one)}
        return bool(taken & modules(below))

    return [
        f"{above} -> {below}"
        for descent in way.descents
        for above, below in itertools.pairwise(descent)
        if not (place(above) < place(below) and imports(above, below))
    ]


def draw(rows: list[list[str]]) -> str:
    """The picture, as SVG: a row a layer, and on each box the numbers of the stops in it."""
    height = 70 + ROW * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13" role="img">',
        "<title>The layers of auditspec, and two ways through them</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, way in enumerate(WAYS):
        x = LEFT + 330 * number
        parts += [*_badge(x, 24, way.colour, ""), f'<text x="{x + 16}" y="29">{way.title}</text>']
    for number, row in enumerate(rows):
        y = 50 + ROW * number
        parts.append(
            f'<rect x="{LEFT - 10}" y="{y}" width="{WIDTH - 2 * LEFT + 20}" height="{ROW - 4}" rx="4" fill="#f1f5f9"/>'
        )
        x = LEFT
        for name in row:
            badges = [
                (way.colour, label)
                for way in WAYS
                for label, stop in way.stops()
                if stop.partition(".")[0] == name
            ]
            width = 24 + 8 * len(name) + 24 * len(badges)
            parts += [
                f'<rect x="{x}" y="{y + 3}" width="{width}" height="{BOX}" rx="4" fill="#ffffff" stroke="#64748b"/>',
                f'<text x="{x + 10}" y="{y + 20}">{escape(name)}</text>',
            ]
            for n, (colour, text) in enumerate(badges):
                parts += _badge(x + 28 + 8 * len(name) + 24 * n, y + 16, colour, text)
            x += width + GAP
    return "\n".join([*parts, "</svg>", ""])


def _badge(x: int, y: int, colour: str, text: str) -> list[str]:
    return [
        f'<circle cx="{x}" cy="{y}" r="10" fill="{colour}"/>',
        f'<text x="{x}" y="{y + 4}" font-size="11" fill="#ffffff" text-anchor="middle">{text}</text>',
    ]


def main() -> int:
    """Check the ways, and draw."""
    rows, graph = layers(), grimp.build_graph("auditspec")
    for way in WAYS:
        if odd := climbs(way, rows, graph):
            print(f"{way.title}: not downwards: {', '.join(odd)}", file=sys.stderr)
            return 1
    PICTURE.write_text(draw(rows))
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
