"""Evidence in a store: locked, validated, audited, and verified as the same bytes here are."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import small_audit
import stores
from small_audit import edit_spec

from auditspec import audit
from auditspec.artifacts.fetch import Most
from auditspec.artifacts.stores import Store
from auditspec.cli.main import main
from auditspec.errors import UsageError
from auditspec.sign.packet_in_store import brought_here, folder_for
from auditspec.spec.lock import read_lock


@pytest.fixture(params=stores.KINDS)
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    with stores.bucket(request.param, tmp_path, monkeypatch) as url:
        yield url


def in_store(spec: Path, url: str) -> None:
    """Put every artifact into a store, and let the spec name it there."""
    places = {name: stores.put(url, spec.parent / p) for name, p in small_audit.ARTIFACTS.items()}

    def rename(data: dict[str, Any]) -> None:
        for name, artifact in data["artifacts"].items():
            artifact["path"] = places[name]

    edit_spec(spec, rename)


class Ran(NamedTuple):
    exit_code: int
    output: str


def call(*arguments: str) -> Ran:
    """What the console script does, with all that it says."""
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(said),
        redirect_stderr(said),
        pytest.raises(SystemExit) as caught,
    ):
        patch.setattr(sys, "argv", ["auditspec", *arguments])
        main()
    return Ran(int(caught.value.code or 0), said.getvalue())


def told(packet: Path) -> dict[str, Any]:
    """Results without what names places and moments."""
    results = json.loads((packet / "results.json").read_text())
    for item in results["evidence"]:
        item.pop("path")
    return {k: results[k] for k in ("stages", "effects", "verdicts", "checks", "gate", "evidence")}


def test_an_audit_of_a_store_is_the_audit_of_its_bytes(
    audit_spec: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(audit_spec.parent)
    before = read_lock(audit_spec)
    assert call("run", "audit.yaml", "-o", "here", "--unsigned").exit_code == 1
    in_store(audit_spec, bucket)
    for path in small_audit.ARTIFACTS.values():
        (audit_spec.parent / path).rename(audit_spec.parent / f"gone-{path}")
    locked = call("digest", "--lock", "audit.yaml")
    assert locked.exit_code == 0, locked.output
    assert read_lock(audit_spec).digests == before.digests
    valid = call("validate", "audit.yaml")
    assert valid.exit_code == 0, valid.output
    ran = call("run", "audit.yaml", "-o", "there", "--unsigned", "--no-cache")
    assert ran.exit_code == 1, ran.output
    assert told(Path("there")) == told(Path("here"))


def test_what_is_missing_or_another_in_a_store_is_so_as_it_is_here(
    audit_spec: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(audit_spec.parent)
    in_store(audit_spec, bucket)
    Store(f"{bucket}/holdout.parquet").remove("")
    (audit_spec.parent / "other").write_bytes(b"other weights")
    Store(f"{bucket}/model.safetensors").put(audit_spec.parent / "other")
    found = call("validate", "audit.yaml")
    assert found.exit_code == 3
    assert f"[AS040] artifact 'holdout': {bucket}/holdout.parquet" in found.output
    assert "error[AS041] artifact 'final'" in found.output
    assert call("digest", "--lock", "audit.yaml").exit_code == 3


def test_a_packet_in_a_store_is_whole_or_refused(
    audit_spec: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(audit_spec.parent)
    assert call("keys", "new", "auditor").exit_code == 0
    signing = {"key": "auditor.key", "certificate": "auditor.pem"}
    edit_spec(audit_spec, lambda data: data.update(signing=signing))
    place = f"{bucket}/packets/one"
    ran = call("run", "audit.yaml", "-o", place)
    assert ran.exit_code == 1, ran.output
    assert place.removeprefix("file://") + "/packet.dsse.json" in ran.output
    verified = call("verify", place, "--trust", "trust.yaml")
    assert verified.exit_code == 0, verified.output
    again = call("run", "audit.yaml", "-o", place)
    assert again.exit_code == 2 and "--force" in again.output
    if not place.startswith("file"):  # a folder appears at one moment, under its own rules
        refused_half_way(place, monkeypatch)
    Path("x").write_text("not a packet's")
    Store(place).put(Path("x"), "photo.jpeg")
    assert call("run", "audit.yaml", "-o", place, "--force").exit_code == 2


def refused_half_way(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that fails or is killed at any file leaves nothing that verifies."""
    with brought_here(place, Most()) as folder:
        shutil.copytree(folder, "whole")
    files = len(list(Path("whole").iterdir()))
    for killed in (False, True):
        for stop in range(files):
            with monkeypatch.context() as broken:
                broken.setattr(Store, "put", stopping(stop, killed=killed))
                with pytest.raises(KeyboardInterrupt if killed else UsageError):
                    put_again(place)
            assert killed or Store(place).files() == ()
            assert call("verify", place, "--trust", "trust.yaml").exit_code in (2, 6)
    put_again(place)
    assert call("verify", place, "--trust", "trust.yaml").exit_code == 0


def stopping(stop: int, *, killed: bool) -> Callable[[Store, Path, str], None]:
    """Puts so many files, and then no more."""
    put, made = Store.put, list[str]()

    def puts(self: Store, source: Path, path: str = "") -> None:
        if len(made) == stop:
            raise KeyboardInterrupt if killed else UsageError("the line is dead")
        made.append(path)
        put(self, source, path)

    return puts


def put_again(place: str) -> None:
    with folder_for(place, replace=True) as folder:
        shutil.copytree("whole", folder)


def test_a_url_that_no_store_has_is_a_fault_of_the_spec(audit_spec: Path) -> None:
    def name(data: dict[str, Any]) -> None:
        data["artifacts"]["holdout"]["path"] = "s3://key:secret@bucket/holdout.parquet"

    edit_spec(audit_spec, name)
    found = call("validate", str(audit_spec))
    assert found.exit_code == 2 and "error[AS019]" in found.output


def test_sealed_code_reads_what_was_fetched_and_no_credentials(
    audit_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code's process has copies of the evidence; what fetched them is not its own."""
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    (home / ".aws/credentials").write_text("[default]\naws_secret_access_key = in-a-file\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", stores.SECRET)
    small_audit.edit_code(
        audit_spec,
        "def predict(model, batch):\n",
        "def predict(model, batch):\n"
        "    import os\n"
        "    print('SEES', sorted(k for k in os.environ if k.startswith('AWS')))\n"
        "    try:\n"
        f"        print('READS', open({str(home / '.aws/credentials')!r}).read())\n"
        "    except OSError as error:\n"
        "        print('DENIED', type(error).__name__)\n",
    )
    with stores.bucket("memory", tmp_path, monkeypatch) as url:
        in_store(audit_spec, url)
        said: list[str] = []
        monkeypatch.setattr("sys.stderr.write", said.append)
        result = audit(audit_spec, isolation="best")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == stores.SECRET
    assert result.verdicts and "files" in result.run.isolation.measures
    text = "".join(said)
    assert "SEES []" in text and "DENIED" in text
    assert "READS" not in text and stores.SECRET not in text
