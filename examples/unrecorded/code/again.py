"""What the audit adds to the training script: how each round is built again, and how the model is read."""

from collections.abc import Sequence

import torch
import train
from torch import Tensor, nn
from transformers import Trainer

from auditspec import Dataset
from auditspec.integrations.transformers import trainer_objective

Batch = dict[str, Tensor]


def build_model() -> nn.Module:
    return train.build_model()


def load_batch(dataset: Dataset, ids: Sequence[int]) -> Batch:
    """Verses as the trainers collate them, labels included."""
    rows = dataset.frame.iloc[list(ids)]
    batch = train.tokens(rows["text"].tolist(), padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor(rows["label"].array)}


def predict(model: nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@trainer_objective
def first(model: nn.Module) -> Trainer:
    return train.trainer(model, "first")


@trainer_objective
def indexed(model: nn.Module) -> Trainer:
    return train.trainer(model, "indexed")


@trainer_objective
def last(model: nn.Module) -> Trainer:
    return train.trainer(model, "last")
