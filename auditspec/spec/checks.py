"""What a spec may ask of the confidence checks: the options of the built-in ones, and how those of plug-ins join."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from auditspec.frozen import Frozen
from auditspec.plugins import names
from auditspec.spec.measures import AS_DECLARED

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
OptionsT = TypeVar("OptionsT", bound="CheckOptions")
EXAMPLES = 256
"""Of a behaviour that a check reads again, where the spec does not say and the model is small."""
STEPS = 20
"""The same that are made in two precisions."""


class CheckOptions(Frozen):
    """The options of one check; a check without any has these."""

    laxer_above: ClassVar[tuple[str, ...]] = ()
    """Options by which the spec accepts more doubt where they are above their defaults."""
    laxer_below: ClassVar[tuple[str, ...]] = ()
    """The same where they are below."""

    def laxer(self) -> list[str]:
        """Options by which more doubt is accepted than by default."""
        default = type(self)()
        above = [n for n in self.laxer_above if getattr(self, n) > getattr(default, n)]
        return above + [n for n in self.laxer_below if getattr(self, n) < getattr(default, n)]


class RecordFidelity(CheckOptions):
    """Re-running recorded windows must land on the next recorded state."""

    windows: Literal["auto", "all"] | Count = "auto"
    """How many are re-run; auto: all where the budget goes that far, else what half of it pays for."""
    threshold: Positive | None = None
    """Largest accepted relative deviation; None: 1e-4 in float32, 1e-9 in float64, and 0 where other
    windows land bitwise."""

    def laxer(self) -> list[str]:
        """A threshold above that of float32."""
        return ["threshold"] if self.threshold is not None and self.threshold > 1e-4 else []


class SpotCheck(CheckOptions):
    """Exact replay of the stages that matter most."""

    stages: Annotated[int, Field(ge=0)] = 1
    """Stages to replay, those first that reach furthest towards a concern, in tolerances."""


class Sampling(CheckOptions):
    """Bootstrap over evaluation examples."""

    laxer_below = ("level", "verdicts")

    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    level: Share = 0.95
    """Of the intervals; and the share of the resamples that must agree for the rule to name or clear."""
    verdicts: Annotated[int, Field(ge=60, le=10_000)] = 200
    """Resamples on which the whole rule is applied again."""


class Refinement(CheckOptions):
    """The estimates' own error, from a twin or the rung below."""

    laxer_above = ("threshold",)

    threshold: Positive = 0.5
    """Largest accepted error, in shares of the behaviour's largest effect."""


class Linearity(CheckOptions):
    """Plug-in against linear reading of the same displacement."""

    laxer_above = ("threshold",)

    threshold: Positive = 0.5
    """Largest accepted relative disagreement of a first-order estimate."""


class Precision(CheckOptions):
    """The effects in float64, on a subsample."""

    laxer_above = ("threshold",)

    examples: Annotated[int, Field(ge=0)] | None = None
    """Evaluation examples of each behaviour that are read in float64; None: 256, or 8 of a model above a million parameters; 0:
    the check is not run."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Training steps of the leading stage's counterfactual that are made in float64; None: 20, or 5 of a model above a million
    parameters."""
    threshold: Positive = 1e-2
    """Largest accepted relative change."""

    def laxer(self) -> list[str]:
        """As any check's, and fewer examples and steps than there are by default of a small model."""
        asked = {"examples": (self.examples, EXAMPLES), "steps": (self.steps, STEPS)}
        fewer = [name for name, (own, many) in asked.items() if own is not None and own < many]
        return super().laxer() + fewer


class Additivity(CheckOptions):
    """Leave-one-out effects against the total change; descriptive."""

    threshold: Positive = 0.5
    """Interaction share from which on effects are not to be read as shares of the whole."""


class Placebo(CheckOptions):
    """Random displacements as large as the stages'; descriptive."""

    draws: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Random displacements of each stage; None: 19, as many as an effect needs to stand out; 0: the check is not run."""
    examples: Count | None = None
    """Evaluation examples of each behaviour that they are read on; None: 256, or 8 of a model above a million parameters."""


class Memorization(CheckOptions):
    """Rows that were trained on beside rows that were held back; descriptive."""

    rows: Annotated[int, Field(ge=0, le=10_000)] = 16
    """Most rows on either side of a segment whose losses are computed; 0: the check is not run."""


class Checks(Frozen):
    """Options of the confidence checks; a plug-in's stand under its id."""

    model_config = ConfigDict(extra="allow")

    record_fidelity: RecordFidelity = Field(default=RecordFidelity(), alias="record-fidelity")
    refinement: Refinement = Refinement()
    spot_check: SpotCheck = Field(default=SpotCheck(), alias="spot-check")
    sampling: Sampling = Sampling()
    linearity: Linearity = Linearity()
    precision: Precision = Precision()
    additivity: Additivity = Additivity()
    placebo: Placebo = Placebo()
    memorization: Memorization = Memorization()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of every random draw that the checks make."""

    def of(self, check: str, kind: type[OptionsT]) -> OptionsT:
        """The options of a check; its defaults where the spec says nothing of it.

        Args:
            check: its id.
            kind: their class.
        """
        options = dict(self.sections()).get(check, kind())
        assert isinstance(options, kind)  # noqa: S101
        return options

    def sections(self) -> Iterator[tuple[str, CheckOptions]]:
        """The options of each check that has some, by its id."""
        for name, field in type(self).model_fields.items():
            if isinstance(options := getattr(self, name), CheckOptions):
                yield field.alias or name, options
        for name, options in (self.model_extra or {}).items():
            if isinstance(options, CheckOptions):
                yield name, options

    @model_validator(mode="after")
    def _of_plug_ins(self, info: ValidationInfo) -> Self:
        """Read each further section by the class of its plug-in; whoever verifies a packet has none of them."""
        extra = self.__pydantic_extra__
        if extra and info.context != AS_DECLARED:
            extra |= SchemaValidator(_sections(set(extra))).validate_json(
                json.dumps(extra), strict=True
            )
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The built-in sections, and those of the plug-ins that are here."""
        drawn = handler(schema)
        whole = handler.resolve_ref_schema(drawn)
        for name, kind in _plug_ins(names("checks", ())).items():
            whole["properties"][name] = handler(kind.__pydantic_core_schema__)
        whole["additionalProperties"] = False
        return drawn


def _plug_ins(wanted: Iterable[str]) -> dict[str, type[CheckOptions]]:
    """The options of checks that plug-ins bring, by id; those of which there is no plug-in are left out.

    Raises:
        UsageError: if a plug-in cannot be used.
    """
    there = [name for name in wanted if name in names("checks", ())]
    if not there:  # whoever reads a spec needs no torch
        return {}
    available = import_module("auditspec.checks.examination").available()
    return {name: available[name].section for name in there}


def _sections(wanted: Iterable[str]) -> CoreSchema:
    """What the sections of plug-ins must be, and no others."""
    fields = {
        name: core_schema.typed_dict_field(kind.__pydantic_core_schema__, required=False)
        for name, kind in _plug_ins(wanted).items()
    }
    return core_schema.typed_dict_schema(fields, extra_behavior="forbid")
