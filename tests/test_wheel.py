"""The wheel: the same bytes from the same sources, with all that it needs inside."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="needs hatchling")
pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib")
from wheel_bill import bill

ROOT = Path(__file__).parents[1]
SOURCES = ("auditspec", "templates", "schemas", "pyproject.toml", "README.md", "LICENSE")
BILL = "auditspec.cdx.json"


def build(folder: Path, day: int, umask: int, **environ: str) -> bytes:
    """A wheel of a copy of the sources, made by another hand at another time."""
    sources, wheels = folder / "sources", folder / "wheels"
    sources.mkdir(parents=True)
    for name in (*SOURCES, BILL):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, sources / name)
    for path in sources.rglob("*"):
        os.utime(path, (day * 86_400, day * 86_400))
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(wheels)]
    inherited = {k: v for k, v in os.environ.items() if k == "PATH"}
    subprocess.run(
        [*command, str(sources)],
        check=True,
        capture_output=True,
        env=inherited | environ,
        umask=umask,
    )
    (wheel,) = wheels.iterdir()
    return wheel.read_bytes()


@pytest.mark.slow
def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    one = build(tmp_path / "here", 5000, 0o022, PYTHONHASHSEED="1", LC_ALL="C.UTF-8")
    other = build(
        tmp_path / "another folder",
        9000,
        0o077,
        PYTHONHASHSEED="2",
        LC_ALL="C",
        TZ="Asia/Tokyo",
        HOME=str(tmp_path),
    )
    assert one == other
    with zipfile.ZipFile(io.BytesIO(one)) as wheel:
        names = wheel.namelist()
        (inside,) = (n for n in names if n.endswith(f".dist-info/sboms/{BILL}"))
        assert wheel.read(inside) == (ROOT / BILL).read_bytes()
    carried = {"auditspec/schemas/auditspec-1.schema.json", "auditspec/templates/fonts/fonts.conf"}
    assert carried <= {*names} and not [n for n in names if n.endswith(".pyc")]


def test_the_bill_of_the_wheel_is_the_present_one() -> None:
    assert (ROOT / BILL).read_text() == bill(), "make lock"


def test_it_is_cyclonedx() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (ROOT / BILL).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    listed = {component["bom-ref"] for component in document["components"]}
    needs = {ref for item in document["dependencies"] for ref in item["dependsOn"]}
    assert needs <= listed
