import json
import stat
from pathlib import Path
from typing import Any

import pytest
from factories import SPEC_TEXT
from pydantic import ValidationError

from auditspec.errors import SpecError
from auditspec.spec.lock import Pin, lock_path, own_pins, pins, read_lock, write_lock
from auditspec.spec.source import LoadedSpec, load

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.fixture
def spec(tmp_path: Path) -> LoadedSpec:
    """A spec that pins `code` itself."""
    path = tmp_path / "audit.yaml"
    path.write_text(SPEC_TEXT.replace("{path: src}", f'{{path: src, digest: "{ONE}"}}'))
    return load(path)


def lock(spec: LoadedSpec, digests: Any, **more: Any) -> Path:
    path = lock_path(spec.path)
    path.write_text(json.dumps({"auditspec_lock": "1", "digests": digests, **more}, indent=2))
    return path


def problems(spec: LoadedSpec) -> list[tuple[str, int, int]]:
    with pytest.raises(SpecError) as caught:
        pins(spec)
    assert {problem.file for problem in caught.value.problems} == {str(lock_path(spec.path))}
    return [(problem.code, problem.line, problem.column) for problem in caught.value.problems]


def test_the_lock_lies_beside_the_spec() -> None:
    assert lock_path(Path("a/audit.yaml")) == Path("a/audit.lock.json")


def test_without_a_lock_only_the_spec_pins(spec: LoadedSpec) -> None:
    assert read_lock(spec.path).digests == {}
    assert pins(spec) == own_pins(spec) == {"code": Pin(ONE, "audit.yaml")}


def test_what_is_written_is_read(spec: LoadedSpec) -> None:
    path = write_lock(spec.path, {"record": TWO, "final": ONE})
    assert read_lock(spec.path).digests == {"final": ONE, "record": TWO}
    assert pins(spec) == {
        "code": Pin(ONE, "audit.yaml"),
        "final": Pin(ONE, "audit.lock.json"),
        "record": Pin(TWO, "audit.lock.json"),
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert json.loads(path.read_text()) == {
        "auditspec_lock": "1",
        "digests": {"final": ONE, "record": TWO},
    }


def test_a_lock_may_repeat_the_spec_but_not_contradict_it(spec: LoadedSpec) -> None:
    lock(spec, {"code": ONE})
    assert pins(spec) == {"code": Pin(ONE, "audit.yaml")}
    lock(spec, {"record": TWO, "code": TWO})
    assert problems(spec) == [("AS051", 5, 13)]


def test_unknown_names(spec: LoadedSpec) -> None:
    lock(spec, {"record": TWO, "recrod": TWO})
    assert problems(spec) == [("AS050", 5, 5)]
    assert read_lock(spec.path).digests == {"record": TWO, "recrod": TWO}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"auditspec_lock": "1", "digests": {"record": "sha256:12"}}', [("AS015", 1, 47)]),
        ('{"auditspec_lock": "2", "digests": {}}', [("AS015", 1, 20)]),
        ('{"auditspec_lock": "1", "digests": {}, "more": 1}', [("AS012", 1, 40)]),
        ('{"auditspec_lock": "1"}', [("AS013", 1, 1)]),
        ('{"digests": {"a": "%s", "a": "%s"}}' % (ONE, TWO), [("AS005", 1, 94)]),  # noqa: UP031
        ("[]", [("AS014", 1, 1)]),
        ("", [("AS014", 1, 1)]),
        ("{", [("AS003", 1, 2)]),
    ],
)
def test_what_is_no_lock(spec: LoadedSpec, text: str, found: list[tuple[str, int, int]]) -> None:
    lock_path(spec.path).write_text(text)
    assert problems(spec) == found
    with pytest.raises(SpecError):
        read_lock(spec.path)


def test_nothing_is_left_behind_by_a_lock_that_cannot_be_written(spec: LoadedSpec) -> None:
    with pytest.raises(ValidationError):
        write_lock(spec.path, {"record": "sha256:short"})
    lock_path(spec.path).mkdir()
    with pytest.raises(OSError):
        write_lock(spec.path, {"record": ONE})
    assert sorted(path.name for path in spec.path.parent.iterdir()) == [
        "audit.lock.json",
        "audit.yaml",
    ]
