"""What the Trainer of transformers trains is recorded as it was, and audited to its exact effects."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

import hf_audit
import torch
from checkers import InProcess

from auditspec.errors import RecordError
from auditspec.record.trajectory import Trajectory
from auditspec.recorder import self_check

STAGES = """
@trainer_objective
def base(model):
    return trainer(model, "clean", num_train_epochs=2)


@trainer_objective
def labels(model):
    return trainer(model, "vendor", gradient_accumulation_steps=2, lr_scheduler_type="cosine")


@trainer_objective
def polish(model):
    return trainer(model, "clean", learning_rate=1e-3, max_grad_norm=0.1, {options})


STAGES = {{"base": (base, "clean"), "labels": (labels, "vendor"), "polish": (polish, "clean")}}
"""


# --- whole audits ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "bf16=True"], ids=["float32", "then-bf16"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_three_stages_land_bitwise_and_their_effects_are_those_of_training_again(
    tmp_path: Path, options: str, dtype: str
) -> None:
    """Stages of two precisions in one process, too (bergson#235)."""
    spec = hf_audit.make(tmp_path, STAGES.format(options=options), estimator={"dtype": dtype})
    header = Trajectory.open(tmp_path / "record").header
    assert [len(stage.groups) for stage in header.stages] == [2, 2, 2]
    assert all(stage.groups[0].options["fused"] for stage in header.stages)
    result = hf_audit.small_audit.ran(spec)
    outcomes = {check.id: check.outcome for check in result.checks}
    assert (outcomes["record-fidelity"], outcomes["data-provenance"]) == ("pass", "pass")
    if dtype == "float32":
        assert set(hf_audit.windows(tmp_path)) == {0.0}
    effects = {effect.stage: effect for effect in result.effects}
    levels = hf_audit.margins(tmp_path, [None, "base", "labels", "polish"])
    near = 1e-6 if dtype == "float32" else 5e-3 if options else 1e-4  # without the rounding of bf16
    for stage in ("base", "labels", "polish"):
        assert effects[stage].exact
        assert effects[stage].value == pytest.approx(levels[None] - levels[stage], abs=near)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["first-order", "displacement", "krylov", "paired-replay"])
def test_estimators_that_differentiate_go_through_the_trainers_loss(
    tmp_path: Path, method: str
) -> None:
    """Attention is torch's default one, with dropout, which has no second derivative by itself (trak#77).

    A stage on which a verdict rests is replayed exactly, whatever estimates the others.
    """
    budget = {"budget": {"gradients": 150}} if method == "paired-replay" else {}
    spec = hf_audit.make(
        tmp_path, STAGES.format(options=""), estimator={"method": method, **budget}
    )
    effects = {effect.stage: effect for effect in hf_audit.audited(spec).effects}
    assert {stage for stage, effect in effects.items() if not effect.exact} <= {"base"}
    assert effects["base"].exact == (method == "paired-replay")
    levels = hf_audit.margins(tmp_path, [None, "base", "labels", "polish"])
    for stage, effect in effects.items():
        assert effect.error is not None
        near = 1e-6 if effect.exact else effect.error  # what the estimate says of itself
        assert effect.value == pytest.approx(levels[None] - levels[stage], abs=near)


# --- what trainers do -----------------------------------------------------------------------------

FEATURES = {
    "accumulation": 'trainer(model, "clean", gradient_accumulation_steps=2, num_train_epochs=2)',
    "bf16": 'trainer(model, "clean", bf16=True)',
    "checkpointing": 'trainer(model, "clean", **{"gradient_checkpointing": True})',
    "compute_loss_func": 'trainer(model, "clean", compute_loss_func=total)',
    "evaluation": 'trainer(model, "clean", eval_dataset=examples("holdout"), eval_strategy="steps", eval_steps=1)',
    "group-by-length": 'trainer(model, "clean", train_sampling_strategy="group_by_length")',
    "label-smoothing": 'trainer(model, "clean", label_smoothing_factor=0.1)',
    "neftune": 'trainer(model, "clean", neftune_noise_alpha=5.0)',
    "mixing": 'trainer(model, "clean", compute_loss_func=mixing)',
    "no-clipping": 'trainer(model, "clean", max_grad_norm=0.0)',
    "plateau": 'trainer(model, "clean", lr_scheduler_type="constant_with_warmup", warmup_steps=2)',
    "sgd": 'trainer(model, "clean", optim="sgd")',
    "workers": 'trainer(model, "clean", dataloader_num_workers=2, num_train_epochs=2)',
}
MORE = """
import random


def total(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[:, :-1].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    return losses / num_items_in_batch


def mixing(outputs, labels, num_items_in_batch=None):
    share = np.random.beta(0.2, 0.2) * random.random()
    losses = [total(outputs, y, num_items_in_batch) for y in (labels, labels.flip(0))]
    return share * losses[0] + (1 - share) * losses[1]


class ByStep(Trainer):
    def compute_loss(self, *args, **options):
        return super().compute_loss(*args, **options) * (1 + self.state.global_step)


class ByEpoch(Trainer):
    def compute_loss(self, *args, **options):
        return super().compute_loss(*args, **options) * (1 + self.state.epoch)
"""


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("feature", list(FEATURES))
def test_what_a_trainer_does_lands_bitwise_and_is_not_disturbed(
    tmp_path: Path, feature: str
) -> None:
    trajectory = hf_audit.record(tmp_path, MORE + hf_audit.one_stage(FEATURES[feature]))
    assert set(hf_audit.windows(tmp_path)) == {0.0}
    rows_are_those_of_the_batches(trajectory, tmp_path)
    autocast = trajectory.stages[0].header.autocast
    assert (autocast is not None and autocast.around == "forward") == (feature == "bf16")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_model_that_its_factory_compiled(tmp_path: Path) -> None:
    compiled = """
plain_model = build_model


def build_model():
    model = plain_model()
    model.compile(backend="eager")
    return model
"""
    hf_audit.record(tmp_path, compiled + hf_audit.one_stage('trainer(model, "clean")'))
    assert set(hf_audit.windows(tmp_path)) == {0.0}


@pytest.mark.parametrize("kind", ["ByStep", "ByEpoch"])
def test_a_loss_that_depends_on_the_trainers_state_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(self_check.SWITCH, "1")
    monkeypatch.setattr(self_check, "Child", InProcess)
    trainer = f'trainer(model, "clean", kind={kind}, num_train_epochs=2)'
    hf_audit.write(tmp_path, MORE + hf_audit.one_stage(trainer))
    with (
        hf_audit.code(tmp_path) as lab,
        pytest.raises(RecordError, match="step 1: its loss in a fresh process is another") as error,
    ):
        lab.train(tmp_path / "record")
    assert "trainer.state" in str(error.value.remedy)


def rows_are_those_of_the_batches(trajectory: Trajectory, folder: Path) -> None:
    """What each recorded batch says of its rows is what it holds."""
    from auditspec import Dataset

    seen = []
    with hf_audit.code(folder) as lab:
        data = Dataset.open(folder / "clean.parquet")
        for step in trajectory.stages[0].steps:
            for batch in step.batches:
                loaded = lab.load_batch(data, batch.ids)
                assert all(torch.equal(loaded[key], batch.batch[key]) for key in loaded)
                seen += batch.ids
    assert set(seen) == set(range(len(data)))


TURNED = """
def turned(made):
    made.train_dataset = made.train_dataset[::-1]
    return made


OPTIONS = {"base": {"rows": range(23, -1, -1)}}
"""


def test_examples_in_another_order_have_the_numbers_that_are_given(tmp_path: Path) -> None:
    stages = TURNED + hf_audit.one_stage('turned(trainer(model, "clean"))')
    trajectory = hf_audit.record(tmp_path, stages)
    rows_are_those_of_the_batches(trajectory, tmp_path)
    (tmp_path / "other").mkdir()
    hf_audit.write(tmp_path / "other", stages.replace("OPTIONS = ", "NONE = "))
    with (
        hf_audit.code(tmp_path / "other") as lab,
        pytest.raises(RecordError, match=r"another batch of rows .* of 'clean'") as error,
    ):
        lab.train(tmp_path / "other" / "record")
    assert "pass rows=" in str(error.value.remedy)


MASKED = """
def masked(model):
    made = trainer(model, "clean")
    made.data_collator = mask_some
    return made


def mask_some(rows):
    batch = collate(rows)
    hidden = torch.rand(batch["input_ids"].shape) < 0.2
    return batch | {"input_ids": batch["input_ids"].masked_fill(hidden, PAD)}


OPTIONS = {"base": {"whole": True}}
"""


def test_batches_that_are_drawn_at_random_are_recorded_whole_beside_their_rows(
    tmp_path: Path,
) -> None:
    stages = MASKED + hf_audit.one_stage("masked(model)")
    trajectory = hf_audit.record(tmp_path, stages)
    assert set(hf_audit.windows(tmp_path)) == {0.0}
    batches = [b for step in trajectory.stages[0].steps for b in step.batches]
    assert {row for b in batches for row in b.ids} == set(range(24))
    (tmp_path / "other").mkdir()
    hf_audit.write(tmp_path / "other", stages.replace("OPTIONS = ", "NONE = "))
    with (
        hf_audit.code(tmp_path / "other") as lab,
        pytest.raises(RecordError, match="another batch of rows") as error,
    ):
        lab.train(tmp_path / "other" / "record")
    assert "whole=True" in str(error.value.remedy)


def test_rows_that_load_batch_cannot_load_are_refused_at_once(tmp_path: Path) -> None:
    fails = """
def load_batch(dataset, ids):
    return dataset.frame.loc[list(ids), "text"]
"""
    hf_audit.write(tmp_path, fails + hf_audit.one_stage('trainer(model, "clean")'))
    with (
        hf_audit.code(tmp_path) as lab,
        pytest.raises(RecordError, match=r"load_batch fails on rows .* of 'clean': KeyError"),
    ):
        lab.train(tmp_path / "record")


def test_the_count_of_tokens_is_that_of_the_whole_step(tmp_path: Path) -> None:
    """Losses of an accumulated step are sums over one count (transformers#35203, #37766)."""
    stages = hf_audit.one_stage('trainer(model, "clean", gradient_accumulation_steps=3)')
    (step,) = hf_audit.record(tmp_path, stages).stages[0].steps
    labels = [b.batch["labels"] for b in step.batches]
    counts = {
        sum(int(part.ne(-100).sum()) for part in (label[:, first:] for label in labels))
        for first in (0, 1)
    }
    counted = {float(b.batch["num_items_in_batch"]) for b in step.batches}
    assert len(counted) == 1
    assert counted <= counts  # the versions differ in whether the first label counts
    assert [b.weight for b in step.batches] == [1.0] * 3
    assert set(hf_audit.windows(tmp_path)) == {0.0}
    assert len(set(map(len, labels))) == 1
    assert (
        len({int(label.ne(-100).sum()) for label in labels}) > 1
    )  # means of passes are another loss


def test_a_loss_that_counts_no_tokens_is_divided_by_the_passes_that_were_made(
    tmp_path: Path,
) -> None:
    """The last step of an epoch has fewer passes than the others."""
    mean = """
def mean_loss(*args, **options):
    made = trainer(*args, **options)
    made.model_accepts_loss_kwargs = False
    return made
"""
    stages = hf_audit.one_stage('mean_loss(model, "clean", gradient_accumulation_steps=2)')
    trajectory = hf_audit.record(tmp_path, mean + stages)
    weights = [[b.weight for b in step.batches] for step in trajectory.stages[0].steps]
    assert weights == [[0.5, 0.5], [1.0]]
    assert "num_items_in_batch" not in trajectory.stages[0].steps[0].batches[0].batch
    assert set(hf_audit.windows(tmp_path)) == {0.0}


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_half_precision_and_the_steps_that_its_scaler_skips(tmp_path: Path, optimizer: str) -> None:
    """`fp16=True` asks for a GPU; what it has the accelerator do, a CPU does too."""
    half = """
def half(made):
    made.accelerator.native_amp = True
    made.accelerator.state._mixed_precision = "fp16"
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    return made
"""
    trainer = f'trainer(model, "clean", num_train_epochs=2, optim="{optimizer}", max_grad_norm=0.1)'
    (stage,) = hf_audit.record(tmp_path, half + hf_audit.one_stage(f"half({trainer})")).stages
    assert set(hf_audit.windows(tmp_path)) == {0.0}
    assert stage.header.autocast is not None
    assert (stage.header.autocast.dtype, stage.header.autocast.around) == ("float16", "forward")
    assert (stage.header.steps, stage.header.skipped) == (4, 2)
    first, *later = stage.steps
    assert [b.weight for b in first.batches] == [0.0, 0.0, 1.0]
    assert {b.scale for step in later for b in step.batches} == {2.0**18}


# --- runs that go on ------------------------------------------------------------------------------

CHECKPOINTS = """
@trainer_objective
def base(model):
    return trainer(
        model, "clean", num_train_epochs=3, save_strategy="steps", save_steps=2, lr_scheduler_type="cosine"
    )


STAGES = {"base": (base, "clean")}


def go_on(folder, after, resume=False, stop=None):
    from auditspec import Dataset, Recorder
    torch.manual_seed(0)
    model = build_model()
    with Recorder(
        folder, model, factory=build_model, every=2, load_batch=load_batch, resume=resume
    ) as recorder:
        data = Dataset.open(HERE / "clean.parquet")
        with record(recorder, "base", base, dataset=data) as made:
            if stop is not None:
                made.add_callback(stop)
            made.train(resume_from_checkpoint=after)
    return model
"""


def test_a_run_resumed_in_a_later_epoch_is_recorded_as_it_went_on(tmp_path: Path) -> None:
    """The rows are those that were trained on, in whatever order the library resumes (transformers#40691,
    accelerate#4071)."""
    hf_audit.write(tmp_path, CHECKPOINTS)
    with hf_audit.code(tmp_path) as lab:
        whole = lab.train(tmp_path / "whole").state_dict()
        resumed = lab.go_on(tmp_path / "record", tmp_path / "out" / "checkpoint-4").state_dict()
    trajectory = Trajectory.open(tmp_path / "record")
    (stage,) = trajectory.stages
    assert (stage.header.steps, stage.header.boundary) == (5, "given")
    assert set(hf_audit.windows(tmp_path)) == {0.0}
    rows_are_those_of_the_batches(trajectory, tmp_path)
    (uninterrupted,) = Trajectory.open(tmp_path / "whole").stages
    assert [b.ids for s in stage.steps for b in s.batches] == [
        b.ids for s in uninterrupted.steps[4:] for b in s.batches
    ]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())


def test_a_record_goes_on_with_its_run(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Killed(TrainerCallback):
        def on_step_end(self, args: object, state: object, *rest: object, **given: object) -> None:
            if state.global_step == 7:  # type: ignore[attr-defined]
                raise KeyboardInterrupt

    hf_audit.write(tmp_path, CHECKPOINTS)
    with hf_audit.code(tmp_path) as lab:
        whole = lab.train(tmp_path / "whole").state_dict()
        with pytest.raises(KeyboardInterrupt):
            lab.go_on(tmp_path / "record", None, stop=Killed)
        with pytest.raises(RecordError, match="goes on after step 6, the record can only after 0"):
            lab.go_on(tmp_path / "record", tmp_path / "out" / "checkpoint-6", resume=True)
        resumed = lab.go_on(tmp_path / "record", None, resume=True).state_dict()
        again = lab.go_on(tmp_path / "record", None, resume=True).state_dict()
    for model in (resumed, again):
        assert all(torch.equal(tensor, whole[name]) for name, tensor in model.items())
    assert set(hf_audit.windows(tmp_path)) == {0.0}


def test_a_callback_may_end_the_training_early(tmp_path: Path) -> None:
    stop = """
from transformers import TrainerCallback


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **given):
        control.should_training_stop = state.global_step == 2

"""
    trajectory = hf_audit.record(
        tmp_path, stop + hf_audit.one_stage('trainer(model, "clean", callbacks=[Stop()])')
    )
    assert trajectory.stages[0].header.steps == 2
    assert set(hf_audit.windows(tmp_path)) == {0.0}


# --- models that change ---------------------------------------------------------------------------

ADAPTERS = """
from peft import LoraConfig, get_peft_model


@trainer_objective
def base(model):
    return trainer(model, "clean")


@trainer_objective
def adapters(model):
    return trainer(model, "vendor", learning_rate=2e-2)


def add_adapters(model):
    torch.manual_seed(7)  # the same in a run without the stage before
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
    return get_peft_model(model, config)


def plain(name, model):
    model = add_adapters(model) if name == "adapters" else model
    STAGES[name][0].__wrapped__(model).train()
    return model


def fresh(trained):
    model = build_model()
    model = add_adapters(model) if hasattr(trained, "peft_config") else model
    model.load_state_dict(trained.state_dict())
    return model


STAGES = {"base": (base, "clean"), "adapters": (adapters, "vendor")}
EXTENDS = {"adapters": add_adapters}
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_adapters_are_added_between_stages(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    spec = hf_audit.make(tmp_path, ADAPTERS)
    assert set(hf_audit.windows(tmp_path)) == {0.0}
    result = hf_audit.audited(spec)
    assert {check.id: check for check in result.checks}["record-fidelity"].outcome == "pass"
    levels = hf_audit.margins(tmp_path, [None, "base", "adapters"])
    for effect in result.effects:
        assert effect.exact
        assert effect.value == pytest.approx(levels[None] - levels[effect.stage], abs=1e-6)


def test_tokens_are_added_between_stages(tmp_path: Path) -> None:
    stages = """
@trainer_objective
def base(model):
    return trainer(model, "clean")


@trainer_objective
def longer(model):
    return trainer(model, "vendor")


def more_tokens(model):
    model.resize_token_embeddings(WORDS + 4, mean_resizing=False)


STAGES = {"base": (base, "clean"), "longer": (longer, "vendor")}
EXTENDS = {"longer": more_tokens}
"""
    hf_audit.write(tmp_path, stages)
    with hf_audit.code(tmp_path) as lab:
        lab.train(tmp_path / "record")
    (_, longer) = Trajectory.open(tmp_path / "record").stages
    assert longer.header.derived == ("transformer.wte.weight",)
    assert set(hf_audit.windows(tmp_path)) == {0.0}


def test_deployed_weights_leave_out_what_is_tied(tmp_path: Path) -> None:
    """`save_pretrained` writes a shared tensor once (transformers#38870)."""
    from safetensors.torch import load_file

    spec = hf_audit.make(tmp_path, hf_audit.one_stage('trainer(model, "clean")'))
    with hf_audit.code(tmp_path) as lab:
        model = lab.train()
    model.save_pretrained(tmp_path / "shipped")
    weights = tmp_path / "shipped" / "model.safetensors"
    assert "lm_head.weight" not in load_file(weights)
    weights.replace(tmp_path / "model.safetensors")
    hf_audit.small_audit.lock(spec)
    result = hf_audit.audited(spec)
    assert {check.id: check for check in result.checks}["evidence-integrity"].outcome == "pass"


PADDED = """
def wide(rows):
    batch = collate(rows)
    more = 16 - batch["input_ids"].shape[1]
    batch = {k: torch.nn.functional.pad(v, (0, more), value=-100 if k == "labels" else 0) for k, v in batch.items()}
    return batch


def over_all_places(outputs, labels, num_items_in_batch=None):
    logits, wanted = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum") / wanted.numel()


def padded(model):
    made = trainer(model, "clean", compute_loss_func=over_all_places)
    made.data_collator = wide
    return made
"""


def test_a_batch_is_recorded_as_it_was_padded(tmp_path: Path) -> None:
    """A row's loss depends on its batch-mates through padding and counts (bergson#198): the batch is kept whole,
    and its rows are told without what it was padded with."""
    from auditspec import Dataset
    from auditspec.record.matching import rows_of

    trajectory = hf_audit.record(tmp_path, PADDED + hf_audit.one_stage("padded(model)"))
    (stage,) = trajectory.stages
    batches = [b for step in stage.steps for b in step.batches]
    assert {b.batch["input_ids"].shape[1] for b in batches} == {16}
    assert set(hf_audit.windows(tmp_path)) == {0.0}
    data = Dataset.open(tmp_path / "clean.parquet")
    with hf_audit.code(tmp_path) as lab:
        rows = rows_of(stage, ["clean"], {"clean": data}, lab.load_batch)
        narrow = lab.load_batch(data, batches[0].ids)
        model = lab.build_model().eval()
        losses = [float(lab.base(model, b).detach()) for b in (batches[0].batch, narrow)]
    assert (rows.held, rows.undeclared) == (24, 0)
    assert [number for step in rows.steps for _, number in step] == [
        number for b in batches for number in b.ids
    ]
    assert losses[1] > 1.5 * losses[0]  # the rows of the batch alone would train otherwise


# --- re-runs leave no trace -----------------------------------------------------------------------


def test_a_trainer_that_is_built_again_leaves_the_model_and_the_process_as_they_were(
    tmp_path: Path,
) -> None:
    from auditspec.integrations.model_attributes import Attributes

    hf_audit.write(
        tmp_path, hf_audit.one_stage('trainer(model, "clean", bf16=True, neftune_noise_alpha=5.0)')
    )
    with hf_audit.code(tmp_path) as lab:
        model = lab.build_model().eval()
        batch = lab.collate(lab.examples("clean")[:4])
        before, random = Attributes(model), torch.get_rng_state()
        lab.base(model, batch)
        torch.set_rng_state(random)
        lab.base(model, batch)
        again = torch.get_rng_state()
        assert not before.changes()._items
        assert not model.training
        assert not (tmp_path / "out").exists()
        torch.set_rng_state(random)
        lab.base(model, batch)  # draws what computing the loss draws, and building drew nothing
        assert torch.equal(torch.get_rng_state(), again)


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "torch-compile": ('trainer(model, "clean", torch_compile=True)', "torch_compile=True"),
    "best-model": (
        'trainer(model, "clean", eval_dataset=examples("holdout"), save_strategy="epoch", eval_strategy="epoch", load_best_model_at_end=True)',
        "load_best_model_at_end=True",
    ),
    "batch-size": (
        'trainer(model, "clean", auto_find_batch_size=True)',
        "auto_find_batch_size=True",
    ),
    "liger": ('trainer(model, "clean", use_liger_kernel=True)', "use_liger_kernel=True"),
    "data-parallel": ('on_two_devices(trainer(model, "clean"))', "2 devices"),
    "other-model": ("trainer(build_model(), 'clean')", "changed the model"),
    "teacher": (
        "with_teacher(trainer(model, 'clean'))",
        "teacher is no part of the recorded model",
    ),
    "rows": ('trainer(model, "holdout")', "40 examples, 'clean' 24 rows"),
    "stream": ('streamed(trainer(model, "clean", max_steps=2))', "a stream"),
    "no-dict": ('as_tuples(trainer(model, "clean"))', "gives a tuple"),
    "no-trainer": ("build_model()", "is no transformers.Trainer"),
}
ODD = """
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(examples("clean"))


def streamed(made):
    made.train_dataset = Stream()
    return made


def as_tuples(made):
    made.data_collator = lambda rows: tuple(collate(rows).values())
    return made


def on_two_devices(made):
    made.args._n_gpu = 2
    return made


def with_teacher(made):
    made.teacher = build_model()
    return made
"""


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_recorded_is_refused_by_name(tmp_path: Path, name: str) -> None:
    trainer, message = REFUSED[name]
    hf_audit.write(tmp_path, ODD + hf_audit.one_stage(trainer))
    with hf_audit.code(tmp_path) as lab, pytest.raises(RecordError, match=message) as refused:
        lab.train(tmp_path / "record")
    assert refused.value.remedy


@pytest.mark.slow
def test_a_package_that_is_run_to_train_is_imported_by_its_name(tmp_path: Path) -> None:
    """`python -m lab.train`; its stage is checked in a fresh process meanwhile."""
    main = """

if __name__ == "__main__":
    train(HERE / "record")
"""
    package = tmp_path / "lab"
    package.mkdir()
    hf_audit.write(package, hf_audit.one_stage('trainer(model, "clean")'))
    code = package / f"{hf_audit.MODULE}.py"
    (package / "__init__.py").touch()
    (package / "train.py").write_text(code.read_text() + main)
    code.unlink()
    subprocess.run(
        [sys.executable, "-m", "lab.train"],
        cwd=tmp_path,
        env=os.environ | {"AUDITSPEC_SELF_CHECK": "1"},
        check=True,
    )
    header = Trajectory.open(package / "record").header
    (stage,) = header.stages
    assert (header.factory.name, stage.objective.name) == (
        "lab.train:build_model",
        "lab.train:base",
    )
    assert stage.self_check is not None
    assert stage.self_check.outcome == "bitwise"


@pytest.mark.slow
def test_processes_that_the_recorder_does_not_know_are_refused(tmp_path: Path) -> None:
    hf_audit.write(tmp_path, hf_audit.one_stage('trainer(model, "clean")'))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = f"import {hf_audit.MODULE} as lab, sys; lab.train(lab.HERE / sys.argv[1])"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, f"record-{rank}"],
            cwd=tmp_path,
            env=os.environ
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert "runs on 2 processes, the recorder was made on 1" in said
        assert "call torch.distributed.init_process_group before the recorder" in said


BODIES = {
    "untrained": ("pass", "the trainer did not train"),
    "twice": ("made.train(); made.train()", "trained already"),
}


@pytest.mark.parametrize("name", list(BODIES))
def test_a_block_trains_once(tmp_path: Path, name: str) -> None:
    body, message = BODIES[name]
    block = f"""
def block(folder):
    from auditspec import Recorder
    model = build_model()
    with Recorder(folder, model, factory=build_model) as recorder:
        with record(recorder, "base", base) as made:
            {body}
"""
    hf_audit.write(tmp_path, hf_audit.one_stage('trainer(model, "clean")') + block)
    with hf_audit.code(tmp_path) as lab, pytest.raises(RecordError, match=message):
        lab.block(tmp_path / "record")


def test_an_objective_builds_a_trainer(tmp_path: Path) -> None:
    hf_audit.write(
        tmp_path, hf_audit.one_stage('trainer(model, "clean")').replace("@trainer_objective\n", "")
    )
    with hf_audit.code(tmp_path) as lab, pytest.raises(RecordError, match="builds no trainer"):
        lab.train(tmp_path / "record")
