from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from plugged import install

from auditspec.errors import UsageError
from auditspec.plugins import available, installed, names


class Base:
    name = "base"


class BuiltIn(Base):
    name = "built-in"


GOOD = "from test_plugins_base import Base\nclass Mine(Base):\n    name = 'mine'\n"
Installs = Callable[[str, str], None]


@pytest.fixture
def installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installs:
    import sys
    from types import ModuleType

    module = ModuleType("test_plugins_base")
    module.Base = Base  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "test_plugins_base", module)

    def put(source: str, point: str = "mine_module:Mine") -> None:
        install(
            tmp_path / "site", monkeypatch, {"mine_module": source}, {"metrics": {"mine": point}}
        )

    return put


def test_a_plug_in_stands_behind_the_built_in_ones(installs: Installs) -> None:
    installs(GOOD, "mine_module:Mine")
    assert names("metrics", ["built-in"]) == ("built-in", "mine")
    classes = available("metrics", [BuiltIn], Base)
    assert list(classes) == ["built-in", "mine"]
    assert issubclass(classes["mine"], Base)


def test_what_a_plug_in_is(installs: Installs, tmp_path: Path) -> None:
    installs(GOOD, "mine_module:Mine")
    (plugin,) = [p for p in installed() if p.distribution == "example-plugins"]
    assert (plugin.kind, plugin.name, plugin.version) == ("metrics", "mine", "1.2")
    before = plugin.digest
    (tmp_path / "site" / "mine_module.py").write_text(GOOD + "\n# changed\n")
    (plugin,) = [p for p in installed() if p.distribution == "example-plugins"]
    assert plugin.digest != before


@pytest.mark.parametrize(
    ("source", "point", "why"),
    [
        ("raise ValueError('no licence')", "mine_module:Mine", "ValueError: no licence"),
        (GOOD, "mine_module:Other", "cannot be loaded"),
        (GOOD.replace("'mine'", "'yours'"), "mine_module:Mine", "calls itself 'yours'"),
        ("class Mine:\n    name = 'mine'\n", "mine_module:Mine", "is no"),
    ],
)
def test_one_that_cannot_be_used_is_an_error_that_names_it(
    installs: Installs, source: str, point: str, why: str
) -> None:
    installs(source, point)
    with pytest.raises(UsageError, match=why) as caught:
        available("metrics", [BuiltIn], Base)
    assert "plug-in 'mine' (metrics, from example-plugins)" in str(caught.value)


def test_a_name_that_is_taken(installs: Installs) -> None:
    class Mine(Base):
        name = "mine"

    installs(GOOD, "mine_module:Mine")
    with pytest.raises(UsageError, match="the name is taken"):
        available("metrics", [Mine], Base)


def test_a_package_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, {}, {"checks": {"gone": "no_such_package_here:Gone"}})
    with pytest.raises(UsageError, match="there is no module no_such_package_here"):
        installed()
