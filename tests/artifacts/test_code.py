import inspect
import linecache
import pkgutil
import sys
import traceback
from pathlib import Path

import pytest

from auditspec.artifacts.code import CodeBundle
from auditspec.artifacts.digest import digest_bytes
from auditspec.artifacts.manifest import digest_path
from auditspec.errors import EvidenceError, UsageError

TRAIN = """\
from audited_pkg.helpers import double


def build_model():
    return double(21)


def fail():
    raise KeyError("inside")


NUMBER = 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    root = tmp_path / "code"
    (root / "audited_pkg" / "deep").mkdir(parents=True)
    (root / "audited_train.py").write_text(TRAIN)
    (root / "audited_pkg" / "__init__.py").write_text("from . import helpers\n")
    (root / "audited_pkg" / "helpers.py").write_text("def double(x):\n    return 2 * x\n")
    (root / "audited_pkg" / "words.txt").write_text("eight")
    (root / "audited_pkg" / "deep" / "end.py").write_text("from ..helpers import double\n")
    return root


def test_loads_from_a_folder(code: Path) -> None:
    bundle = CodeBundle.read(code, digest_path(code).digest)
    with bundle.importable():
        function = bundle.load("audited_train:build_model")
        assert function() == 42
        assert bundle.load("audited_pkg.deep.end:double")(2) == 4
        assert sys.modules["audited_train"].__file__ == str(code / "audited_train.py")
        assert pkgutil.get_data("audited_pkg", "words.txt") == b"eight"
        assert inspect.getsource(function) == "def build_model():\n    return double(21)\n"
        with pytest.raises(FileNotFoundError):
            pkgutil.get_data("audited_pkg", "none.txt")
    assert [f.path for f in bundle.files] == [
        "audited_pkg/__init__.py",
        "audited_pkg/deep/end.py",
        "audited_pkg/helpers.py",
        "audited_pkg/words.txt",
        "audited_train.py",
    ]


def test_loads_from_a_file(code: Path) -> None:
    path = code / "audited_pkg" / "helpers.py"
    bundle = CodeBundle.read(path, digest_bytes(path.read_bytes()))
    assert bundle.digest == digest_path(path).digest
    with bundle.importable():
        assert bundle.load("helpers:double")(1) == 2


def test_leaves_nothing_behind(code: Path) -> None:
    finders, modules, path = list(sys.meta_path), set(sys.modules), list(sys.path)
    bundle = CodeBundle.read(code, None)
    with bundle.importable():
        bundle.load("audited_train:build_model")
        assert "audited_pkg.helpers" in sys.modules
    assert (sys.meta_path, set(sys.modules), sys.path) == (finders, modules, path)
    assert not [name for name in linecache.cache if str(code) in name]
    assert not list(code.rglob("*.pyc"))


def test_imports_the_verified_bytes_whatever_the_disk_says(code: Path) -> None:
    bundle = CodeBundle.read(code, digest_path(code).digest)
    (code / "audited_train.py").write_text("def build_model():\n    return 'evil'\n")
    (code / "audited_pkg" / "helpers.py").unlink()
    (code / "audited_pkg" / "added.py").write_text("x = 1\n")
    with bundle.importable():
        assert bundle.load("audited_train:build_model")() == 42
        with pytest.raises(EvidenceError, match=r"no module 'audited_pkg\.added'"):
            bundle.load("audited_pkg.added:x")
        with pytest.raises(ModuleNotFoundError):
            __import__("audited_pkg.added")
        try:
            bundle.load("audited_train:fail")()
        except KeyError as error:
            assert 'raise KeyError("inside")' in "".join(traceback.format_exception(error))


def test_refuses_other_bytes(code: Path) -> None:
    digest = digest_path(code).digest
    with (code / "audited_train.py").open("a") as file:
        file.write("#")
    with pytest.raises(EvidenceError, match="pinned is"):
        CodeBundle.read(code, digest)
    with pytest.raises(EvidenceError, match="pinned is"):
        CodeBundle.read(code / "audited_train.py", digest)


@pytest.mark.parametrize(
    ("entry_point", "message", "remedy"),
    [
        ("audited_trian:build_model", "no module 'audited_trian'", "did you mean 'audited_train'?"),
        ("zzz:build_model", "no module 'zzz'", "it has: audited_pkg"),
        ("audited_train:build_modle", "has no 'build_modle'", "did you mean 'build_model'?"),
        ("audited_train:zzz", "has no 'zzz'", "it has: build_model, double, fail"),
        ("audited_train:NUMBER", "is a int, which cannot be called", "function or class"),
    ],
)
def test_names_what_is_not_there(code: Path, entry_point: str, message: str, remedy: str) -> None:
    bundle = CodeBundle.read(code, None)
    with bundle.importable(), pytest.raises(EvidenceError, match=message) as caught:
        bundle.load(entry_point)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\n1 / 0\n", "at audited_bad.py:2: ZeroDivisionError: division by zero"),
        ("import audited_other\n", "at audited_other.py:3: ValueError: deep"),
        ("def f(:\n", "at audited_bad.py:1: SyntaxError"),
        ("raise SystemExit(2)\n", "at audited_bad.py:1: SystemExit: 2"),
        ("# coding: nonsense\n", "SyntaxError"),
    ],
)
def test_import_errors_give_the_place_in_the_code(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "audited_bad.py").write_text(source)
    (tmp_path / "audited_other.py").write_text(
        "def f():\n    import json\n    raise ValueError('deep')\nf()\n"
    )
    bundle = CodeBundle.read(tmp_path, None)
    with bundle.importable(), pytest.raises(EvidenceError) as caught:
        bundle.load("audited_bad:f")
    assert said in caught.value.message
    assert caught.value.__cause__ is None
    assert "audited_bad" not in sys.modules


def test_a_package_that_is_not_installed_is_no_fault_of_the_code(tmp_path: Path) -> None:
    (tmp_path / "audited_bad.py").write_text("\n\nimport sklern\n")
    bundle = CodeBundle.read(tmp_path, None)
    with bundle.importable(), pytest.raises(UsageError) as caught:
        bundle.load("audited_bad:f")
    assert "imports 'sklern' at audited_bad.py:3" in caught.value.message
    assert caught.value.remedy.startswith("pip install sklern")
    assert "audited_bad" not in sys.modules


def test_a_folder_is_a_package_too(tmp_path: Path) -> None:
    """Files in it may have the names of other modules; inside, they are reached by the long name."""
    root = tmp_path / "audited_package"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "random.py").write_text("def seven():\n    return 7\n")
    (root / "train.py").write_text("from .random import seven\n")
    bundle = CodeBundle.read(root, None)
    assert bundle.modules == {
        "train": "train.py",
        "audited_package": "__init__.py",
        "audited_package.random": "random.py",
        "audited_package.train": "train.py",
    }
    with bundle.importable():
        assert bundle.load("audited_package.train:seven")() == 7
        assert sys.modules["random"].__name__ == "random"
    assert not [name for name in sys.modules if name.startswith("audited_package")]


def test_a_folder_of_another_modules_name_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "audited_x.py").write_text("")
    assert CodeBundle.read(tmp_path / "numpy", None).modules == {"audited_x": "audited_x.py"}


def test_refuses_to_shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("")
    with pytest.raises(EvidenceError, match="'random' has the name of a standard library"):
        CodeBundle.read(tmp_path, None).importable().__enter__()
    (tmp_path / "random.py").rename(tmp_path / "pytest.py")
    with pytest.raises(EvidenceError, match=r"'pytest' is already imported from .*pytest"):
        CodeBundle.read(tmp_path, None).importable().__enter__()


def test_the_file_of_a_code_folder_wins_as_in_python(tmp_path: Path) -> None:
    (tmp_path / "audited_twice").mkdir()
    (tmp_path / "audited_twice" / "__init__.py").write_text("def which():\n    return 'package'\n")
    (tmp_path / "audited_twice.py").write_text("def which():\n    return 'module'\n")
    bundle = CodeBundle.read(tmp_path, None)
    with bundle.importable():
        assert bundle.load("audited_twice:which")() == "package"


def test_needs_python_and_an_open_bundle(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no code")
    with pytest.raises(EvidenceError, match="no Python module"):
        CodeBundle.read(tmp_path, None)
    (tmp_path / "audited_x.py").write_text("def f(): pass\n")
    with pytest.raises(RuntimeError, match="outside importable"):
        CodeBundle.read(tmp_path, None).load("audited_x:f")
