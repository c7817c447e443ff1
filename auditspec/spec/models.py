"""The spec, version 1: what an auditor writes. Frozen, strict: unknown keys are errors.

`source.py` turns YAML into a `Spec` and gives every problem its line and column; `rules.py` holds
the rules that span several parts. Nothing here reads a file or imports torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from auditspec.frozen import Frozen
from auditspec.results import (
    NAME,
    AuditInfo,
    Auditor,
    Boundary,
    Concern,
    Exclusion,
    MethodName,
    Person,
    Severity,
    Suppression,
    System,
    Text,
)
from auditspec.schedules import Course, Recorded, Schedule
from auditspec.spec import where as where_grammar
from auditspec.spec.checks import Checks
from auditspec.spec.groups import ParameterGroup
from auditspec.spec.measures import MEAN, DeclaredMetric, DeclaredStatistic, OutputKind
from auditspec.urls import fault, is_url

Name = Annotated[str, Field(pattern=NAME)]
"""An id: letters, digits, '.', '_' and '-', starting with a letter or digit."""
EntryPoint = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", examples=["train:build_model"]),
]
"""`module:callable` in the code artifact."""
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Class = Annotated[int, Field(ge=0)]
Times = Annotated[int, Field(ge=1, le=1000)]


class DatedBy(Frozen):
    """Who is believed about when a trainer signed."""

    timestamps: Text | None = None
    """PEM file with the trusted roots of timestamp authorities, relative to the spec's folder."""
    crls: tuple[Text, ...] = ()
    """Their revocation lists; without any, nobody is asked whether a certificate was revoked."""
    log: Text | None = None
    """PEM file with the public key of an append-only log."""

    @model_validator(mode="after")
    def _names_somebody(self) -> DatedBy:
        if self.timestamps is None and self.log is None:
            raise PydanticCustomError("AS018", "name timestamps, or log, or both")
        return self


class Artifact(Frozen):
    """A file or folder that the audit rests on."""

    path: Text
    """Relative to the spec's folder, with '/' between parts; or a URL in a store (`s3://`, `gs://`, `file://`)."""
    digest: Digest | None = None
    """Pins the bytes. May stand in the lock file instead; without either the artifact is only declared."""
    signed_by: Text | None = None
    """For the record and commitments: the trainer's public key (PEM), relative to the spec's folder; the record's
    manifest, or the commitment, must be signed by it."""
    dated_by: DatedBy | None = None
    """Beside `signed_by`: who dates that signature; null: nobody."""
    label: Text | None = None
    """For a dataset: the column that holds the true class, or the true value where the model's outputs are values."""

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if is_url(value):
            if why := fault(value):
                raise PydanticCustomError("AS019", why)
        elif value.startswith("/") or "\\" in value or ".." in value.split("/"):
            raise PydanticCustomError("AS026", "an artifact lies in the spec's folder or below it")
        return value


class RandomStart(Frozen):
    """Initial weights that the factory drew at random."""

    kind: Literal["random"]
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """torch's seed right before the factory was called; where it is stated, the factory must give the recorded
    first weights again."""
    owner: Text | None = None
    """Who answers for the factory; None: whoever owns the first stage."""
    reference: Name | None = None
    """Artifact with clean weights to replace them by."""


class GivenStart(Frozen):
    """Initial weights that were taken over from elsewhere: a purchased or public base model."""

    kind: Literal["given"]
    owner: Text
    """Who answers for them."""
    provenance: Text
    """Where they come from: supplier, name, version, date."""
    weights: Name | None = None
    """Artifact that holds them; must equal the record's first state."""
    reference: Name | None = None
    """Artifact with clean weights to replace them by."""


Start = Annotated[RandomStart | GivenStart, Field(discriminator="kind")]


class Quantization(Frozen):
    """How int8 tensors of the deployed weights are read: w = scale (q - zero point)."""

    scale: Text = "{name}_scale"
    """Name of the tensor with the scales of another, one for all of it or one a row; `{name}` is its name,
    `{module}` the same less `.weight`."""
    zero_point: Text | None = None
    """Name of the tensor with the zero points; None: 0."""
    absmax: bool = False
    """The scale tensor holds the largest absolute values, 127 times the scale."""
    steps: Positive = 0.5
    """Largest accepted distance of a weight from the recorded one, in steps of the scale; 0.5: rounded to the
    nearest."""


class Conversion(Frozen):
    """What was done to the record's last state before it was deployed; the check does it again."""

    entry: Text | None = None
    """Keys of the deployed state dict, joined by dots, where its file holds several."""
    adapters: Literal["merged", "beside"] | None = None
    """merged: low-rank adapters were merged into the weights that they adapt; beside: they are deployed as an
    adapter folder, beside the base weights."""
    base: Name | None = None
    """The artifact with the base weights, of adapters beside them."""
    scaling: Positive | None = None
    """Of the adapters, where the model's layers do not say theirs as an attribute `scaling`."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision that the weights were cast to."""
    quantized: Quantization | None = None
    """How int8 tensors are read; the others are as recorded, or cast."""

    @model_validator(mode="after")
    def _has_its_base(self) -> Conversion:
        if (self.base is not None) != (self.adapters == "beside"):
            raise PydanticCustomError(
                "AS047",
                "adapters: beside and base, the artifact with the base weights, go together",
            )
        if self.scaling is not None and self.adapters is None:
            raise PydanticCustomError("AS047", "scaling is that of adapters: merged or beside")
        return self


class Model(Frozen):
    """How the model is built, fed, and read: functions of the code artifact."""

    factory: EntryPoint
    """() -> torch.nn.Module"""
    load_batch: EntryPoint
    """(dataset, ids) -> batch; the function that training used."""
    predict: EntryPoint | None = None
    """(model, batch) -> outputs; called in eval mode. Only metrics that look at them need it."""
    outputs: OutputKind = "logits"
    """What `predict` gives: logits, log-probabilities, or probabilities of classes [B, C]; values [B]; logits of the
    next token, token-logits [B, T, V]."""
    tokenizer: Name | None = None
    """Artifact with the tokenizer of the model's texts, `tokenizer.json` of the library tokenizers; None: metrics of token
    sequences read columns of token ids alone."""
    checkpoint: Name
    """The artifact with the deployed weights; must equal the record's last state, converted as `conversion` says."""
    conversion: Conversion | None = None
    """What was done to that state before it was deployed; None: nothing."""
    tolerance: NonNegative = 0.0
    """Largest accepted relative deviation of the checkpoint from the record's last state; 0: bitwise."""
    initial: Start | None = None
    """Where the first weights come from; None: nobody says."""


OPTIMIZERS = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
    "SparseAdam",
)
"""The classes of torch.optim that can be recorded; LBFGS needs a closure."""


class Optimizer(Frozen):
    """What the stage's optimizer was declared to be; compared with the record field by field."""

    name: Text
    """The torch.optim class, for example SGD or AdamW; `module:Class` for one of the code artifact."""
    lr: Positive
    """The largest learning rate of the stage."""
    schedule: Schedule = Recorded()
    """How the rate runs over the stage: a name, or a name with options (`schedules`); recorded: no claim beyond the
    largest rate."""
    state: Boundary | None = None
    """What happens to the optimizer's state where the stage begins."""
    momentum: NonNegative | None = None
    dampening: float | None = None
    nesterov: bool | None = None
    weight_decay: NonNegative | None = None
    maximize: bool | None = None
    betas: tuple[Decay, Decay] | None = None
    eps: NonNegative | None = None
    amsgrad: bool | None = None
    options: dict[str, float | bool | str | tuple[float, ...]] = Field(default_factory=dict)
    """Hyperparameters that only this optimizer has."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters that train with other hyperparameters than these; the first group that holds one counts."""

    @property
    def course(self) -> Course | None:
        """The declared course of the learning rate; None where none is claimed."""
        return None if isinstance(self.schedule, Recorded) else self.schedule


class Stage(Frozen):
    """One training stage, in the order of training."""

    id: Name
    owner: Text
    """Who answers for the stage."""
    description: Text
    data: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Artifacts that the stage was trained on."""
    batch_size: Count = 64
    """Examples of a step, of all its microbatches together; estimates go by it where the record holds no steps."""
    objective: EntryPoint
    """(model, batch) -> scalar loss; called in train mode."""
    commitment: Name | None = None
    """Artifact with what was committed to before the stage was trained."""
    extend: EntryPoint | None = None
    """(model) -> None; what changed the model before the stage (a new head, adapters). It is given after
    the model the data sets that the record names for it."""
    reference: Name | None = None
    """Artifact with clean rows of the same form: where the stage cannot be left out, it is trained on them
    instead."""
    optimizer: Optimizer


class Behavior(Frozen):
    """A behaviour of concern: a statistic of a metric on a slice of evaluation data."""

    id: Name
    description: Text
    metric: DeclaredMetric
    statistic: Annotated[DeclaredStatistic, Field(default=MEAN, validate_default=True)]
    """Of the scores on the slice; by default their mean."""
    data: Name
    """The artifact that holds the evaluation examples."""
    where: Text | None = None
    """Slice of the data: columns, literals, comparisons, and / or / not / in."""
    skill: Name | None = None
    """Id of the behaviour by which a model's skill is read; None: accuracy on the rows outside the slice, where
    the data has a label and the metric is of classes."""
    concern: Concern

    @field_validator("where")
    @classmethod
    def _parses(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                where_grammar.parse(value)
            except where_grammar.WhereError as error:
                context = {"reason": error.message, "offset": error.offset}
                raise PydanticCustomError("AS030", "{reason}", context) from None
        return value


class Budget(Frozen):
    """What the estimate may cost."""

    gradients: Count | None = None
    """Minibatch gradients of the whole audit: re-running the record, estimates, their twins, replays, and the
    arms that the verdicts ask for; None: no limit."""
    seconds: Positive | None = None
    """The same in seconds, by the pace of the recorded steps; None: no limit."""


class Estimator(Frozen):
    """How the counterfactuals are estimated, and on what."""

    method: MethodName = "auto"
    """`auto`, or the name of an estimator: first-order, displacement, krylov, simulated-replay, paired-replay, sub-batch-replay, replay, or one that is
    plugged in."""
    budget: Budget = Budget()
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    deterministic: bool = False
    """Ask torch for deterministic kernels; an operation without one is an error."""
    threads: Count | None = None
    """CPU threads; None: those of the record."""
    batch_size: Count = 256
    """Evaluation examples a forward pass."""
    engine: Annotated[str, Field(pattern=NAME)] = "rerun"
    """What makes the recorded steps again: rerun, on one device, or an engine that is plugged in."""
    contributions: bool = False
    """Also say when inside the stages each differentiable behaviour was made, by the adjoint; its cost is
    not part of the budget."""


class Policy(Frozen):
    """When a release is stopped."""

    fail_on: tuple[
        Annotated[str, Field(pattern=r"^severity>=(low|medium|high|critical)$")], ...
    ] = ("severity>=high",)
    inconclusive: Literal["pass", "fail"] = "fail"
    suppress: tuple[Suppression, ...] = ()
    rubric: dict[Severity, Text] = Field(default_factory=dict)
    """What a severity means in this organization, in place of the general meaning (docs/verdicts.md)."""


class Review(Frozen):
    """Who approves the report, and what was left out of it."""

    approver: Person | None = None
    exclusions: tuple[Exclusion, ...] = ()


class Report(Frozen):
    """What is made of `results.json`, and stands beside it in the packet."""

    formats: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Exports by name, those of plug-ins among them; null: those that are made by default."""


class Timestamping(Frozen):
    """The authority that says when the packet was signed; `run` contacts it."""

    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+(/\S*)?$")]
    """Of an RFC 3161 service."""


class Signing(Frozen):
    """What the auditor signs with."""

    key: Text
    """PEM file (PKCS#8), relative to the spec's folder; or a key that a URI names: on a token
    (`pkcs11:token=…;object=…`), in a service (`hashivault://…`), or of a plug-in's scheme."""
    certificate: Text | None = None
    """PEM file with the key's X.509 certificate, then those above it; with one, the PDF is signed too."""
    timestamp: Timestamping | None = None
    level: Literal["B-B", "B-T", "B-LT", "B-LTA"] | None = None
    """PAdES level of the PDF's signature; by default B-T with a timestamp authority, else B-B."""
    authorities: Text | None = None
    """PEM file with the certificates above signer and timestamps, roots included; for B-LT and B-LTA."""
    crls: tuple[Text, ...] = ()
    """Revocation lists of those authorities; for B-LT and B-LTA."""


class Spec(Frozen):
    """An audit, version 1."""

    auditspec: Literal["1"]
    audit: AuditInfo
    auditor: Auditor
    system: System
    model: Model
    artifacts: dict[Name, Artifact]
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    behaviors: Annotated[tuple[Behavior, ...], Field(min_length=1)]
    estimator: Estimator = Estimator()
    checks: Checks = Checks()
    policy: Policy = Policy()
    review: Review = Review()
    report: Report = Report()
    signing: Signing | None = None
