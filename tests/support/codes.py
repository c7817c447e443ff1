"""Which codes the package makes, and docs/codes.md: python tests/support/codes.py > docs/codes.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from auditspec.report.words import LANGUAGES
from auditspec.report.words.en import TOPICS

PACKAGE = Path(__file__).parents[2] / "auditspec"
HEAD = """\
# Codes

What `results.json` says, it says as codes with named values; a catalogue puts them into words
(`auditspec/report/words`, [ADR {adr}](adr/{adr}-codes-before-prose.md)). A code keeps its meaning. Braces hold values, each
shown after its kind (`auditspec/report/words/template.py`); numbers in a report point at them. Codes of a
plug-in begin with its name and a colon, and their sentences stand in `vocabulary`.

`make codes` writes this page.
"""
ADR = "0019"


@dataclass(frozen=True)
class Made:
    """A call of `message`."""

    code: str
    values: frozenset[str]
    place: str


def made() -> Iterator[Made]:
    """Every message that the package makes.

    Raises:
        AssertionError: for one whose code or names of values are not written out.
    """
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else None
            if name == "Message" and path.name != "messages.py":
                raise AssertionError(f"{path}:{node.lineno}: make messages by message()")
            if name != "message":
                continue
            where = f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
            assert len(node.args) == 1, f"{where}: one code, and named values"
            (code,) = node.args
            assert isinstance(code, ast.Constant), f"{where}: the code is not written out"
            names = [keyword.arg for keyword in node.keywords]
            assert None not in names, f"{where}: the names of values are not written out"
            yield Made(
                str(code.value),
                frozenset(str(name) for name in names),
                str(path.relative_to(PACKAGE.parent)),
            )


def page() -> str:
    """docs/codes.md."""
    places: dict[str, set[str]] = {}
    for item in made():
        places.setdefault(item.code, set()).add(item.place)
    lines = [HEAD.format(adr=ADR)]
    for title, templates in TOPICS.items():
        lines += ["", f"## {title}", "", "| code | sentence | made in |", "|---|---|---|"]
        lines += [_row(code, templates, places) for code in templates]
    return "\n".join(lines) + "\n"


def _row(code: str, templates: Mapping[str, str], places: Mapping[str, set[str]]) -> str:
    sentence = templates[code].replace("|", "\\|")
    return (
        f"| `{code}` | {sentence} | {', '.join(f'`{p}`' for p in sorted(places.get(code, ())))} |"
    )


if __name__ == "__main__":
    assert list(LANGUAGES) == ["en"]
    print(page(), end="")
