"""Rules of the house that no linter knows (docs/adr/0027-what-is-kept-small.md)."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "auditspec").rglob("*.py"))
MOST_PARAMETERS, MOST_LINES = 7, 60
DOORS = {
    "api.audit",
    "api.verify",
    "cli.counterfactuals.counterfactuals",
    "cli.packet.verify",
    "cli.run.run",
    "cli.scores.import_",
}
"""The public face, whose options are keyword-only, and commands, with one parameter an option."""
OPTIMIZERS = re.compile(r'"(SGD|Adam|AdamW)"')


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT / "auditspec").with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{module}.{node.name}", node


def parameters(function: ast.FunctionDef) -> int:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len([a for a in named if a.arg not in ("self", "cls")])


def lines(function: ast.FunctionDef) -> int:
    """Of its code: the docstring is not counted."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_small() -> None:
    odd = [
        f"{name}: {parameters(f)} parameters, {lines(f)} lines"
        for name, f in functions()
        if lines(f) > MOST_LINES or (parameters(f) > MOST_PARAMETERS and name not in DOORS)
    ]
    assert odd == []


def test_every_door_is_still_one() -> None:
    wide = {name for name, f in functions() if parameters(f) > MOST_PARAMETERS}
    assert wide == DOORS


def test_one_place_knows_the_optimizers_by_name() -> None:
    rules, spec = ROOT / "auditspec/engine/optimizers", ROOT / "auditspec/spec"
    odd = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if OPTIMIZERS.search(path.read_text())
        and not path.is_relative_to(rules)
        and not path.is_relative_to(spec)
    ]
    assert odd == []


def test_each_estimator_is_named_in_its_own_file() -> None:
    names = ("paired-replay", "first-order", "displacement", "krylov")
    for name in names:
        places = {p for p in SOURCES if f'"{name}"' in p.read_text()}
        assert len(places) == 1, (name, places)


def test_the_picture_of_the_architecture_is_the_present_one() -> None:
    drawing = runpy.run_path(str(ROOT / "docs" / "architecture.py"))
    rows, graph = drawing["layers"](), drawing["grimp"].build_graph("auditspec")
    assert [drawing["climbs"](way, rows, graph) for way in drawing["WAYS"]] == [[], []]
    assert drawing["PICTURE"].read_text() == drawing["draw"](rows)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
