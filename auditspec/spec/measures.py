"""What a behaviour is measured by, as a spec names it: a metric of each example, a statistic of them all.

A metric and a statistic are classes of `auditspec.behaviors` or of plug-ins; their fields are what a spec
may say of them. Here stands what the spec itself goes by, and how a mapping becomes one of them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from math import inf
from typing import Any, ClassVar, Literal, Self, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from auditspec.frozen import Frozen

AS_DECLARED = "as declared"
"""Context of a validation that looks no class up: whoever verifies a packet has none of its plug-ins."""


OutputKind = Literal["logits", "log-probabilities", "probabilities", "values", "token-logits"]
"""What the model's `predict` gives: of classes [B, C] the first three, real numbers [B], logits of the next token [B, T, V]."""
OF_CLASSES: tuple[OutputKind, ...] = ("logits", "log-probabilities", "probabilities")
MEAN = {"name": "mean"}
"""The statistic of a behaviour that names none."""
TOKENS = "tokens"
"""Column of a statistic that reads tokens: how many each example's score is a total over."""


class Declaration(BaseModel):
    """A metric or statistic as it is declared, its class unknown."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str


class Measure(Frozen, ABC):
    """A kind of class of which a spec names one. Its fields are the options; `name` is a literal."""

    home: ClassVar[str]
    """Module above the spec whose `classes()` are those of this kind, by name."""
    name: str

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Give the class the name that a spec says."""
        if literal := get_args(cls.model_fields["name"].annotation):
            (cls.name,) = literal

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """A field of the kind itself takes any class of it."""
        if "home" in cls.__dict__:
            return core_schema.with_info_plain_validator_function(cls._chosen)
        return handler(source)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """All classes of the kind, told apart by their name."""
        return handler(cls._union() if "home" in cls.__dict__ else schema)

    @classmethod
    def classes(cls) -> dict[str, type[Self]]:
        """Every class of this kind, by name.

        Raises:
            UsageError: if a plug-in cannot be used.
        """
        return cast("dict[str, type[Self]]", import_module(cls.home).classes())

    @classmethod
    def of(cls, declared: Any) -> Self | None:
        """The metric or statistic that plain data declares; None where it declares none."""
        try:
            return cast(Self, SchemaValidator(cls._union()).validate_python(declared))
        except ValidationError:
            return None

    @classmethod
    def _union(cls) -> CoreSchema:
        members = {name: member.__pydantic_core_schema__ for name, member in cls.classes().items()}
        return core_schema.tagged_union_schema(members, discriminator="name")

    @classmethod
    def _chosen(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, cls):
            return value
        if info.context == AS_DECLARED:
            return Declaration.model_validate(value)
        validator = SchemaValidator(cls._union())
        if info.mode == "json":
            return validator.validate_json(json.dumps(value), strict=True)
        return validator.validate_python(value)


class DeclaredMetric(Measure):
    """One number per evaluation example: what is known of it before any model is at hand."""

    home: ClassVar[str] = "auditspec.behaviors.metrics"
    predicts: ClassVar[bool] = True
    """Whether it looks at what the model's `predict` gives."""
    reads: ClassVar[tuple[OutputKind, ...]] = ("logits",)
    """The kinds of outputs that it can read there."""
    elsewhere: ClassVar[bool] = False
    """Whether its scores are made by another tool, so that no model is asked for them."""
    of_classes: ClassVar[bool] = False
    """Whether they are those of classes, so that accuracy tells the model's skill."""
    of_sequences: ClassVar[bool] = False
    """Whether it asks for them about token sequences of its columns, in batches that the audit makes: no `load_batch` is called."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What it is, with its options."""

    @property
    @abstractmethod
    def unit(self) -> str:
        """Of a score."""

    @property
    def binary(self) -> bool:
        """Whether every example scores 0 or 1."""
        return False

    @property
    def differentiable(self) -> bool:
        """Whether a score has a slope in the model's parameters."""
        return not self.binary

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest score; infinite where there is none."""
        return (0.0, 1.0) if self.binary else (-inf, inf)

    @property
    def labelled(self) -> bool:
        """Whether it needs the truth of each example: its class, or its value where it reads values."""
        return False

    @property
    def columns(self) -> Mapping[str, str]:
        """Columns of the evaluation table that it reads, each with the option that names it."""
        return {}

    @property
    def counts_tokens(self) -> bool:
        """Whether a score is a total over tokens, which `perplexity` divides by their number."""
        return False

    @property
    def counted_by(self) -> str:
        """The metric that counts what this one measures on a scale that nobody counts in; empty where it is counted."""
        return ""

    @property
    def named_classes(self) -> Mapping[str, int]:
        """Classes that the model must have, by the option that names them."""
        return {}

    @property
    def functions(self) -> Mapping[str, str]:
        """Entry points (model, batch) of the code artifact that it calls, by the option that names them."""
        return {}

    @property
    def scorings(self) -> int:
        """How often the deployed model is scored, to tell what chance does to its scores; 1: there is no chance in them."""
        return 1

    @property
    def artifacts(self) -> Mapping[str, str]:
        """Tables among the artifacts that it reads, by the option that names them."""
        return {}

    def uninformed(self, classes: int) -> float | None:
        """Its expected score for a prediction that gives every class the same probability; None: unknown.

        Args:
            classes: that the model tells apart.
        """
        return None


class DeclaredStatistic(Measure):
    """One number of a model's scores on a slice: what is known of it before there are any."""

    home: ClassVar[str] = "auditspec.behaviors.statistics"
    reads_tokens: ClassVar[bool] = False
    """Whether it reads how many tokens each score is a total over, as the column `TOKENS`."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What it is, with its options."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Columns of the evaluation table that it reads beside the scores, each with the option that names it."""
        return {}

    def misread(self, metric: DeclaredMetric, direction: str) -> str:
        """Why it means nothing of a metric's scores, or beside the direction of the concern; empty where it does."""
        return ""

    def unit(self, scores: str) -> str:
        """Its unit, from that of the scores."""
        return scores

    def bounds(self, least: float, most: float) -> tuple[float, float]:
        """Its least and largest value, from those of the scores; infinite where there is none."""
        return -inf, inf

    def uninformed(self, score: float) -> float | None:
        """Its level for a model that knows nothing, whose expected score is the same everywhere; None: unknown."""
        return None
