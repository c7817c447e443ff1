"""The bill of materials: CycloneDX, the same wherever the same is installed."""

import json
import os
import subprocess
import sys
from importlib.metadata import Distribution, PathDistribution, distributions
from pathlib import Path

import pytest

from auditspec import plugins
from auditspec.bill_of_materials import bill, environment

RECORD = [
    "example/__init__.py,sha256=AAA,1",
    "example-1.2.dist-info/METADATA,sha256=BBB,2",
    "example-1.2.dist-info/RECORD,,",
]


def installed(
    folder: Path, record: list[str], version: str = "1.2", name: str = "Ex_ample"
) -> Distribution:
    info = folder / f"example-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("\n".join(record) + "\n")
    return PathDistribution(info)


def only(data: bytes) -> dict[str, object]:
    (component,) = (c for c in json.loads(data)["components"] if c["type"] == "library")
    return component


def test_it_is_cyclonedx() -> None:
    pytest.importorskip("cyclonedx", reason="needs cyclonedx-python-lib")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validate = JsonStrictValidator(SchemaVersion.V1_6).validate_str
    assert validate(environment().decode()) is None
    assert validate(environment().decode().replace('"library"', '"book"')) is not None


def test_what_is_installed_is_listed() -> None:
    listed = json.loads(environment())
    versions = {c["name"]: c["version"] for c in listed["components"]}
    assert versions["torch"] == next(d.version for d in distributions() if d.name == "torch")
    assert listed["metadata"]["component"]["name"] == "auditspec"
    (code,) = listed["metadata"]["component"]["properties"]
    assert code["value"] == plugins.digest_of_package("auditspec")
    assert (
        str(Path.home()) not in environment().decode() and sys.prefix not in environment().decode()
    )


@pytest.mark.parametrize(
    "noted",
    [
        ["example-1.2.dist-info/INSTALLER,sha256=CCC,4"],
        ["example-1.2.dist-info/direct_url.json,sha256=CCC,4"],
        ["../../../bin/example,sha256=CCC,4", "/usr/bin/example,sha256=CCC,4"],
        ["example/__pycache__/__init__.cpython-311.pyc,,"],
    ],
)
def test_how_it_was_installed_changes_nothing(tmp_path: Path, noted: list[str]) -> None:
    one = bill([installed(tmp_path / "a", RECORD)])
    other = bill([installed(tmp_path / "b", [*noted, *reversed(RECORD)])])
    assert one == other


def test_what_was_installed_does(tmp_path: Path) -> None:
    bills = [
        bill([installed(tmp_path / str(n), record, version)])
        for n, (record, version) in enumerate(
            [
                (RECORD, "1.2"),
                (RECORD, "1.2+cpu"),
                ([RECORD[0].replace("AAA", "AAB"), *RECORD[1:]], "1.2"),
                ([*RECORD, "example/more.py,sha256=DDD,1"], "1.2"),
            ]
        )
    ]
    assert len(set(bills)) == len(bills)
    assert only(bills[1])["purl"] == "pkg:pypi/ex-ample@1.2%2Bcpu"


def test_the_first_of_a_name_counts_and_plug_ins_are_named(tmp_path: Path) -> None:
    first = installed(tmp_path / "a", RECORD)
    second = installed(tmp_path / "b", RECORD, "9.9", "ex.ample")
    plugin = plugins.Plugin("checks", "mine", "Ex_ample", "1.2", "sha256:00")
    component = only(bill([first, second], [plugin]))
    assert component["version"] == "1.2"
    names = [p["name"] for p in component["properties"]]  # type: ignore[attr-defined]
    assert names == ["auditspec:files", "auditspec:plugin:checks/mine"]


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    code = "import sys; from auditspec.bill_of_materials import *; sys.stdout.buffer.write(environment())"
    other = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo", "HOME": str(tmp_path)}
    environ = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH")} | other
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, env=environ, cwd=tmp_path, check=True)
    assert ran.stdout == environment()
