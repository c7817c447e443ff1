"""Files that functions name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from auditspec.artifacts.named_files import named_files

CODE = '''
from pathlib import Path
import helper_of_names as helper

HERE = Path(__file__).parent
FILES = {"c": HERE / "c.txt", "list": ["d.txt"]}


def constant():
    return open("a.txt")


def by_default():
    return (lambda name="x": helper.load("b.txt"))()


def through_globals():
    return FILES["c"]


def through_functions():
    return constant(), helper.read()


class Model:
    def __init__(self):
        self.path = "a.txt"

    @classmethod
    def made(cls):
        return "b.txt"


def through_a_class():
    return Model()


def nothing():
    """a.txt is in a text that is no path: see b.txt."""
    return print("folder", "gone.txt", "x" * 1000, "\\n", "")


def main():
    nothing()
    Path("out.txt").write_text("")
'''
HELPER = """
NAME = "e.txt"


def read():
    return NAME


def other():
    return "out.txt"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for letter in "abcde":
        (tmp_path / f"{letter}.txt").touch()
    (tmp_path / "out.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "names_files.py").write_text(CODE)
    (tmp_path / "helper_of_names.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.spec_from_file_location("names_files", tmp_path / "names_files.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "names_files", made)
    spec.loader.exec_module(made)
    yield made
    sys.modules.pop("helper_of_names", None)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        ("constant", "a"),
        ("by_default", "b"),
        ("through_globals", "cd"),
        ("through_functions", "ae"),
        ("through_a_class", "ab"),
        ("nothing", ""),
    ],
)
def test_names_within_reach(module: ModuleType, tmp_path: Path, function: str, names: str) -> None:
    sources = [str(tmp_path / "names_files.py"), str(tmp_path / "helper_of_names.py")]
    found = named_files(getattr(module, function), sources, [tmp_path])
    assert found == {tmp_path / f"{letter}.txt" for letter in names}


def test_only_the_given_sources_are_followed(module: ModuleType, tmp_path: Path) -> None:
    found = named_files(module.through_functions, [str(tmp_path / "names_files.py")], [tmp_path])
    assert found == {tmp_path / "a.txt"}
    assert named_files(print, [], [tmp_path]) == set()


def test_classes_partial_functions_and_relative_sources(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = ["names_files.py"]
    both = {tmp_path / "a.txt", tmp_path / "b.txt"}
    assert named_files(module.Model, sources, [tmp_path]) == both
    assert named_files(partial(module.constant, 1), sources, [tmp_path]) == {tmp_path / "a.txt"}
