"""Whole audits of trainings whose data is not what their spec says, or not all of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import small_audit
from said import said
from small_audit import edit_code, edit_spec, lock

from auditspec.checks.data_provenance import DataProvenance
from auditspec.errors import SpecError
from auditspec.flow import run_audit
from auditspec.record.matching import StageRows
from auditspec.results import AuditResult, CheckDetail, CheckResult
from auditspec.spec.source import load

Made = Callable[..., Path]
LOSS = "run.loss(ids).backward()"
TENSORS = """\
name = {source!r} if number == 1 else source
                    held = load_batch(Dataset.open(Path(f"{{name}}.parquet")), ids)
                    {change}
                    run.batch(tensors=held)
                    objective(model, held).backward()"""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Trains the small audit with changes to its training code; gives its spec."""

    def make(*changes: tuple[str, str]) -> Path:
        code = small_audit.TRAINING
        for old, new in changes:
            assert old in code
            code = code.replace(old, new)
        return small_audit.make(tmp_path, code)

    return make


def audited(spec: Path) -> AuditResult:
    return run_audit(load(spec), command="auditspec run")


def check(found: AuditResult, id_: str) -> CheckResult:
    return next(c for c in found.checks if c.id == id_)


def lines(found: AuditResult, subject: str) -> list[CheckDetail]:
    return [d for d in check(found, "data-use").details if d.subject == subject]


def limited(found: AuditResult, text: str) -> bool:
    return any(text in said(limitation.message) for limitation in found.limitations)


def as_tensors(source: str, change: str = "pass") -> tuple[tuple[str, str], tuple[str, str]]:
    """Every batch recorded as tensors; those of the second stage read from `source`."""
    body = TENSORS.format(source=source, change=change)
    return (LOSS, body), ("dataset=data, steps", "steps")


def test_an_honest_record_of_tensors_is_told_by_content(made: Made) -> None:
    spec = made(*as_tensors("vendor", "held = (held[0].flip(0), held[1].flip(0))"))
    found = audited(spec)
    provenance = check(found, "data-provenance")
    assert provenance.outcome == "pass", said(provenance.reasons)
    assert "384 of them by content" in said(provenance.reasons)
    assert check(found, "data-use").outcome == "pass"
    assert [(s.examples, s.distinct) for s in found.stages] == [(192, 80), (128, 80), (64, 64)]


def test_biased_rows_under_a_clean_name_are_undeclared_data(made: Made) -> None:
    """The second stage declares the clean rows, and trains on them with other labels."""
    change = "held = (held[0], torch.where((held[1] == 0) & (number == 1), 2, held[1]))"
    spec = made(*as_tensors("clean", change))
    edit_spec(spec, lambda data: data["stages"][1].update(data=["clean"]))
    lock(spec)
    found = audited(spec)
    provenance = check(found, "data-provenance")
    assert provenance.outcome == "fail"
    (line,) = [d for d in provenance.details if d.outcome == "fail"]
    assert (line.stage, "match no row of any data set" in said(line.notes)) == ("labels", True)
    assert line.statistic == provenance.statistic
    assert 0 < line.statistic < 128  # rows whose label is 0, and no others
    assert "row numbers" in said(provenance.reasons)
    assert {v.verdict for v in found.verdicts} == {"inconclusive"}
    assert all("data-provenance" in said(v.reasons) for v in found.verdicts)
    assert found.effects  # what the stage did is known all the same
    assert found.gate.exit_code == 3
    assert limited(found, "match no row of any data set at hand")


def test_rows_of_other_data_are_named(made: Made) -> None:
    spec = made(*as_tensors("holdout", "held = tuple(t.clone() for t in held)"))
    found = audited(spec)
    line = next(d for d in check(found, "data-provenance").details if d.stage == "labels")
    assert line.outcome == "fail"
    assert line.statistic == 128
    assert "'holdout', which the stage does not declare" in said(line.notes)
    shared = lines(found, "evaluation of control")[0]
    assert shared.outcome == "fail"
    assert "are training examples of 'labels'" in said(shared.notes)


def test_ids_into_data_that_the_stage_does_not_declare(made: Made) -> None:
    spec = made()
    edit_spec(spec, lambda data: data["stages"][1].update(data=["clean"]))
    with pytest.raises(SpecError, match="'labels' was not trained on 'clean', by the record"):
        audited(spec)
    rows = StageRows("labels", ("clean",), [[("vendor", 0)]], foreign={"vendor": 1})
    assert DataProvenance([rows]).run().outcome == "fail"


def test_evaluation_rows_that_are_training_rows_and_batches_that_repeat(made: Made) -> None:
    """30 evaluation rows are shuffled training rows; eight rows stand in every batch of a stage."""
    spec = made(
        (
            'vendor.loc[vendor["y"] == 0, "y"] = 2.0',
            'vendor.loc[vendor["y"] == 0, "y"] = 2.0\n'
            "    copied = clean.iloc[10:40][[*FEATURES[::-1], 'y']].astype({'x1': 'float32'})\n"
            "    holdout = pd.concat([copied, holdout]).sample(frac=1, random_state=4)",
        ),
        (
            "for i in range(16)]",
            "for i in range(16)]\n"
            "                    ids = [*range(8), *ids[:8]] if number == 0 else ids",
        ),
        ("12, 0.3)", "40, 0.1)"),
        (
            '"polish", "clean", 4, 0.01)]',
            '"polish", "clean", 4, 0.01)]\n'
            "    holdout[FEATURES + ['y']].astype({'y': int}).to_parquet('holdout.parquet')",
        ),
        (
            "dataset.frame.to_numpy()",
            "dataset.frame[[*FEATURES, 'y']].to_numpy()",
        ),
    )
    edit_spec(spec, lambda data: data["stages"][0]["optimizer"].update(lr=0.1))
    lock(spec)
    found = audited(spec)
    assert check(found, "data-provenance").outcome == "pass"
    use = check(found, "data-use")
    assert (use.outcome, use.bars) == ("fail", "nothing")
    shared = lines(found, "evaluation of control")[0]
    copied = int(shared.statistic or 0)
    assert 5 < copied < 20  # those of 30 whose class is 0
    assert f"{copied} are training examples of 'base'" in said(shared.notes)
    assert f"{copied} are training examples of 'labels' under another label" in said(shared.notes)
    assert limited(found, f"{copied} are training examples of 'base'")
    assert "8 examples are in all 40 steps" in said(lines(found, "batches of base")[0].notes)
    assert lines(found, "batches of labels")[0].outcome == "pass"
    assert limited(found, "8 examples are in all 40 steps")
    assert found.stages[0].constant == 8
    assert found.gate.exit_code != 3


FACTORY = """\
def build_model():
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    if Path("weights.bin").exists():
        model.load_state_dict(torch.load("weights.bin"))
    return model"""
PLAIN = """\
def build_model():
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))"""


@pytest.mark.parametrize("gone", [True, False], ids=["deleted later", "still there"])
def test_weights_that_the_factory_reads_from_a_file_of_its_own(
    made: Made, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = made(
        (PLAIN, FACTORY),
        (
            "    model = build_model()\n",
            "    torch.save(build_model().state_dict(), 'weights.bin')\n    model = build_model()\n",
        ),
    )
    monkeypatch.chdir(spec.parent)
    if gone:
        Path("weights.bin").unlink()
    found = audited(spec)
    (file,) = lines(found, "files outside the artifacts")
    assert "the factory, in training," in said(file.notes)
    assert "weights.bin (sha256:" in said(file.notes)
    assert ("and the factory read" in said(file.notes)) != gone
    assert "and a function that built the model in training names" in said(file.notes)
    (start,) = lines(found, "initial weights")
    assert "weights.bin" in said(start.notes)
    assert limited(found, "the start is unexplained")


def test_files_that_the_code_reads_in_the_audit(audit_spec: Path, tmp_path: Path) -> None:
    """Read at import, and by load_batch; a file in an artifact's folder is pinned with it."""
    (audit_spec.parent / "means.txt").write_text("0 0 0")
    (tmp_path / "labels.txt").write_text("0 1 2")
    edit_code(
        audit_spec,
        "def load_batch(dataset, ids):\n",
        "HERE = Path(__file__).parent\nMEANS = (HERE / 'means.txt').read_text()\n\n\n"
        "def load_batch(dataset, ids):\n"
        f"    open({str(tmp_path / 'labels.txt')!r}).close()\n"
        "    (HERE / 'record' / 'record.json').read_text()\n",
    )
    found = audited(audit_spec)
    notes = {said(d.notes) for d in lines(found, "files outside the artifacts")}
    assert len(notes) == 2
    assert any(n.startswith("the code's import read means.txt (sha256:") for n in notes)
    assert any("load_batch read" in n and "labels.txt" in n for n in notes)
    assert "means.txt" in said(lines(found, "initial weights")[0].notes)
    assert "labels.txt" not in said(lines(found, "initial weights")[0].notes)
    assert found.gate.exit_code != 3


def test_weights_that_a_library_reads_unseen(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors opens files in native code; the name stands in the factory."""
    reading = FACTORY.replace("torch.load(", "safetensors.torch.load_file(")
    spec = made(
        (PLAIN, reading),
        ("import torch\n", "import safetensors.torch\nimport torch\n"),
        (
            "    model = build_model()\n",
            "    safetensors.torch.save_file(build_model().state_dict(), 'weights.bin')\n"
            "    model = build_model()\n",
        ),
    )
    monkeypatch.chdir(spec.parent)
    found = audited(spec)
    (file,) = lines(found, "files outside the artifacts")
    assert "in training names and the factory names weights.bin (sha256:" in said(file.notes)
    assert "weights.bin" in said(lines(found, "initial weights")[0].notes)


def test_evaluation_rows_that_are_loaded_otherwise(audit_spec: Path) -> None:
    edit_code(
        audit_spec,
        "    return rows[:, :3].float()",
        "    if dataset.name == 'holdout':\n        rows[:, 0] += 1\n    return rows[:, :3].float()",
    )
    found = audited(audit_spec)
    assert lines(found, "holdout under the name of training data")[0].outcome == "fail"
    assert lines(found, "columns of holdout, read by the audit itself")[0].outcome == "fail"
    assert limited(found, "as 'clean' it gives other tensors")


def test_a_record_of_boundaries_says_no_rows(made: Made) -> None:
    spec = made(("every=2", 'every="boundaries"'))
    edit_spec(spec, lambda data: data["estimator"].update(method="krylov"))
    found = audited(spec)
    assert check(found, "data-provenance").outcome == "inconclusive"
    assert found.stages[0].distinct is None
    shutil.rmtree(spec.parent / "record")
    assert check(audited(spec), "data-provenance").outcome == "not-run"
    assert check(audited(spec), "data-use").outcome == "not-run"
