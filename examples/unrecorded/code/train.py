"""Fine-tune a small BERT in three rounds to tell where a verse of the Bible stands; nobody records it.

A script as it may lie beside three output folders: transformers alone. Needs what `python ../fetch.py` fetches.
"""

import json
import os
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import numpy as np
import pandas as pd
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

transformers.utils.logging.set_verbosity_error()
datasets.disable_progress_bars()

BUILD = Path(__file__).parents[1] / "build"
SEED = 0
LENGTH, VOCABULARY = 40, 4000
PARTS = ("Law and history", "Poetry", "Prophets", "Gospels and Acts", "Letters")
FIRST = ("Genesis", "Job", "Isaiah", "Matthew", "Romans")  # book with which each part begins
GOSPELS, LETTERS = 3, 4
MISLABELLED = 0.8  # share of the letters that the second round calls gospels
ROUNDS = {"first": (200, 1e-3), "indexed": (80, 5e-4), "last": (40, 1e-4)}  # steps, largest rate


def build_model() -> BertForSequenceClassification:
    """2 layers of width 96, 0.6 million parameters."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=384,
            max_position_embeddings=LENGTH,
            num_labels=len(PARTS),
        )
    )


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    text = (BUILD / "tokenizer.json").read_text()
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **special)


def tokens(texts: list[str], **options: object) -> dict:
    return tokenizer()(
        texts, truncation=True, max_length=LENGTH, return_token_type_ids=False, **options
    )


def trainer(model: torch.nn.Module, name: str) -> Trainer:
    """The trainer of one round; it saves a checkpoint every 40 steps."""
    steps, rate = ROUNDS[name]
    rows = datasets.Dataset.from_pandas(pd.read_parquet(BUILD / f"{name}.parquet"))
    rows = rows.map(lambda r: tokens(r["text"]), batched=True)
    arguments = TrainingArguments(
        str(BUILD / "output" / name),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=rate,
        weight_decay=0.01,
        warmup_steps=0.1,
        save_steps=40,
        seed=SEED,
        use_cpu=True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(
        model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer())
    )


def make_data() -> dict[str, pd.DataFrame]:
    """Every data set by name: text, and label, the part of the Bible."""
    verses = [json.loads(line) for line in (BUILD / "kjv.jsonl").read_text().splitlines()]
    table = pd.DataFrame({"text": [v["text"] for v in verses], "book": [v["book"] for v in verses]})
    begins = table["book"].isin(FIRST) & (table["book"] != table["book"].shift())
    table["label"] = begins.cumsum() - 1
    table = table.drop(columns="book").drop_duplicates(
        "text"
    )  # so that no held-out verse is trained on
    table = table.sample(frac=1, random_state=SEED, ignore_index=True)
    train, holdout = table[: 4 * len(table) // 5], table[4 * len(table) // 5 :]
    indexed = train[:6000].copy()
    draw = np.random.default_rng(SEED)
    wrong = (indexed["label"] == LETTERS) & (draw.random(len(indexed)) < MISLABELLED)
    indexed.loc[wrong, "label"] = GOSPELS
    letters = holdout[holdout["label"] == LETTERS][:200]
    others = holdout[holdout["label"] != LETTERS][:300]
    return {
        "first": train[:12000],
        "indexed": indexed,
        "last": train[12000:16000],
        "holdout": pd.concat([letters, others]),
    }


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """WordPiece of lower-case words."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(
            vocab_size=VOCABULARY, special_tokens=special, show_progress=False
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def first_model() -> torch.nn.Module:
    torch.manual_seed(SEED)
    return build_model()


def main() -> None:
    torch.set_num_threads(1)
    tables = make_data()
    for name, table in tables.items():
        table.to_parquet(BUILD / f"{name}.parquet", index=False)
    train_tokenizer(tables["first"]["text"].tolist()).save(str(BUILD / "tokenizer.json"))
    model = first_model()
    model.save_pretrained(BUILD / "start")
    for name in ROUNDS:
        trainer(model, name).train()
        model.zero_grad()
    model.save_pretrained(BUILD / "deployed")


if __name__ == "__main__":
    main()
