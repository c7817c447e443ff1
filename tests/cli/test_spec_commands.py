import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from factories import SPEC_TEXT, write_spec

from auditspec.artifacts.manifest import digest_path
from auditspec.cli.main import BUG, COMMANDS, main
from auditspec.spec import schema
from auditspec.spec.lock import lock_path, read_lock

ONE = "sha256:" + "1" * 64


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the command line in `tmp_path`, as the console script does."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["auditspec", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Ran(int(caught.value.code or 0), out, err)

    return call


def locked(folder: Path, text: str = SPEC_TEXT) -> Path:
    """A spec with artifacts that its lock pins."""
    spec = write_spec(folder, text)
    names = {"code": "src", "record": "record", "final": "model.safetensors"}
    names |= {"train": "train.csv", "holdout": "holdout.csv"}
    digests = {name: digest_path(folder / path).digest for name, path in names.items()}
    lock_path(spec).write_text(json.dumps({"auditspec_lock": "1", "digests": digests}))
    return spec


# --- the command line itself --------------------------------------------------------------------


def test_help_lists_every_command_and_costs_little(tmp_path: Path) -> None:
    before = os.times()
    ran = subprocess.run(
        [sys.executable, "-c", "from auditspec.cli.main import main; main()", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    after = os.times()
    assert all(name in ran.stdout for name in COMMANDS)
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 0.4


def test_validate_does_not_import_torch(tmp_path: Path) -> None:
    locked(tmp_path)
    script = (
        "import sys\n"
        "from auditspec.cli.main import cli\n"
        "cli.main(['validate', 'audit.yaml'], standalone_mode=False)\n"
        "print('torch' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert ran.stdout.splitlines() == [
        "audit.yaml: valid (2 stages, 1 behaviour; 5 artifacts verified)",
        "False",
    ]


def test_unknown_commands_and_options(run: Run) -> None:
    assert run("validat").code == 2
    assert "no command 'validat'; did you mean 'validate'?" in run("validat").err
    assert "commands: init, validate" in run("zzz").err
    assert run("validate").code == 2
    assert run("validate", "audit.yaml", "--format", "xml").code == 2
    assert run("--nope").code == 2


def test_a_bug_is_not_mistaken_for_a_failed_gate(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("auditspec.cli.spec.load", broken)
    ran = run("validate", "audit.yaml")
    assert ran.code == BUG
    assert "ZeroDivisionError: oops" in ran.err
    assert "please report" in ran.err


# --- init ---------------------------------------------------------------------------------------


def test_init_writes_a_spec_that_lacks_only_its_artifacts(run: Run, tmp_path: Path) -> None:
    ran = run("init")
    assert (ran.code, ran.out) == (0, "")
    checked = run("validate", "audit.yaml", "--format", "json")
    assert checked.code == 3
    assert {problem["code"] for problem in json.loads(checked.out)} == {"AS040"}


def test_init_takes_a_file_or_a_folder_and_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert run("init", "folder").code == run("init", "other.yaml").code == 0
    assert (tmp_path / "folder/audit.yaml").read_text() == (tmp_path / "other.yaml").read_text()
    (tmp_path / "other.yaml").write_text("mine")
    again = run("init", "other.yaml")
    assert again.code == 2
    assert "other.yaml is there already" in again.err
    assert (tmp_path / "other.yaml").read_text() == "mine"
    assert run("init", "no/such/folder.yaml").code == 2


# --- validate -----------------------------------------------------------------------------------


COUNTED = """\
  - id: threes-counted
    description: a 3 is read as an 8
    metric: {name: rate, class: 8}
    data: holdout
    where: digit == 3 and source != "synthetic"
    concern: {direction: increase, tolerance: 0.1}
"""
"""A behaviour that counts what the one of `SPEC_TEXT` measures in logits."""


def test_a_valid_spec_with_pinned_artifacts(run: Run, tmp_path: Path) -> None:
    locked(tmp_path)
    (tmp_path / "audit.yaml").write_text(SPEC_TEXT + COUNTED)
    assert run("validate", "audit.yaml") == Ran(
        0, "audit.yaml: valid (2 stages, 2 behaviours; 5 artifacts verified)\n", ""
    )
    assert run("validate", "audit.yaml", "--format", "json") == Ran(0, "[]\n", "")


def test_a_margin_that_nothing_on_the_same_rows_counts_is_a_warning(
    run: Run, tmp_path: Path
) -> None:
    locked(tmp_path)
    elsewhere = SPEC_TEXT + COUNTED.replace(' and source != "synthetic"', "")
    for text in (SPEC_TEXT, elsewhere):
        (tmp_path / "audit.yaml").write_text(text)
        ran = run("validate", "audit.yaml")
        assert ran.code == 0
        assert ran.err == (
            "audit.yaml:37:20: warning[AS058] 'logit-margin' in logits is the only measure of "
            "'three-read-as-eight', and readers count examples; add a behaviour on the same rows that "
            "counts: rate (docs/choosing.md)\n"
        )


def test_unpinned_artifacts_are_warnings(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path, SPEC_TEXT + COUNTED)
    ran = run("validate", "audit.yaml")
    assert ran.code == 0
    assert ran.out == "audit.yaml: valid (2 stages, 2 behaviours; 0 artifacts verified)\n"
    assert len(ran.err.splitlines()) == 5
    assert ran.err.startswith("audit.yaml:6:10: warning[AS043] artifact 'code': nothing pins")


@pytest.mark.parametrize(
    ("old", "new", "place", "code"),
    [
        ("lr: 0.1\n", "lr: 0.1\n      learnig_rate: 1\n", "27:7", "AS012"),
        ('"1.0"', "1.10", "4:33", "AS014"),
        ("checkpoint: final", "checkpoint: last", "17:15", "AS021"),
        ("id: finetune", "id: pretrain", "27:9", "AS023"),
        ("lr: 0.1\n", "lr: -0.1\n", "26:11", "AS015"),
        ("    owner: Product", "\towner: Product", "28:1", "AS003"),
        ("lr: 0.1\n", "lr: 0.1\n      lr: 0.1\n", "27:7", "AS005"),
        ("Product team", "*team", "28:12", "AS006"),
        ('auditspec: "1"', 'auditspec: "7"', "1:12", "AS016"),
        ('digit == 3 and source != "synthetic"', "\"@os.system('x')\"", "39:13", "AS030"),
        ("digit == 3 and", "digit.map(print) and", "39:17", "AS030"),
        ("digit == 3 and", "exec(digit) and", "39:16", "AS030"),
    ],
)
def test_broken_specs(run: Run, tmp_path: Path, old: str, new: str, place: str, code: str) -> None:
    assert old in SPEC_TEXT
    write_spec(tmp_path, SPEC_TEXT.replace(old, new, 1))
    text = run("validate", "audit.yaml")
    assert (text.code, text.out) == (2, "")
    assert text.err.startswith(f"audit.yaml:{place}: error[{code}] ")
    assert len(text.err.splitlines()) == 1
    listed = run("validate", "audit.yaml", "--format", "json")
    assert (listed.code, listed.err) == (2, "")
    (problem,) = json.loads(listed.out)
    assert f"{problem['line']}:{problem['column']}" == place
    assert (problem["severity"], problem["code"], problem["file"]) == ("error", code, "audit.yaml")


def test_missing_changed_and_unsafe_artifacts(run: Run, tmp_path: Path) -> None:
    pinned = SPEC_TEXT.replace("{path: record}", f'{{path: record, digest: "{ONE}"}}')
    write_spec(tmp_path, pinned + COUNTED)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.csv").symlink_to("holdout.csv")
    lock_path(tmp_path / "audit.yaml").write_text(
        json.dumps({"auditspec_lock": "1", "digests": {"code": ONE}})
    )
    ran = run("validate", "audit.yaml")
    assert (ran.code, ran.out) == (3, "")
    found = [line.split(" artifact")[0] for line in ran.err.splitlines()]
    assert found == [
        "audit.yaml:6:10: error[AS041]",  # pinned by the lock: shown at the path
        "audit.yaml:7:26: error[AS041]",  # pinned by the spec: shown at the digest
        "audit.yaml:8:11: error[AS040]",
        "audit.yaml:9:11: error[AS042]",
        "audit.yaml:11:5: warning[AS043]",
    ]


def test_spec_problems_outweigh_evidence_problems(run: Run, tmp_path: Path) -> None:
    locked(tmp_path)
    (tmp_path / "holdout.csv").write_text("digit,sauce\n3,scan\n")
    lock = json.loads((tmp_path / "audit.lock.json").read_text())
    lock["digests"] |= {"holdout": digest_path(tmp_path / "holdout.csv").digest, "record": ONE}
    (tmp_path / "audit.lock.json").write_text(json.dumps(lock))
    ran = run("validate", "audit.yaml")
    assert ran.code == 2
    first, scale, second = ran.err.splitlines()
    assert first.startswith("audit.yaml:7:12: error[AS041] artifact 'record'")
    assert scale.startswith("audit.yaml:37:20: warning[AS058]")
    assert second == (
        "audit.yaml:39:12: error[AS031] holdout.csv has no column 'source'; did you mean 'sauce'?"
    )


def test_a_wrong_lock_is_reported_with_the_evidence(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    lock_path(tmp_path / "audit.yaml").write_text('{"auditspec_lock": "1", "digest": {}}')
    ran = run("validate", "audit.yaml")
    assert ran.code == 2
    assert "audit.lock.json:1:25: error[AS012]" in ran.err
    assert "audit.yaml:8:11: error[AS040]" in ran.err


def test_columns_of_labels_and_slices_in_parquet(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path, SPEC_TEXT.replace("holdout.csv", "holdout.parquet"))
    pd.DataFrame({"digt": [3]}).to_parquet(tmp_path / "holdout.parquet")
    errors = [line for line in run("validate", "audit.yaml").err.splitlines() if "error" in line]
    assert errors == [
        "audit.yaml:12:12: error[AS031] holdout.parquet has no column 'digit'; "
        "did you mean 'digt'?",
        "audit.yaml:39:12: error[AS031] holdout.parquet has no column 'digit'; "
        "did you mean 'digt'?",
        "audit.yaml:39:12: error[AS031] holdout.parquet has no column 'source'; columns: digt",
    ]
    (tmp_path / "holdout.parquet").write_bytes(b"PAR1 damaged")
    damaged = run("validate", "audit.yaml")
    assert damaged.code == 3
    assert "audit.yaml:11:5: error[AS042] artifact 'holdout'" in damaged.err


def test_a_spec_that_is_not_there(run: Run, tmp_path: Path) -> None:
    ran = run("validate", "audit.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "audit.yaml: no such file" in ran.err
    assert "auditspec init" in ran.err
    assert run("validate", ".").code == 2


# --- schema and digest --------------------------------------------------------------------------


def test_schema(run: Run, tmp_path: Path) -> None:
    assert run("schema").out == run("schema", "auditspec-1").out
    assert json.loads(run("schema", "auditspec-results-2").out)["title"] == "AuditResult"
    assert run("schema", "auditspec-9").code == 2
    ran = run("schema", "--write", "out")
    assert (ran.code, ran.out) == (0, "")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == schema.documents().keys()
    (tmp_path / "file").write_text("")
    assert run("schema", "--write", "file").code == 2


def test_digest_prints_files_and_folders(run: Run, tmp_path: Path) -> None:
    write_spec(tmp_path)
    file, source = digest_path(tmp_path / "train.csv"), digest_path(tmp_path / "src")
    assert (
        run("digest", "train.csv", "src").out == f"{file.digest}  train.csv\n{source.digest}  src\n"
    )
    assert json.loads(run("digest", "src", "--format", "json").out) == [
        {
            "path": "src",
            "digest": source.digest,
            "kind": "folder",
            "size": source.size,
            "files": 1,
        }
    ]
    missing = run("digest", "train.csv", "nope")
    assert (missing.code, missing.out) == (3, "")
    assert "nope: no such file" in missing.err
    assert run("digest").code == 2
    assert run("digest", "src", "--lock", "audit.yaml").code == 2


def test_digest_lock_pins_what_the_spec_does_not(run: Run, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    source = digest_path(tmp_path / "src").digest
    spec.write_text(SPEC_TEXT.replace("{path: src}", f'{{path: src, digest: "{source}"}}'))
    ran = run("digest", "--lock", "audit.yaml")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 5
    assert ran.err == "wrote audit.lock.json: 4 digests\n"
    assert read_lock(spec).digests.keys() == {"record", "final", "train", "holdout"}
    assert "5 artifacts verified" in run("validate", "audit.yaml").out


def test_digest_lock_changes_no_pin_unnamed(run: Run, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert run("digest", "--lock", "audit.yaml").err == "wrote audit.lock.json: 5 digests\n"
    assert read_lock(spec).rows == {"train": 1, "holdout": 2}
    assert run("digest", "--lock", "audit.yaml").code == 0  # nothing changed
    before = lock_path(spec).read_bytes()
    (tmp_path / "holdout.csv").write_bytes((tmp_path / "train.csv").read_bytes())
    refused = run("digest", "--lock", "audit.yaml")
    assert (refused.code, refused.out) == (2, "")
    (line,) = refused.err.splitlines()
    assert line.startswith("audit.lock.json:6:5: error[AS052] artifact 'holdout'")
    assert "2 → 1 rows; the same bytes as train" in line
    assert "--update holdout" in line
    assert lock_path(spec).read_bytes() == before
    assert run("digest", "--lock", "audit.yaml", "--update", "train").code == 2
    unknown = run("digest", "--lock", "audit.yaml", "--update", "holdot")
    assert unknown.code == 2 and "did you mean 'holdout'?" in unknown.err
    assert lock_path(spec).read_bytes() == before
    named = run("digest", "--lock", "audit.yaml", "--update", "holdout")
    assert named.code == 0
    assert "holdout: sha256:" in named.err and "2 → 1 rows" in named.err
    assert "warning[AS038] evaluation data 'holdout' is training data of pretrain" in named.err
    assert read_lock(spec).rows["holdout"] == 1
    (tmp_path / "train.csv").write_text("digit,source\n4,scan\n")
    (tmp_path / "src" / "train.py").write_text("x = 1\n")
    both = run("digest", "--lock", "audit.yaml", "--update", "code")
    assert both.code == 2 and "'train'" in both.err and "'code'" not in both.err
    assert run("digest", "--lock", "audit.yaml", "--update-all").code == 0
    assert run("digest", "src", "--update-all").code == 2


def test_digest_lock_takes_new_artifacts_and_drops_old_ones(run: Run, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    run("digest", "--lock", "audit.yaml")
    (tmp_path / "more.csv").write_text("a\n1\n")
    source = digest_path(tmp_path / "src").digest
    more = SPEC_TEXT.replace("  train:", "  more: {path: more.csv}\n  train:")
    spec.write_text(more.replace("{path: src}", f'{{path: src, digest: "{source}"}}'))
    ran = run("digest", "--lock", "audit.yaml")
    assert ran.code == 0
    assert "code: no longer pinned here" in ran.err
    assert read_lock(spec).digests.keys() == {"record", "final", "more", "train", "holdout"}


def test_a_lock_that_is_damaged_is_not_written_over(run: Run, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    lock_path(spec).write_text("{}")
    ran = run("digest", "--lock", "audit.yaml")
    assert ran.code == 2
    assert "audit.lock.json:1:1: error[AS013]" in ran.err
    assert lock_path(spec).read_text() == "{}"


def test_digest_lock_writes_nothing_unless_all_is_there(run: Run, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    missing = run("digest", "--lock", "audit.yaml")
    assert (missing.code, missing.out) == (3, "")
    assert "artifact 'final': model.safetensors: no such file" in missing.err
    spec.write_text(SPEC_TEXT.replace("{path: src}", f'{{path: src, digest: "{ONE}"}}'))
    assert "the spec pins sha256:111" in run("digest", "--lock", "audit.yaml").err
    spec.write_text(SPEC_TEXT.replace("lr: 0.1\n", "lr: -1\n"))
    wrong = run("digest", "--lock", "audit.yaml")
    assert wrong.code == 2
    assert "audit.yaml:26:11: error[AS015]" in wrong.err
    assert not lock_path(spec).exists()
