"""What code defines and imports, by its syntax alone: none of it is ever executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.sources import Sources

BOMB = "raise SystemExit('executed')\n"


def sources(folder: Path, **files: str) -> Sources:
    """A package `pkg` of modules; keys are module names."""
    root = folder / "pkg"
    root.mkdir()
    for name, text in files.items():
        (root / f"{name}.py").write_text(text + BOMB)
    return Sources(CodeBundle.read(root, None))


MAIN = """\
import torch
from torch import nn
from torch.nn import functional as F
from .parts import helper, VALUE, again as renamed
from .stars import *

def two(a, b): ...
def optional(a, b, c=1): ...
def keyword(a, b, *, c): ...
def many(*args): ...
def one(a): ...
async def later(a, b): ...
class Net:
    def __init__(self): self.layer = nn.Linear(1, 1)
class Wide:
    def __init__(self, width): ...
class Inherits(Net): ...
@decorated
def wrapped(): ...
made = partial(two, 1)
NUMBER = 3
first, second = two, 4
if torch.cuda.is_available():
    def either(a, b): ...
else:
    either = None
"""
PARTS = "VALUE = [1]\ndef helper(a, b): ...\ndef again(a, b): ...\n"
STARS = "def starred(a, b): ...\n"


@pytest.fixture
def main(tmp_path: Path) -> Sources:
    return sources(tmp_path, main=MAIN, parts=PARTS, stars=STARS)


@pytest.mark.parametrize(
    "name",
    [
        "two",
        "optional",
        "many",
        "wrapped",
        "made",
        "first",
        "either",
        "helper",
        "renamed",
        "starred",
    ],
)
def test_what_can_be_called_with_two_arguments(main: Sources, name: str) -> None:
    assert main.complaint(f"pkg.main:{name}", 2) is None


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("tow", 2, "has no 'tow'"),
        ("one", 2, "takes 1 arguments, and is called with 2"),
        ("two", 0, "takes 2 arguments, and is called with 0"),
        ("optional", 1, "takes 2 to 3 arguments"),
        ("keyword", 2, "takes 2 arguments and c by name"),
        ("later", 2, "is asynchronous"),
        ("NUMBER", 2, "is a value"),
        ("VALUE", 2, "is a value"),
        ("torch", 2, "is a module"),
        ("nn", 2, "is a module"),
        ("Wide", 0, "takes 1 arguments"),
    ],
)
def test_what_cannot(main: Sources, name: str, arguments: int, said: str) -> None:
    found = main.complaint(f"pkg.main:{name}", arguments)
    assert found is not None
    assert said in found.message


def test_classes(main: Sources) -> None:
    assert main.complaint("pkg.main:Net", 0) is None
    assert main.complaint("pkg.main:Inherits", 0) is None
    assert main.complaint("pkg.main:Wide", 1, is_class=True) is None
    found = main.complaint("pkg.main:two", 1, is_class=True)
    assert found is not None and "is a function" in found.message


def test_modules_and_names_that_might_be_meant(main: Sources) -> None:
    found = main.complaint("pkg.mian:two", 2)
    assert found is not None and found.known == ("main", "pkg.main")
    found = main.complaint("pkg.main:tow", 2)
    assert found is not None and "two" in found.known
    found = main.complaint("main:two", 2)  # imports relatively, so it needs its package
    assert found is not None and found.remedy == "did you mean 'pkg.main'?"
    found = main.complaint("pkg:main", 2)
    assert found is not None and "is a module" in found.message and not found.missing


def test_names_that_only_running_would_show(tmp_path: Path) -> None:
    found = sources(
        tmp_path,
        lazy="def __getattr__(name): ...\n",
        made="for n in 'ab':\n    globals()[n] = print\n",
        foreign="from numpy import *\n",
    )
    for module in ("lazy", "made", "foreign"):
        assert found.complaint(f"pkg.{module}:anything", 2) is None


IMPORTS = """\
import os.path, json
import not_here.deep
try:
    import optional_one
except ImportError:
    optional_one = None
with contextlib.suppress(ModuleNotFoundError):
    import optional_two
if TYPE_CHECKING:
    import optional_three
try:
    import needed_after_all
finally:
    pass
class Held:
    import needed_in_class
def later():
    import optional_four
from . import parts, absent
from .parts import missing_name
from .nowhere import x
"""


def test_imports_that_are_needed(tmp_path: Path) -> None:
    found = sources(tmp_path, main=IMPORTS, parts=PARTS, unrelated="import never_reached\n")
    packages, parts = found.missing(["pkg.main:f"])
    assert [(p.name, p.place) for p in packages] == [
        ("not_here", "main.py:2"),
        ("needed_after_all", "main.py:12"),
        ("needed_in_class", "main.py:16"),
    ]
    assert [(p.name, p.place) for p in parts] == [
        ("pkg.absent", "main.py:19"),
        ("pkg.parts.missing_name", "main.py:20"),
        ("pkg.nowhere", "main.py:21"),
    ]


def test_packages_above_are_imported_too(tmp_path: Path) -> None:
    found = sources(tmp_path, __init__="import gone\n", main="", other="import never_reached\n")
    assert [p.name for p in found.missing(["pkg.main:f"])[0]] == ["gone"]
    assert found.missing(["main:f"]) == ([], [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", "main.py:1: invalid syntax"),
        ("x = '\0'\n", "main.py:1: "),
        ("f(\n", "main.py:1: "),
    ],
)
def test_code_that_is_no_python(tmp_path: Path, text: str, said: str) -> None:
    found = sources(tmp_path, main=text)
    (place,) = found.unreadable(["pkg.main:f"]).values()
    assert place.startswith(said)
    assert found.complaint("pkg.main:f", 2) is None  # told once, there


def test_circles_end(tmp_path: Path) -> None:
    found = sources(tmp_path, a="from .b import x\n", b="from .a import x\n")
    assert found.complaint("pkg.a:x", 2) is None
    assert found.missing(["pkg.a:x"]) == ([], [])
