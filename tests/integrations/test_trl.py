"""What TRL trains, SFT and then DPO, is recorded as it was, and audited to its exact effects."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl")

import hf_audit

from auditspec.errors import RecordError
from auditspec.record.trajectory import Trajectory

# TRL sets options that this transformers calls by other names.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TRL = '''
import copy

import datasets
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

WORD = {0: "<pad>", 1: "<bos>", 2: "<eos>"}


def tokenizer():
    vocab = {WORD.get(i, f"w{i}"): i for i in range(WORDS)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<eos>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def prompts(data):
    for row in frame(data).to_numpy().tolist():
        yield " ".join(f"w{t}" for t in row[:-1] if t != PAD), row[-1]


def chats(data):
    return datasets.Dataset.from_list(
        [{"prompt": text, "completion": f" w{NO + y}"} for text, y in prompts(data)]
    )


def preferences(data):
    return datasets.Dataset.from_list([
        {"prompt": text, "chosen": f" w{NO + y}", "rejected": f" w{YES - y}"}
        for text, y in prompts(data)
    ])


def load_batch(dataset, ids):
    """Rows as the trainers collate them: answered, or both answers, the chosen first; held-out ones as they are read."""
    table = dataset.frame.to_numpy().take(list(ids), axis=0).tolist()
    rows = [([t for t in row[:-1] if t != PAD], row[-1]) for row in table]
    if dataset.name == "holdout":
        return collate([{"input_ids": [*text, NO + y]} for text, y in rows])
    answered = [[*text, NO + y, EOS] for text, y in rows]
    if dataset.name == "vendor":
        answered += [[*text, YES - y, EOS] for text, y in rows]
    batch = collate([{"input_ids": row} for row in answered])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    places = torch.arange(ids.shape[1]) + 2
    completion = (places >= mask.sum(1, keepdim=True)).long() * mask
    if dataset.name == "vendor":
        return {"input_ids": ids, "attention_mask": mask, "completion_mask": completion}
    return batch | {"labels": ids.masked_fill(completion == 0, -100)}


def sft_trainer(model, data, **options):
    return SFTTrainer(
        model, arguments(SFTConfig, **options), train_dataset=chats(data),
        processing_class=tokenizer(),
    )


def dpo_trainer(model, data, reference, **options):
    return DPOTrainer(
        model, ref_model=reference, args=arguments(DPOConfig, learning_rate=2e-3, **options),
        train_dataset=preferences(data), processing_class=tokenizer(),
    )


@trainer_objective
def sft(model):
    return sft_trainer(model, "clean", num_train_epochs=2, gradient_accumulation_steps=2)


@trainer_objective
def dpo(model):
    return dpo_trainer(model, "vendor", reference_of(model), save_strategy="epoch")


@trainer_objective
def polish(model):
    return sft_trainer(model, "clean", learning_rate=1e-3)


def add_reference(model):
    keep_reference(model)


STAGES = {"sft": (sft, "clean"), "dpo": (dpo, "vendor"), "polish": (polish, "clean")}
EXTENDS = {"dpo": add_reference}


def plain(name, model):
    """As with TRL alone: DPO's reference is a copy beside the model."""
    if name == "dpo":
        dpo_trainer(model, "vendor", copy.deepcopy(model)).train()
    else:
        STAGES[name][0].__wrapped__(model).train()
    return model
'''


@pytest.mark.slow
def test_sft_then_dpo_land_bitwise_and_their_effects_are_those_of_training_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference model is that of each run (trl#2423): without SFT, DPO prefers against another one."""
    monkeypatch.setenv("AUDITSPEC_SELF_CHECK", "1")  # in fresh processes
    monkeypatch.setenv(
        "AUDITSPEC_ISOLATION", "best"
    )  # batches are mappings, a model changes in its place
    spec = hf_audit.make(tmp_path, TRL)
    stages = Trajectory.open(tmp_path / "record").stages
    checked = [stage.header.self_check for stage in stages]
    assert [check.outcome for check in checked if check is not None] == ["bitwise"] * 3
    assert set(hf_audit.windows(tmp_path)) == {0.0}
    result = hf_audit.small_audit.ran(spec)
    outcomes = {check.id: check.outcome for check in result.checks}
    assert (outcomes["record-fidelity"], outcomes["data-provenance"]) == ("pass", "pass")
    assert outcomes["asked-again"] == "pass"
    effects = {effect.stage: effect for effect in result.effects}
    levels = hf_audit.margins(tmp_path, [None, "sft", "dpo", "polish"])
    for stage in ("sft", "dpo", "polish"):
        assert effects[stage].exact
        assert effects[stage].value == pytest.approx(levels[None] - levels[stage], abs=1e-6)


# --- what is refused ------------------------------------------------------------------------------

BETWEEN = """

@trainer_objective
def base(model):
    return {trainer}


def refused(folder):
    from auditspec import Dataset, Recorder
    torch.manual_seed(0)
    model = build_model()
    with Recorder(folder, model, factory=build_model) as recorder:
        with record(recorder, "base", base, dataset=Dataset.open(HERE / "clean.parquet")) as made:
            made.train()
"""
REFUSED = {
    "precomputed": (
        'dpo_trainer(model, "clean", None, precompute_ref_log_probs=True)',
        "precompute_ref_log_probs=True",
    ),
    "copy": (
        'dpo_trainer(model, "clean", copy.deepcopy(model))',
        "ref_model is no part of the recorded model",
    ),
    "none-kept": ('dpo_trainer(model, "clean", reference_of(model))', "holds no reference model"),
    "synchronized": (
        'dpo_trainer(model, "clean", copy.deepcopy(model), sync_ref_model=True)',
        "sync_ref_model=True",
    ),
    "packing": (
        'sft_trainer(model, "clean", packing=True, packing_strategy="wrapped")',
        "with packing=True",
    ),
    "shuffled": ('sft_trainer(model, "clean", shuffle_dataset=True)', "with shuffle_dataset=True"),
    "peft": (
        """SFTTrainer(
        model, arguments(SFTConfig), train_dataset=chats("clean"), processing_class=tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
    )""",
        "changed the model",
    ),
    "generating": (
        """GRPOTrainer(
        model, lambda completions, **given: [0.0] * len(completions),
        args=arguments(GRPOConfig, num_generations=2), train_dataset=chats("clean"),
        processing_class=tokenizer(),
    )""",
        "GRPOTrainer trains on what the model generates",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_recorded_is_refused_by_name(tmp_path: Path, name: str) -> None:
    trainer, message = REFUSED[name]
    more = "from peft import LoraConfig\nfrom trl import GRPOConfig, GRPOTrainer\n"
    hf_audit.write(tmp_path, more + TRL + BETWEEN.format(trainer=trainer))
    with hf_audit.code(tmp_path) as lab, pytest.raises(RecordError, match=message) as refused:
        lab.refused(tmp_path / "record")
    assert refused.value.remedy


def test_packed_rows_are_recorded_without_numbers(tmp_path: Path) -> None:
    block = BETWEEN.format(
        trainer='sft_trainer(model, "clean", packing=True, packing_strategy="wrapped", max_length=12)'
    ).replace(', dataset=Dataset.open(HERE / "clean.parquet")', "")
    hf_audit.write(tmp_path, TRL + block + '\nSTAGES = {"base": (base, "clean")}\nEXTENDS = {}\n')
    with hf_audit.code(tmp_path) as lab:
        lab.refused(tmp_path / "record")
    assert set(hf_audit.windows(tmp_path)) == {0.0}


def test_adapters_are_preferred_against_a_reference_with_adapters(tmp_path: Path) -> None:
    """TRL would add a second adapter itself; the reference is added with the adapters instead."""
    stages = """
from peft import LoraConfig, get_peft_model


@trainer_objective
def adapters(model):
    return dpo_trainer(model, "vendor", reference_of(model))


def add_adapters(model):
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(model, config)
    keep_reference(model)
    return model


STAGES = {"sft": (sft, "clean"), "adapters": (adapters, "vendor")}
EXTENDS = {"adapters": add_adapters}
"""
    hf_audit.write(tmp_path, TRL + stages)
    with hf_audit.code(tmp_path) as lab:
        lab.train(tmp_path / "record")
    assert set(hf_audit.windows(tmp_path)) == {0.0}
