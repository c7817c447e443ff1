"""Runs that nobody recorded: the Trainer's own output folders, made into a record."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

import hf_audit
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from auditspec.artifacts.manifest import digest_path
from auditspec.cli.main import cli
from auditspec.errors import EvidenceError, UsageError
from auditspec.importing.from_spec import import_as_specified
from auditspec.record.trajectory import Trajectory
from auditspec.spec.source import load

STAGES = """
@trainer_objective
def base(model):
    return trainer(
        model, "clean", num_train_epochs=2, save_strategy="steps", save_steps=3, eval_strategy="steps",
        eval_dataset=examples("holdout"), eval_steps=1, output_dir=str(HERE / "out-base"),
    )


@trainer_objective
def labels(model):
    made = trainer(
        model, "vendor", bf16=True, gradient_accumulation_steps=2, save_strategy="epoch",
        output_dir=str(HERE / "out-labels"),
    )
    made.train_dataset = made.train_dataset[:23]  # not every row
    return made


STAGES = {"base": (base, "clean"), "labels": (labels, "vendor")}


def unrecorded():
    torch.manual_seed(5)
    model = build_model()
    model.save_pretrained(HERE / "begin")
    for name in STAGES:
        trained = STAGES[name][0].__wrapped__(model)
        trained.train()
        model = build_model()
        model.load_state_dict(trained.model.state_dict())
    return model
"""


def run_unrecorded(folder: Path, stages: str = STAGES) -> Path:
    """Fine-tune twice as people do, and write the spec of an audit whose record is not there."""
    hf_audit.write(folder, stages)
    with hf_audit.code(folder) as lab:
        weights = lab.unrecorded().state_dict()
    return hf_audit.specify(
        folder,
        weights,
        {"base": "clean", "labels": "vendor"},
        start="begin/model.safetensors",
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_unrecorded(tmp_path_factory.mktemp("run"))


@pytest.fixture
def spec(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished.parent, tmp_path / "run", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "run" / finished.name


def outputs(spec: Path) -> dict[str, Path]:
    return {name: spec.parent / f"out-{name}" for name in ("base", "labels")}


@pytest.mark.slow
def test_a_run_made_again_meets_every_checkpoint_bit_for_bit(spec: Path) -> None:
    before = sorted(path for path in spec.parent.rglob("*") if "__pycache__" not in str(path))
    folder = spec.parent / "record"
    given = [f"--checkpoints={name}={path}" for name, path in outputs(spec).items()]
    done = CliRunner().invoke(cli, ["record", "import", str(spec), *given], catch_exceptions=False)
    assert [line.split() for line in done.stdout.splitlines()[1:]] == [
        [*place, "bitwise", "-", "bitwise", "bitwise"]
        for place in (["base", "3"], ["base", "6"], ["labels", "2"])
    ]
    header = Trajectory.open(folder).header
    assert header.regenerated is not None
    met = header.regenerated.checkpoints
    assert [(c.stage, c.step) for c in met] == [
        ("base", 3),
        ("base", 6),
        ("labels", 2),
    ]
    assert all(c.bitwise and c.optimizer == 0 and c.random for c in met)
    trajectory = Trajectory.open(folder)
    assert trajectory.grade == "regenerated"
    numbered = [{b.dataset for step in s.steps for b in step.batches} for s in trajectory.stages]
    assert numbered == [{"clean"}, {None}]
    shown = CliRunner().invoke(cli, ["record", "show", str(folder)], catch_exceptions=False)
    assert done.stdout in shown.stdout
    assert all(len(s.state_steps) == s.header.steps + 1 for s in trajectory.stages)
    after = [p for p in spec.parent.rglob("*") if "__pycache__" not in str(p)]
    assert sorted(p for p in after if not p.is_relative_to(folder)) == before  # nothing was saved


@pytest.mark.slow
def test_examples_in_another_order_than_their_data_are_recorded_without_numbers(
    tmp_path: Path,
) -> None:
    spec = run_unrecorded(tmp_path, STAGES.replace("[:23]", "[::-1]"))
    header = import_as_specified(load(spec), outputs(spec), tmp_path / "record")
    assert header.regenerated is not None
    assert all(c.bitwise for c in header.regenerated.checkpoints)
    trajectory = Trajectory.open(tmp_path / "record")
    numbered = [{b.dataset for step in s.steps for b in step.batches} for s in trajectory.stages]
    assert numbered == [{"clean"}, {None}]


@pytest.mark.slow
def test_an_imported_record_is_audited(spec: Path) -> None:
    import_as_specified(load(spec), outputs(spec), spec.parent / "record")
    hf_audit.small_audit.lock(spec)
    result = hf_audit.audited(spec)
    assert result.evidence_grade == "regenerated"
    check = {check.id: check for check in result.checks}["record-fidelity"]
    assert check.outcome == "pass"
    assert "checkpoints-met" in [reason.code for reason in check.reasons]
    assert "run-made-again" in [limit.message.code for limit in result.limitations]
    (verdict,) = result.verdicts
    assert "labels" in verdict.parties


@pytest.mark.slow
def test_a_run_that_misses_a_checkpoint_is_recorded_by_its_boundaries(spec: Path) -> None:
    """The code is not the one that trained: it is said which argument differs."""
    code = spec.parent / f"{hf_audit.MODULE}.py"
    code.write_text(code.read_text().replace("learning_rate=5e-3", "learning_rate=4e-3"))
    header = import_as_specified(load(spec), outputs(spec), spec.parent / "record")
    assert header.every == "boundaries"
    assert header.regenerated is not None
    assert header.regenerated.arguments == ("learning_rate",)
    missed = header.regenerated.missed[0]
    assert (missed.stage, missed.step) == ("base", 3)
    assert missed.deviation > 1e-4
    first, second = Trajectory.open(spec.parent / "record").stages
    last = load_file(spec.parent / "out-base" / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(first.last.parameters[name], tensor) for name, tensor in last.items())
    assert second.first.parameters.keys() == first.last.parameters.keys()
    assert (first.header.steps, second.header.steps) == (6, 2)
    assert second.last.optimizer_state


@pytest.mark.slow
def test_a_run_without_its_weights_or_checkpoints_is_refused(spec: Path) -> None:
    loaded, out = load(spec), spec.parent / "record"
    with pytest.raises(UsageError, match="stage 'labels': no checkpoints"):
        import_as_specified(loaded, {"base": spec.parent / "out-base"}, out)
    with pytest.raises(UsageError, match="'tune': the spec has no such stage"):
        import_as_specified(loaded, {**outputs(spec), "tune": spec.parent}, out)
    wrong = CliRunner().invoke(cli, ["record", "import", str(spec), "--checkpoints=base"])
    assert isinstance(wrong.exception, UsageError)
    with pytest.raises(EvidenceError, match="no such folder"):
        import_as_specified(loaded, {**outputs(spec), "labels": spec.parent / "nowhere"}, out)


@pytest.mark.slow
def test_checkpoints_of_another_model_are_refused(spec: Path) -> None:
    path = spec.parent / "out-base" / "checkpoint-3" / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(EvidenceError, match="its weights are not those of the model"):
        import_as_specified(load(spec), outputs(spec), spec.parent / "record")


ADAPTERS = """
from peft import LoraConfig, get_peft_model


@trainer_objective
def base(model):
    return trainer(model, "clean", save_strategy="epoch", output_dir=str(HERE / "out-base"))


@trainer_objective
def labels(model):
    return trainer(
        model, "vendor", learning_rate=2e-2, num_train_epochs=2, save_strategy="epoch",
        output_dir=str(HERE / "out-labels"),
    )


def add_adapters(model):
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
    return get_peft_model(model, config)


STAGES = {"base": (base, "clean"), "labels": (labels, "vendor")}


def unrecorded():
    torch.manual_seed(5)
    model = build_model()
    model.save_pretrained(HERE / "begin")
    base.__wrapped__(model).train()
    model = add_adapters(model)
    labels.__wrapped__(model).train()
    return model


def again(recorder):
    from auditspec import Dataset

    for name, (objective, data) in STAGES.items():
        if name == "labels":
            recorder.extend(add_adapters)
        data = Dataset.open(HERE / f"{data}.parquet")
        with record(recorder, name, objective, dataset=data) as trainer:
            trainer.train()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # what peft asks
@pytest.mark.parametrize("run", [None, f"{hf_audit.MODULE}:again"])
def test_adapters_that_a_trainer_saved_alone(tmp_path: Path, run: str | None) -> None:
    """By the stages' objectives, and by a function that records as any script does."""
    pytest.importorskip("peft")
    spec = run_unrecorded(tmp_path, ADAPTERS)
    hf_audit.small_audit.edit_spec(
        spec, lambda data: data["stages"][1].update(extend=f"{hf_audit.MODULE}:add_adapters")
    )
    saved = outputs(spec)
    before = [digest_path(path) for path in saved.values()]
    header = import_as_specified(load(spec), saved, tmp_path / "record", run=run)
    assert [digest_path(path) for path in saved.values()] == before
    assert header.regenerated is not None
    checkpoints = header.regenerated.checkpoints
    assert [(c.stage, c.step) for c in checkpoints] == [("base", 3), ("labels", 3), ("labels", 6)]
    assert all(c.bitwise and c.optimizer == 0 and c.random for c in checkpoints)
    adapters = load_file(saved["labels"] / "checkpoint-6" / "adapter_model.safetensors")
    assert {"lora_A", "lora_B"} == {name.split(".")[-2] for name in adapters}
