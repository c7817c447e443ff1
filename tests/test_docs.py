"""What the documents promise, the code keeps: commands, options, exit codes, links, paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from auditspec.checks import CHECKS
from auditspec.cli.main import cli
from auditspec.errors import Exit
from auditspec.spec.schema import MODELS
from auditspec.verification.steps import STEPS

BARS = {
    "all": "every verdict",
    "estimated": "verdicts on an estimate",
    "behavior": "verdicts on the behaviour",
    "nothing": "nothing",
}
ROOT = Path(__file__).parents[1]
CLI = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            assert command is not None
            yield " ".join((*above, name)), command


def sections() -> dict[str, str]:
    parts = re.split(r"^## `([a-z ]+)`$", CLI, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_command_is_documented_and_no_other():
    assert sections().keys() == {name for name, _ in commands(cli)}


@pytest.mark.parametrize(("name", "command"), list(commands(cli)))
def test_options_of_a_command_are_documented(name: str, command: click.Command):
    options = [p for p in command.params if isinstance(p, click.Option) and p.name != "help"]
    rows = re.findall(r"^\| (`-.*?) \|", sections()[name], flags=re.MULTILINE)
    documented = [set(re.findall(r"`(-[^`]+)`", row)) for row in rows]
    assert documented == [set(option.opts) for option in options]


def test_arguments_of_a_command_are_documented():
    for name, command in commands(cli):
        usage = re.search(rf"`auditspec {name}( [^`]*)?`", sections()[name])
        assert usage is not None, name
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                word = (parameter.metavar or parameter.human_readable_name).upper()
                assert word in sections()[name], f"{name}: {word}"


def test_exit_codes_are_those_of_the_code():
    table = CLI.partition("## Exit codes")[2].partition("\n## ")[0]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)]
    assert codes == [int(code) for code in Exit]


def test_schemas_are_those_of_the_code():
    assert set(re.findall(r"`(auditspec-(?:\w+-)?\d+)`", sections()["schema"])) == set(MODELS)


def test_every_check_is_documented_in_the_order_of_the_report():
    text = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    ids = [check.id for check in CHECKS]
    assert re.findall(r"^\| \[`([\w-]+)`\]\(#\1\) \|", text, flags=re.M) == ids
    assert re.findall(r"^## (.+)$", text, flags=re.M) == [*ids, "Adding a check"]
    for check in CHECKS:
        (row,) = re.findall(rf"^\| \[`{check.id}`\].* \| ([^|]+) \|$", text, flags=re.M)
        assert row.startswith(BARS[check.bars]), check.id
        assert row.endswith("where it fails") is (check.bars_when == "failed"), check.id


def anchors(text: str) -> set[str]:
    """The anchors that a Markdown reader gives to headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{path.name}: {target}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/method.md"])
def test_paths_that_are_named_exist(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    prefixes = r"(?:auditspec|docs|examples|schemas|templates|tests|benchmarks)"
    named = set(re.findall(rf"`({prefixes}/[\w./-]*)`", text))
    named |= {f"auditspec/{p}" for p in re.findall(r"`((?:\w+/)+\w+\.py)`", text)} - {
        f"auditspec/{p}" for p in named
    }
    generated = re.compile(r"examples/\w+/build|out/")
    assert named
    for path in sorted(named):
        assert generated.match(path) or (ROOT / path).exists(), path


def test_decisions_are_short_and_shaped_alike():
    for path in sorted((ROOT / "docs" / "adr").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        assert re.findall(r"^## (.+)$", text, flags=re.M) == ["Context", "Decision", "Consequences"]
        assert len(text.splitlines()) <= 25, path.name


def test_every_threat_has_its_test_and_its_step():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| T(\d+) \| .* \| (.*) \| `(test_\w+)` \|$", text, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 39))
    sources = (ROOT / "tests" / "threats").glob("test_*.py")
    tests = set(re.findall(r"^def (test_\w+)", "\n".join(p.read_text() for p in sources), re.M))
    words = {*STEPS, "evidence (3)", "spec (2)"}
    for number, step, test in rows:
        assert test in tests and test.startswith(f"test_t{number}_")
        named = [word for word in words if word in step]
        assert named or number in ("13", "25"), step


def test_every_published_attack_has_its_test_and_every_attack_its_row():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = text.partition("## Published attacks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| (.*) \| `(test_\w+)` \|$", table, flags=re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| ", table, flags=re.MULTILINE)) - 1
    sources = (ROOT / "tests" / "attacks").glob("test_*.py")
    tests = set(re.findall(r"^def (test_\w+)", "\n".join(p.read_text() for p in sources), re.M))
    words = {*(check.id for check in CHECKS), "price", "answer"}
    for caught, test in rows:
        assert test in tests
        assert any(word in caught for word in words), caught


def test_every_step_is_documented():
    text = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) ([a-z-]+) \|", text, flags=re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == list(enumerate(STEPS, 1))


def test_the_tests_that_prove_the_tables_of_recording_are_there():
    """By their names, or in the table of the Trainer by a part of it, or by the id of a case."""
    text = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    table = text.partition("## Hugging Face Trainer and TRL")[2].partition("\n## ")[0]
    cells = re.findall(r"^\|.*\| ([^|]*) \|$", table, flags=re.MULTILINE)[1:]
    assert all("`" in cell for cell in cells if set(cell) != {"-"})
    parts = re.findall(r"`([^`]+)`", "".join(cells)) + re.findall(r"`(test_\w+)`", text)
    named = {part for part in parts if not part.startswith("[")}
    assert not [name for name in named if not re.search(rf"def (test_)?\w*{name}\w*\(", tests)]
    cases = {part.strip("[]") for part in parts if part.startswith("[")}
    assert not [case for case in cases if f'"{case}"' not in tests]
