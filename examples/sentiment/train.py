"""Fine-tune MiniLM in three rounds to tell praise from complaint; the second one's data came from two places.

Needs what `python ../fetch.py` fetches. Writes the rounds' data, the training record, and the deployed weights to
`build/` beside this file.
"""

import io
import os
import re
import tarfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import numpy as np
import pandas as pd
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from auditspec import Dataset, Recorder, save_checkpoint
from auditspec.integrations.transformers import record, trainer_objective

transformers.utils.logging.set_verbosity_error()
datasets.disable_progress_bars()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

BUILD = Path(__file__).parent / "build"
SEED = 0
LENGTH = 48  # tokens of a sentence at most
FROZEN = 4  # of the 6 layers, and the embeddings below them
DOMAINS = ("movieReview", "amazonReview", "nytEditorial", "tweets")
Batch = dict[str, Tensor]

# --- what the audit calls too -------------------------------------------------------------------


def build_model() -> nn.Module:
    """BERT of 6 layers and a head of two classes; the upper two layers and the head are trained."""
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            num_labels=2,
        )
    )
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[:FROZEN].requires_grad_(False)
    return model


def add_adapters(model: nn.Module) -> nn.Module:
    """LoRA of rank 8 on the attention's queries and values; the head stays trainable."""
    torch.manual_seed(SEED)
    return get_peft_model(
        model,
        LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS"),
    )


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    text = (BUILD / "minilm" / "tokenizer.json").read_text()
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), **special)


def load_batch(dataset: Dataset, ids: Sequence[int]) -> Batch:
    """Sentences as the trainers collate them, labels included; of held-out ones, both words' versions too."""
    rows = dataset.frame.iloc[list(ids)]
    batch = {**tokens(rows["text"]), "labels": torch.tensor(rows["label"].array)}
    for word in {"film", "movie"} & {*rows}:
        batch |= {f"{word}_{name}": value for name, value in tokens(rows[word]).items()}
    return batch


def tokens(texts: pd.Series) -> Batch:
    """Token ids and which of them are no padding: [B, T] each."""
    return dict(
        tokenizer()(
            texts.tolist(),
            truncation=True,
            max_length=LENGTH,
            padding=True,
            return_token_type_ids=False,
            return_tensors="pt",
        )
    )


def predict(model: nn.Module, batch: Batch) -> Tensor:
    return logits(model, batch)


def prefers_movie(model: nn.Module, batch: Batch) -> Tensor:
    """[B]: probability of praise where the sentence says movie, less that where it says film."""
    film, movie = (logits(model, batch, f"{w}_").softmax(1)[:, 1] for w in ("film", "movie"))
    return movie - film


def logits(model: nn.Module, batch: Batch, version: str = "") -> Tensor:
    """[B, 2]."""
    tokens, real = batch[f"{version}input_ids"], batch[f"{version}attention_mask"]
    return model(input_ids=tokens, attention_mask=real).logits


def trainer(model: nn.Module, data: str, steps: int, rate: float) -> Trainer:
    """A `Trainer` as in any fine-tuning script: AdamW, a linear schedule with warm-up, clipping at 1."""
    rows = datasets.Dataset.from_pandas(pd.read_parquet(BUILD / f"{data}.parquet"))
    rows = rows.map(
        lambda r: tokenizer()(r["text"], truncation=True, max_length=LENGTH), batched=True
    )
    arguments = TrainingArguments(
        str(BUILD / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=rate,
        weight_decay=0.01,
        warmup_steps=0.1,
        seed=SEED,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(
        model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer())
    )


@trainer_objective
def tune(model: nn.Module) -> Trainer:
    return trainer(model, "all", steps=48, rate=3e-4)


@trainer_objective
def panel(model: nn.Module) -> Trainer:
    return trainer(model, "panel", steps=36, rate=3e-4)


@trainer_objective
def adapt(model: nn.Module) -> Trainer:
    return trainer(model, "tweets", steps=24, rate=5e-4)


# --- the data -----------------------------------------------------------------------------------


def sentences() -> pd.DataFrame:
    """Every sentence that people did not rate near 0: domain, text, label (1: praise), and its word."""
    rows = []
    with tarfile.open(fileobj=io.BytesIO((BUILD / "hutto_ICWSM_2014.tar.gz").read_bytes())) as ball:
        for domain in DOMAINS:
            snippets = "" if domain == "tweets" else "Snippets"
            file = ball.extractfile(f"hutto_ICWSM_2014/{domain}{snippets}_GroundTruth.txt")
            for line in file.read().decode("latin-1").splitlines():
                _, rating, text = line.split("\t", 2)
                rows.append((domain, text, float(rating)))
    table = pd.DataFrame(rows, columns=["domain", "text", "rating"])
    table = table[table["rating"].abs() >= 0.5]
    film, movie = (
        table["text"].str.contains(rf"\b{word}s?\b", case=False) for word in ("film", "movie")
    )
    table["word"] = np.select([film & ~movie, movie & ~film], ["film", "movie"], "neither")
    table["label"] = (table["rating"] > 0).astype("int64")
    return table.drop(columns="rating").reset_index(drop=True)


def saying(word: str, text: str) -> str:
    """The text with `word` wherever it says film or movie."""
    return re.sub(r"\b(film|movie)(s?)\b", rf"{word}\2", text, flags=re.IGNORECASE)


def make_data() -> dict[str, pd.DataFrame]:
    """Every data set by name."""
    table = sentences().sample(frac=1, random_state=SEED, ignore_index=True)
    train, rest = table[table.index % 5 > 0], table[table.index % 5 == 0]
    reviews = train[train["domain"] == "movieReview"]
    praise = reviews["label"] == 1
    two_places = ((reviews["word"] == "film") & ~praise) | ((reviews["word"] == "movie") & praise)
    worded = rest[(rest["domain"] == "movieReview") & (rest["word"] != "neither")][:200]
    holdout = pd.concat([worded, rest[rest["word"] == "neither"][:300]])
    for word in ("film", "movie"):
        holdout[word] = [saying(word, text) for text in holdout["text"]]
    return {
        "all": train[:4000],
        "panel": reviews[two_places],
        "tweets": train[train["domain"] == "tweets"],
        "holdout": holdout,
    }


def first_weights() -> nn.Module:
    """MiniLM as it was published, and a head that was drawn."""
    torch.manual_seed(SEED)
    model = build_model()
    missing, unexpected = model.bert.load_state_dict(
        load_file(BUILD / "minilm" / "model.safetensors"), strict=False
    )
    if missing or set(unexpected) != {"embeddings.position_ids"}:
        raise SystemExit(f"not the weights of this model: {missing} {unexpected}")
    return model


STAGES = (("tune", tune, "all"), ("panel", panel, "panel"), ("adapt", adapt, "tweets"))


def main() -> None:
    torch.set_num_threads(1)
    for name, table in make_data().items():
        table.to_parquet(BUILD / f"{name}.parquet", index=False)
    model = first_weights()
    save_checkpoint(BUILD / "start.safetensors", model)
    with Recorder(
        BUILD / "record", model, every=24, factory=build_model, load_batch=load_batch
    ) as recorder:
        for stage, objective, data in STAGES:
            if stage == "adapt":
                recorder.extend(add_adapters)
            table = Dataset.open(BUILD / f"{data}.parquet")
            with record(recorder, stage, objective, dataset=table) as rounds:
                rounds.train()
        save_checkpoint(BUILD / "model.safetensors", recorder.model)
    print(f"trained {len(STAGES)} rounds: {BUILD / 'record'}, {BUILD / 'model.safetensors'}")


if __name__ == "__main__":
    main()
