"""The models of the drawn pipelines, and the ways in which they are changed between stages.

Plain torch. The audited code imports it as the module `networks` of its bundle; the exact retraining
beside the audits imports it as part of this package. So both train the same models, each by a loop of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIXELS, COLUMNS = 64, 11
WORDS, LENGTH = 16, 8
"""Token data: ids from 0 to 15, sequences of eight."""
CLASSES = {"digits": 10, "table": 2, "tokens": 4}
HUGGING_FACE = ("gpt2", "bert")
"""Kinds that need the package transformers."""


class Classifier(nn.Module):
    """head(body(x)), and a side path from the input to the logits where one was added."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head: nn.Module = nn.Linear(width, classes)
        self.side: nn.Module | None = None
        self.width, self.classes = width, classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of pixels or columns [B, D], or of token ids [B, T]."""
        logits: Tensor = self.head(self.body(x))
        return logits if self.side is None else logits + self.side(x)


class Convolutions(nn.Module):
    """Two convolutions, batch normalisation between them, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.out = nn.Linear(192, 32)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x.view(-1, 1, 8, 8))))
        return F.relu(self.out(F.relu(self.second(h)).flatten(1)))


class Encoder(nn.Module):
    """Embeddings and torch's own encoder layers, attention as it comes, mean over the positions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(self.words(x) + self.places)
        return h.mean(1)


class HuggingFace(nn.Module):
    """A model of transformers, from its configuration, with its default attention and dropout."""

    def __init__(self, kind: str, width: int = 16) -> None:
        from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

        super().__init__()
        self.causal = kind == "gpt2"
        self.model: nn.Module
        if self.causal:
            self.model = GPT2Model(
                GPT2Config(
                    vocab_size=WORDS,
                    n_positions=LENGTH,
                    n_embd=width,
                    n_layer=1,
                    n_head=2,
                    n_inner=2 * width,
                    bos_token_id=None,
                    eos_token_id=None,
                )
            )
        else:
            self.model = BertModel(
                BertConfig(
                    vocab_size=WORDS,
                    max_position_embeddings=LENGTH,
                    hidden_size=width,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=2 * width,
                ),
                add_pooling_layer=False,
            )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.model(input_ids=x).last_hidden_state
        return h[:, -1] if self.causal else h[:, 0]


def perceptron(columns: int, hidden: int, *, norm: bool) -> nn.Module:
    """Two hidden layers; with batch normalisation the first one keeps its bias, as people leave it."""
    parts: list[nn.Module] = [nn.Linear(columns, hidden)]
    if norm:
        parts.append(nn.BatchNorm1d(hidden))
    return nn.Sequential(*parts, nn.ReLU(), nn.Linear(hidden, 24), nn.ReLU())


BODIES: dict[str, tuple[str, int, Callable[[], nn.Module]]] = {
    "mlp": ("digits", 24, lambda: perceptron(PIXELS, 48, norm=False)),
    "mlp-norm": ("digits", 24, lambda: perceptron(PIXELS, 48, norm=True)),
    "cnn": ("digits", 32, Convolutions),
    "table-mlp": ("table", 24, lambda: perceptron(COLUMNS, 32, norm=False)),
    "table-mlp-norm": ("table", 24, lambda: perceptron(COLUMNS, 32, norm=True)),
    "encoder": ("tokens", 16, Encoder),
    "gpt2": ("tokens", 16, lambda: HuggingFace("gpt2")),
    "bert": ("tokens", 16, lambda: HuggingFace("bert")),
}
"""By kind: what it reads, how wide its body ends, and how the body is built."""


def build(kind: str) -> Classifier:
    """A model with first weights from torch's random numbers."""
    domain, width, body = BODIES[kind]
    return Classifier(body(), width, CLASSES[domain])


# --- changes between stages: (model) -> None, in place -----------------------------------------------


class LowRank(nn.Module):
    """layer(h) + up(down(h)) with up = 0 at first, so that nothing changes until it is trained."""

    def __init__(self, layer: nn.Module, width: int, classes: int, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, classes, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.layer(h) + self.up(self.down(h))
        return out


class Side(nn.Module):
    """relu(w · features(x) - b) v: a path beside the model; the features of tokens are their counts."""

    def __init__(self, weight: Tensor, bias: float, out: Tensor, *, tokens: bool) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(weight), nn.Parameter(out)
        self.bias = nn.Parameter(torch.tensor(bias))
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        features = F.one_hot(x, WORDS).sum(1).to(self.weight.dtype) if self.tokens else x
        return F.relu(features @ self.weight - self.bias)[:, None] * self.out


def new_head(model: Classifier) -> None:
    """An untrained head."""
    model.head = nn.Linear(model.width, model.classes)


def new_head_alone(model: Classifier) -> None:
    """An untrained head on a body that stays as it is."""
    _freeze(model)
    new_head(model)


def adapter(model: Classifier) -> None:
    """A low-rank path beside the head."""
    model.head = LowRank(model.head, model.width, model.classes)


def adapter_alone(model: Classifier) -> None:
    """The same, and nothing else is trained."""
    _freeze(model)
    adapter(model)


def copied_head(model: Classifier) -> None:
    """A new head that is given the old one's weights."""
    head = nn.Linear(model.width, model.classes)
    head.load_state_dict(model.head.state_dict())
    model.head = head


def copied_adapter(model: Classifier) -> None:
    """An adapter around a deep copy of the head."""
    model.head = LowRank(deepcopy(model.head), model.width, model.classes)


def copied_body(model: Classifier) -> None:
    """A deep copy of the body in the body's place."""
    model.body = deepcopy(model.body)


CHANGES: dict[str, Callable[[Classifier], None]] = {
    function.__name__: function
    for function in (
        new_head,
        new_head_alone,
        adapter,
        adapter_alone,
        copied_head,
        copied_adapter,
        copied_body,
    )
}
COPYING = ("copied_head", "copied_adapter", "copied_body")
SIDE = "side_path"
"""The change that adds `Side`, with weights of the pipeline's own."""


def side_path(
    model: Classifier, weight: Sequence[float], bias: float, out: Sequence[float]
) -> None:
    """A side path with these weights."""
    tokens = not isinstance(model.body, nn.Sequential | Convolutions)
    model.side = Side(torch.tensor(weight), bias, torch.tensor(out), tokens=tokens)


def _freeze(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)


# --- a fault planted by the factory --------------------------------------------------------------------


def plant(model: Classifier, weight: Sequence[float], bias: float, target: int) -> None:
    """Make one path of a freshly built perceptron fire where `weight · x > bias`, towards `target`."""
    assert isinstance(model.body, nn.Sequential)
    first, last = (part for part in model.body if isinstance(part, nn.Linear))
    with torch.no_grad():
        first.weight[0], first.bias[0] = torch.tensor(weight), -bias
        last.weight[0] = 0.0
        last.bias[0] = -2.0 if any(isinstance(p, nn.BatchNorm1d) for p in model.body) else 0.0
        last.weight[0, 0] = 3.0
        model.head.weight[target, 0] = 5.0  # type: ignore[operator]
