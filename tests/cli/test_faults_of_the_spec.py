"""A fault of the spec is told by `validate`, `plan`, and `run` alike: exit 2, its place, what was meant.

None of them executes code first, and `run` leaves no packet that blames the evidence.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import package_audit
import pandas as pd
import pytest
from small_audit import CODE, edit_code, edit_spec, lock

from auditspec.cli.main import main
from auditspec.sign import keys


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Ran]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line, as the console script runs it."""

    def run(folder: Path, *arguments: str) -> Ran:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["auditspec", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Ran(int(caught.value.code or 0), out, err)

    return run


def told(call: Call, spec: Path) -> list[str]:
    """What every command says of a faulty spec, place by place; all say the same and stop."""
    heard = []
    for command in (["validate"], ["plan"], ["plan", "--measure"], ["run", "-o", "packet"]):
        ran = call(spec.parent, command[0], "audit.yaml", *command[1:])
        assert ran.code == 2, ran.err
        assert ran.out == ""
        assert "executing" not in ran.err
        assert "Traceback" not in ran.err
        heard.append([line for line in ran.err.splitlines() if ": error[" in line])
    assert all(lines == heard[0] for lines in heard)
    assert list(spec.parent.glob("*packet*")) == []
    return heard[0]


@pytest.fixture(scope="module")
def trained_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_audit.make(tmp_path_factory.mktemp("package")).parent


@pytest.fixture
def package(trained_package: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    shutil.copytree(trained_package, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "audit.yaml"


def change(spec: Path, old: str, new: str) -> int:
    """Replace the first `old` of a spec; gives the line of the first difference."""
    text = spec.read_text()
    assert old in text
    changed = text.replace(old, new, 1)
    spec.write_text(changed)
    lines = zip(text.splitlines(), changed.splitlines(), strict=True)
    return next(number for number, (a, b) in enumerate(lines, 1) if a != b)


DECLARED = [  # what the record contradicts
    ("id: vendor\n", "id: vendr\n", "AS070", "did you mean 'vendor'?"),
    ("lr: 0.3", "lr: 3.0", "AS071", "largest lr 3 declared, 0.3 recorded"),
    ("schedule: constant", "schedule: cosine", "AS071", "schedule cosine declared"),
    ("state: reset", "state: carry", "AS071", "carry declared, reset recorded"),
    ("momentum: 0.9", "momentum: 0.99", "AS071", "momentum 0.99 declared, 0.9 recorded"),
    ("nesterov: true", "nesterov: false", "AS071", "nesterov False declared, True recorded"),
    ("eps: 1.0e-7", "eps: 1.0e-8", "AS071", "ask the trainer"),
    ("name: AdamW", "name: AdmaW", "AS071", "did you mean 'AdamW'?"),
    ("extend: reader.model:add_head", "extend: reader.model:build_model", "AS081", "arguments"),
    ("      - base", "      - vendor", "AS072", "but on base"),
    ("reader.model:SignSGD", "reader.model:SingSGD", "AS080", "did you mean 'SignSGD'?"),
    ("schedule: constant\n", "options: {dampning: 0}\n", "AS071", "did you mean 'dampening'?"),
]
CODED = [
    ("reader.model:build_model", "reader.model:build_modle", "AS080", "record says reader.model"),
    ("factory: reader.model", "factory: raeder.model", "AS080", "record says reader.model"),
    ("reader.train:predict", "reader.train:predcit", "AS080", "did you mean 'predict'?"),
    ("reader.train:predict", "train:predict", "AS080", "did you mean 'reader.train'?"),
    ("reader.train:predict", "reader.train:cross_entropy", "AS081", "is the objective of stage"),
    ("reader.train:cross_entropy", "reader.train:cros_entropy", "AS080", "record says"),
    (
        "reader.metrics:confidence",
        "reader.metrics:confidnce",
        "AS080",
        "did you mean 'confidence'?",
    ),
    ("reader.metrics:confidence", "reader.train:predict", "AS081", "gives logits"),
]
DATA = [
    ("where: kind == 0 and source in", "where: kind == 9 and source in", "AS033", "kind holds 0, 1, 2, 3"),
    ("kind == 0 and source in", 'kind == "0" and source in', "AS032", "write kind == 0"),
    ("kind == 0 and source in", "knd == 0 and source in", "AS031", "did you mean 'kind'?"),
    ('source != "scan"', 'source != "scna"', "AS033", "did you mean 'scan'?"),
    ('source in ["web"]', 'source in ["web", "wbe"]', "AS033", "did you mean 'web'?"),
    ("x0 > 0.5", "x0 > 50", "AS033", "holds for no row"),
    ("x0 > 0.5", "x0 > -500", "AS033", "holds for every row"),
    ("x0 > 0.5", 'x0 > "a"', "AS032", "compares a number with a text"),
    ("class: 3", "class: 88", "AS035", "classes 0 to 3"),
    ("positive: 1", "positive: 4", "AS035", "classes 0 to 3"),
    ("label: kind\n\nstages", "label: x0\n\nstages", "AS034", "does not hold classes"),
    ("label: kind\n\nstages", "label: source\n\nstages", "AS034", "does not hold classes"),
    ("data: holdout", "data: deployed", "AS036", "holds no examples"),
    ("checkpoint: deployed", "checkpoint: holdout", "AS036", "holds no weights"),
    ("checkpoint: deployed", "checkpoint: given", "AS071", "checkpoint: deployed"),
    ("weights: given", "weights: deployed", "AS037", "other tensors"),
    ("reference: clean", "reference: given", "AS037", "are the same weights"),
    ("reference: trusted", "reference: vendor", "AS037", "are the same data"),
    ("path: base.csv", "path: bsae.csv", "AS046", "lie at base.csv"),
    ("path: base.csv", "path: vendor.csv", "AS046", "another artifact has this path"),
    ("path: record", "path: reader", "AS046", "another artifact has this path"),
    ("tolerance: 0.12", "tolerance: 1.2", "AS029", "can exceed 1.2"),
    ("limit: 0.2", "limit: 2.0", "AS029", "values from 0 to 1"),
    ("limit: 0.2", "limit: 1.0", "AS029", "no model can pass"),
    ("skill: accuracy", "skill: acuracy", "AS028", "did you mean 'accuracy'?"),
    ("device: cpu", "device: cuda:97", "AS090", "auto or cpu"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "code", "said"), [*DECLARED, *CODED, *DATA])
def test_what_contradicts_record_code_data_or_machine(
    call: Call, package: Path, old: str, new: str, code: str, said: str
) -> None:
    place = change(package, old, new)
    lines = told(call, package)
    found = [line for line in lines if f"error[{code}]" in line and said in line]
    assert found, lines
    assert any(line.startswith(f"audit.yaml:{place}:") for line in found), (place, lines)


def test_one_behaviour_is_told_of_alone(call: Call, package: Path) -> None:
    change(package, "x0 > 0.5", "x0 > 50")
    (line,) = told(call, package)
    assert "x0 > 50" in line


def test_several_faults_are_told_at_once(call: Call, package: Path) -> None:
    for old, new, *_ in (DECLARED[0], DECLARED[1], CODED[2], DATA[0]):
        change(package, old, new)
    assert [line.split("error[")[1][:5] for line in told(call, package)] == [
        "AS080",
        "AS071",
        "AS070",
        "AS033",
    ]


def test_stages_left_out_added_and_exchanged(call: Call, audit_spec: Path) -> None:
    whole = audit_spec.read_text()
    edit_spec(audit_spec, lambda data: data["stages"].pop(1))
    assert "the record's stage 'labels' is not declared" in told(call, audit_spec)[0]
    audit_spec.write_text(whole)
    edit_spec(audit_spec, lambda data: data["stages"].append(data["stages"][0] | {"id": "more"}))
    assert "the record has no stage 'more'" in told(call, audit_spec)[0]
    audit_spec.write_text(whole)
    edit_spec(audit_spec, lambda data: data["stages"].reverse())
    (line,) = told(call, audit_spec)
    assert "stage 'polish' stands here, where the record has 'base'" in line
    assert "base, labels, polish" in line


def test_data_that_the_record_knows_by_another_name(call: Call, audit_spec: Path) -> None:
    def rename(data: dict) -> None:
        data["artifacts"]["cleaned"] = data["artifacts"].pop("clean")
        for stage in data["stages"]:
            stage["data"] = ["cleaned" if name == "clean" else name for name in stage["data"]]

    edit_spec(audit_spec, rename)
    lock(audit_spec)
    assert "is what the record calls 'clean'" in told(call, audit_spec)[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 1.0, 2.0], "its values are float64, though whole numbers"),
        ([0, 1, None], "has no class in 1 of 3 rows"),
        ([0, 1, -1], "its smallest value is -1"),
        ([True, False, True], "its values are truth values"),
        (["a", "b", "c"], "its values are text"),
        ([0, 1, 90], "holds values up to 90, and the model's last layer has 3 outputs"),
    ],
)
def test_labels_that_are_no_classes(
    call: Call, audit_spec: Path, values: list[object], said: str
) -> None:
    frame = pd.DataFrame({"x0": [0.1] * 3, "x1": [0.2] * 3, "x2": [0.3] * 3, "y": values})
    frame.to_parquet(audit_spec.parent / "holdout.parquet")
    lock(audit_spec)
    edit_spec(audit_spec, lambda data: [b.pop("where") for b in data["behaviors"]])
    (line,) = told(call, audit_spec)
    assert said in line


def test_a_label_that_tables_of_the_same_form_do_not_have(call: Call, package: Path) -> None:
    """Two of three tables say `kind`: the third is wrong, though its column holds classes."""
    for name in ("base", "vendor", "holdout", "trusted"):
        path = package.parent / f"{name}.csv"
        pd.read_csv(path).assign(pixel=0).to_csv(path, index=False)
    lock(package)
    change(package, "label: kind\n\nstages", "label: pixel\n\nstages")
    lines = call(package.parent, "validate", "audit.yaml").err.splitlines()
    assert any("AS034" in line and "did you mean 'kind'?" in line for line in lines)


def test_a_package_that_is_not_installed_here(call: Call, audit_spec: Path) -> None:
    edit_code(audit_spec, "import numpy as np", "import numpy as np\nimport absent_package")
    (line,) = told(call, audit_spec)
    assert f"imports 'absent_package' at {CODE}:4" in line
    assert "pip install absent_package" in line


def test_a_package_that_is_missed_only_when_the_code_runs(call: Call, audit_spec: Path) -> None:
    edit_code(
        audit_spec,
        "    return nn.Sequential(",
        "    import absent_package\n    return nn.Sequential(",
    )
    assert call(audit_spec.parent, "validate", "audit.yaml").code == 0
    ran = call(audit_spec.parent, "run", "audit.yaml", "-o", "packet")
    assert ran.code == 2
    assert "pip install absent_package" in ran.err
    assert not (audit_spec.parent / "packet").exists()


@pytest.mark.parametrize(
    ("signing", "place", "said"),
    [
        ({"key": "auditr.key"}, "key", "did you mean 'auditor.key'?"),
        ({"key": "auditor.pub"}, "key", "it holds a public key"),
        ({"key": "auditor.key", "certificate": "auditor.pm"}, "certificate", "'auditor.pem'?"),
        (
            {"key": "auditor.key", "certificate": "other.pem"},
            "certificate",
            "the certificate is for",
        ),
        ({"key": "auditor.key", "level": "B-B"}, "level", "needs a certificate"),
        (
            {"key": "auditor.key", "certificate": "auditor.pem", "level": "B-T"},
            "level",
            "needs a timestamp authority",
        ),
        ({"key": "auditor.key", "crls": ["auditor.pub"]}, "auditor.pub", "not a revocation list"),
    ],
)
def test_keys_that_do_not_fit(
    call: Call, audit_spec: Path, signing: dict[str, object], place: str, said: str
) -> None:
    for name in ("auditor", "other"):
        call(audit_spec.parent, "keys", "new", name, "--trust-file", f"{name}.yaml")
    edit_spec(audit_spec, lambda data: data.update(signing=signing))
    number = next(
        n
        for n, line in enumerate(audit_spec.read_text().splitlines(), 1)
        if (place in line and ":" in line) or line.strip() == f'- "{place}"'
    )
    (line,) = told(call, audit_spec)
    assert said in line
    assert line.startswith(f"audit.yaml:{number}:")
    edit_spec(audit_spec, lambda data: data["signing"].clear() or data.pop("signing"))
    assert call(audit_spec.parent, "validate", "audit.yaml").code == 0


def test_a_trainers_key_that_is_not_there(call: Call, audit_spec: Path) -> None:
    key = keys.generate("ed25519").public_key()
    keys.write_public(audit_spec.parent / "trainer.pub", key)
    edit_spec(audit_spec, lambda d: d["artifacts"]["record"].update(signed_by="trainr.pub"))
    (line,) = told(call, audit_spec)
    assert "did you mean 'trainer.pub'?" in line
    edit_spec(audit_spec, lambda d: d["artifacts"]["record"].pop("signed_by"))
    edit_spec(audit_spec, lambda d: d["artifacts"]["clean"].update(signed_by="trainer.pub"))
    assert "a trainer signs the record and commitments, and no other" in told(call, audit_spec)[0]


def test_evaluation_data_that_was_trained_on_is_warned_of(call: Call, audit_spec: Path) -> None:
    shutil.copy(audit_spec.parent / "clean.parquet", audit_spec.parent / "holdout.parquet")
    lock(audit_spec)
    ran = call(audit_spec.parent, "validate", "audit.yaml")
    assert ran.code == 0
    assert ran.err.count("warning[AS038] evaluation data 'holdout' is training data of base") == 2


def test_a_slice_without_rows_beside_it_is_warned_of(call: Call, audit_spec: Path) -> None:
    edit_spec(audit_spec, lambda data: data["behaviors"][0].update(where="y in [0, 1, 2]"))
    ran = call(audit_spec.parent, "validate", "audit.yaml")
    assert ran.code == 0
    assert "warning[AS039] the slice holds all 120 rows" in ran.err


# --- evidence stays evidence --------------------------------------------------------------------


def test_a_record_that_contradicts_itself_is_no_fault_of_the_spec(
    call: Call, audit_spec: Path
) -> None:
    from tampering import rewrite_header

    from auditspec.recorder.writer import finish_manifest

    record = audit_spec.parent / "record"
    rewrite_header(
        record,
        lambda header: header["stages"][0]["groups"].append({"parameters": [], "options": {}}),
    )
    finish_manifest(record)
    lock(audit_spec)
    ran = call(audit_spec.parent, "validate", "audit.yaml")
    assert ran.code == 3
    assert "AS045" in ran.err and "2 parameter groups in the record's header" in ran.err


@pytest.mark.parametrize(
    ("text", "said"),
    [("def (", f"{CODE}:3: "), ("from small_training_parts import x", "small_training_parts")],
)
def test_code_that_cannot_be_imported(call: Call, audit_spec: Path, text: str, said: str) -> None:
    edit_code(audit_spec, "import numpy as np", text)
    ran = call(audit_spec.parent, "validate", "audit.yaml")
    assert ran.code == (3 if text == "def (" else 2)
    assert said in ran.err


def test_weights_of_another_model(call: Call, audit_spec: Path) -> None:
    import torch

    from auditspec.artifacts.checkpoints import write_tensors

    write_tensors(audit_spec.parent / "model.safetensors", {"w": torch.ones(3)})
    lock(audit_spec)
    ran = call(audit_spec.parent, "validate", "audit.yaml")
    assert ran.code == 3
    assert "AS045" in ran.err and "0.bias" in ran.err


def test_a_package_trained_by_python_m_is_valid_and_executes(call: Call, package: Path) -> None:
    (warning,) = call(package.parent, "validate", "audit.yaml").err.splitlines()
    assert "warning[AS058] 'logit-margin' in logits is the only measure of 'margin'" in warning
    ran = call(package.parent, "plan", "audit.yaml", "--measure")
    assert ran.code == 0, ran.err
    assert "measured here" in ran.out
