"""What an audit found: frozen types, free of torch, that are written to `results.json`.

The report is rendered from these types and nothing else. Field docstrings state units; an effect
is in the unit of its behaviour's statistic, and a positive effect means that the stage *raised* the
metric (method: effect(S, gamma) = gamma(theta_K) - gamma(theta_K without S)).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self, TypeVar

from pydantic import Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from auditspec.frozen import Frozen
from auditspec.messages import Message, message
from auditspec.withheld import Withheld

if TYPE_CHECKING:
    import pandas as pd


Verdict = Literal["attributed", "shared", "one-or-more", "absent", "no-effect", "inconclusive"]
"""attributed: one party is answerable; shared: several are; one-or-more: one or more of those named are.
absent: the deployed model is within the stated limit; no-effect: it is no worse than the best state of its
own run, which clears neither the initial weights nor the first stage."""
Role = Literal[
    "cause",
    "joint-cause",
    "inherited",
    "introduced",
    "one-or-more",
    "contributor",
    "enabler",
    "masks",
    "repaired",
    "none",
    "undetermined",
]
"""cause: answerable, and leaving it out takes the fault away, or its part of it; joint-cause: only together
with others; inherited: the fault stood in the initial weights; introduced: it came with a change of the
model between two stages; one-or-more: at least one of those with this role is answerable; contributor: it
amplified what another caused; enabler: without it there is no model that could show the fault; masks: the
fault would be larger without it; repaired: it undid, by its end, a fault that is gone from the deployed
model or smaller in it; none: nothing was found; undetermined: the evidence does not tell."""
Ending = Literal[
    "evidence",
    "estimate",
    "examples",
    "within",
    "removed",
    "partly-removed",
    "persists",
    "unexplained",
]
"""Which rule gave a verdict (docs/verdicts.md)."""
Outcome = Literal["pass", "fail", "inconclusive", "not-run"]
Bars = Literal["all", "estimated", "behavior", "nothing"]
"""What a check stands in the way of. all: every verdict; estimated: verdicts that rest on an estimated run;
behavior: verdicts on the behaviours of its lines; nothing: it describes."""
Picture = Literal["windows", "replays", "draws"]
"""How a check's lines are drawn: the statistic of each beside the threshold; estimates beside references;
estimates beside draws."""
Severity = Literal["low", "medium", "high", "critical"]
EvidenceState = Literal["verified", "declared", "missing", "mismatched"]
Boundary = Literal["reset", "carry", "given"]
"""What an optimizer's state is where a stage begins: none, that of the stage before, or some of another origin."""
EvidenceGrade = Literal["dense", "sparse", "regenerated", "boundaries", "none"]
Direction = Literal["increase", "decrease"]
MethodName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
"""An estimator's: lower case, words joined by '-'."""

SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")
Text = Annotated[str, Field(min_length=1, max_length=4000)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What an id looks like: letters, digits, '.', '_' and '-', starting with a letter or digit."""
VERSION: Literal["2"] = "2"
"""Of `results.json`: 2 holds codes where 1 held sentences."""
DIFFERENCE_OF_SHARES = "difference of shares"
"""The unit of how far shares or probabilities are apart."""
RUBRIC: dict[Severity, str] = {
    "critical": "Ordinary use can harm people or break the law; the system must not be used.",
    "high": "An intended use fails, or some people are served worse than others; no release until it is "
    "resolved, or accepted by name.",
    "medium": "Quality suffers in use, and can be worked around; to be resolved by an agreed day.",
    "low": "Noticeable, and harmless in the intended use.",
}
"""What the severities mean, where a spec does not say otherwise."""


# --- who and what: these blocks are written in the spec and repeated in the results ------------


class AuditInfo(Frozen):
    """Document control of the audit."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """Report id: lower-case letters, digits, '.', '_' and '-'."""
    title: Text
    classification: Text = "internal"
    expires: dt.date | None = None
    """The day after which the opinion should not be relied on."""
    supersedes: Text | None = None
    """Id of the report that this one replaces."""


class Auditor(Frozen):
    """Who audits, and how independent of the audited party."""

    name: Text
    organization: Text
    role: Text
    independence: Text


class System(Frozen):
    """The deployed system under audit."""

    name: Text
    version: Text
    owner: Text
    intended_use: Text


class Person(Frozen):
    """A named person in a role."""

    name: Text
    role: Text


class Exclusion(Frozen):
    """Something deliberately left out of the audit."""

    what: Text
    reason: Text
    count: Annotated[int, Field(ge=0)] | None = None


class Negatable(Protocol):
    """A number, or an array of numbers."""

    def __neg__(self) -> Self:
        """The same with the other sign."""


Signed = TypeVar("Signed", bound=Negatable)


class Concern(Frozen):
    """Which change of a behaviour is a harm, how large it must be to matter, and what is acceptable."""

    direction: Direction
    limit: float | None = None
    """The level, in the behaviour's unit, that the deployed model must not pass in the direction of the concern;
    without one, nothing clears the initial weights and the first stage."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """A change that does not matter yet, in the behaviour's unit."""
    tolerance_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """In place of `tolerance`: the same in shares of the limit's size, for metrics without a natural scale
    (margins, log-likelihoods)."""
    severity: Severity = "medium"

    @model_validator(mode="after")
    def _one_tolerance(self) -> Concern:
        if self.tolerance_share is None:
            if "tolerance" not in self.model_fields_set:
                raise PydanticCustomError(
                    "AS027", "needs tolerance, or tolerance_share with a limit"
                )
            return self
        if not self.limit:
            raise PydanticCustomError(
                "AS027",
                "tolerance_share is a share of the limit, which must be stated and not be 0",
            )
        share = self.tolerance_share * abs(self.limit)
        if "tolerance" in self.model_fields_set and self.tolerance != share:
            raise PydanticCustomError("AS027", "state tolerance or tolerance_share, not both")
        object.__setattr__(self, "tolerance", share)
        return self

    @property
    def rises(self) -> bool:
        """Whether an increase is the harm."""
        return self.direction == "increase"

    def signed(self, value: Signed) -> Signed:
        """A level or a change as the concern counts it: more is worse. Its own inverse."""
        return value if self.rises else -value


class Suppression(Frozen):
    """A finding accepted by someone, for a reason, until a day."""

    behavior: Text
    reason: Text
    owner: Text
    expires: dt.date


# --- what was found ----------------------------------------------------------------------------


class Evidence(Frozen):
    """One artifact and whether its bytes are those that the spec pins."""

    name: str
    kind: Literal["file", "folder"]
    path: str
    """Relative to the spec's folder."""
    state: EvidenceState
    expected: str | None = None
    """Pinned digest, `sha256:` and 64 hex digits; None where nothing pins it."""
    found: str | None = None
    """Digest of the bytes that were read; None where there are none."""
    size: int | None = None
    """Bytes."""
    files: int | None = None
    pinned_in: str | None = None
    """The file that pins the digest: the spec or its lock."""
    signed_by: str | None = None
    """Id of the key by which its trainer signed it; None where no signature was asked for."""
    notes: tuple[Message, ...] = ()


class Curve(Frozen):
    """A stage's recorded course, thinned for plotting."""

    parallel = ("step", "learning_rate", "loss")
    step: tuple[int, ...]
    """Step within the stage."""
    learning_rate: tuple[float, ...]
    """Of the first parameter group."""
    loss: tuple[float | None, ...]
    """Training loss of that step's minibatch; None where it was not recorded."""


class StageResult(Frozen):
    """One training stage as the spec declares it and the record shows it."""

    id: str
    owner: str
    description: str
    data: tuple[str, ...]
    objective: str
    optimizer: str
    """Class and hyperparameters in one line."""
    boundary: Boundary | None = None
    """What happened to the optimizer's state where the stage began."""
    steps: int | None = None
    examples: int | None = None
    """Training examples seen, repeats counted."""
    distinct: int | None = None
    """Different ones, told by their content."""
    constant: int | None = None
    """Different ones that every step saw."""
    seconds: float | None = None
    """Recorded training time."""
    curve: Curve | None = None


class Method(Frozen):
    """An estimator that was used, in its own words: a reader need not have it installed."""

    name: MethodName
    title: Text
    words: Message
    """What it does."""


class OfIntervention(Frozen):
    """What is said of one counterfactual run."""

    arm: tuple[str, ...]
    """The intervention: what the run does otherwise, `omit STAGE` or `replace PARTY` each; to leave one stage out
    is the one kind that effects are estimated of today."""

    @property
    def stage(self) -> str | None:
        """The stage that is left out, where that is all that the run does otherwise."""
        kind, _, party = self.arm[0].partition(" ") if len(self.arm) == 1 else ("", "", "")
        return party if kind == "omit" else None


class Estimate(OfIntervention):
    """How one counterfactual was obtained."""

    method: MethodName
    exact: bool
    """True where the counterfactual was trained (or read off), not approximated."""
    reason: Message
    """Why this method was used."""
    gradients: float
    """Cost in minibatch gradients (a Hessian-vector product counts as 2)."""
    seconds: float
    cached: bool = False
    """True where it was made by an earlier run from the same evidence and options."""
    notes: tuple[Message, ...] = ()
    """What there is to say about this run, such as a slower way that the estimator fell back to."""
    displacement: float
    """Euclidean norm of theta_K without the stage minus theta_K, over all parameters."""


class Effect(OfIntervention):
    """Effect of one intervention, leaving out a stage, on one behaviour, in the behaviour's unit."""

    behavior: str
    value: float
    """gamma(theta_K) - gamma(theta_K without the stage); > 0: the stage raised the metric."""
    counterfactual: float
    """gamma(theta_K without the stage)."""
    low: float | None = None
    high: float | None = None
    """Ends of the simultaneous interval; None where the sampling check did not run."""
    error: float | None = None
    """The estimator's own error that the interval includes; 0 for an exact counterfactual, None: unknown."""
    leads: float | None = None
    """Probability, over resampled examples, that this stage moves the behaviour furthest towards the concern."""
    before: float | None = None
    """gamma at the stage's start, theta_a."""
    after: float | None = None
    """gamma at the stage's end, theta_b; after - before is what happened while the stage trained."""
    linear: float | None = None
    """Linear reading, -grad gamma . delta; None where it was not taken."""
    exact: bool = False


class Contribution(Frozen):
    """When inside a stage a behaviour was made: first-order contributions of its steps (adjoint)."""

    parallel = ("step", "value")
    behavior: str
    stage: str
    step: tuple[int, ...]
    """First step of each bin; a bin ends where the next begins."""
    value: tuple[float, ...]
    """Sum over the steps of each bin, in the behaviour's unit; > 0: the steps raised the metric."""
    total: float
    """First-order effect of the whole stage, the sum of all bins."""


class PartyResult(Frozen):
    """Whatever formed the model: its initial weights, a change of it between stages, a stage."""

    id: str
    """`weights:initial`, `change:STAGE` for what changed the model before a stage, or the stage's id."""
    kind: Literal["initial", "change", "stage"]
    stage: str | None = None
    """The stage, or the one before which the model was changed."""
    owner: str
    """Who answers for it; empty where nobody is named."""
    origin: Literal["random", "given", "unknown"] | None = None
    """Of initial weights: drawn at random, taken over from elsewhere, or neither declared nor seen."""
    provenance: str = ""
    """Of given weights: where they come from."""
    reference: str | None = None
    """Artifact with clean data or weights that it can be given instead."""


class Path(Frozen):
    """A behaviour along one run, the recorded or a counterfactual one."""

    parallel = ("states", "levels", "errors", "skills")
    behavior: str
    arm: tuple[str, ...]
    """What was done otherwise, `omit STAGE` or `replace PARTY`; empty for the recorded run."""
    states: tuple[str, ...]
    """`initial`, then for every stage that was trained `STAGE:start` where the model was changed before it,
    and `STAGE:end`; in an arm, from the first state on that differs from the recorded run."""
    levels: tuple[float, ...]
    """The behaviour's statistic on the slice, in its unit, at each state."""
    errors: tuple[float | None, ...]
    """The estimator's own error of each level; 0 for an exact one, None: unknown."""
    skills: tuple[float | None, ...]
    """What the model can do at each state, on the way from knowing nothing (0) to the best end of a recorded
    stage (1); None where it cannot be read."""
    exact: bool


class Draws(Frozen):
    """A behaviour after the same beginning with other random numbers."""

    behavior: str
    party: str
    """`weights:initial`: the factory was called again; `change:STAGE`: the model was changed again."""
    levels: tuple[float, ...]
    identical: bool
    """Whether every draw gave the very same model: then nothing about it is random."""


class GroupResult(Frozen):
    """One of the groups that a behaviour's statistic compares, by the deployed model."""

    name: str
    examples: int
    unit: str
    """Of the level."""
    level: float | None = None
    """None: too few examples, left out of the comparison and of the slice."""


class BehaviorResult(Frozen):
    """One behaviour of concern, measured on the deployed model."""

    id: str
    description: str
    metric: str
    """In words, with its classes."""
    statistic: str = "mean"
    """Of the metric's scores on the slice, in words."""
    unit: str
    """Of the statistic."""
    data: str
    where: str | None
    examples: int | None = None
    """Examples in the slice."""
    value: float | None = None
    """gamma(theta_K), the deployed model's level: its statistic on the slice."""
    uninformed: float | None = None
    """Level of a prediction that knows nothing (all classes alike); None where it is unknown."""
    bounded: bool = False
    """Whether the statistic has a smallest and a largest value."""
    groups: tuple[GroupResult, ...] = ()
    """Those that the statistic compares, and those that it left out; none where it compares none."""
    skill: Message | None = None
    """What a model's skill was read on; None where it could not be read."""
    concern: Concern

    @property
    def beyond(self) -> bool:
        """Whether the deployed model is beyond a stated limit."""
        limit, value = self.concern.limit, self.value
        return limit is not None and value is not None and self.concern.signed(value - limit) > 0


class CheckDetail(Frozen):
    """One line of a check's evidence."""

    subject: str
    outcome: Outcome
    statistic: float | None = None
    notes: tuple[Message, ...] = ()
    stage: str | None = None
    """The stage that this line is about."""
    behavior: str | None = None
    """The behaviour that this line is about; a gate bars verdicts on the behaviours of its failed lines."""
    estimate: float | None = None
    """What was held against `reference` or `draws`, in the behaviour's unit."""
    reference: float | None = None
    """What the estimate should have been, in the behaviour's unit."""
    draws: tuple[float, ...] = ()
    """What chance gave in the estimate's place, in the behaviour's unit."""
    examples: int | None = None
    """Evaluation examples that its numbers were read on, where those are not all of the behaviour's."""

    @property
    def line(self) -> Message:
        """What this line is about, and what was seen."""
        if not self.notes:
            return message("check-line-bare", subject=self.subject)
        return message("check-line", subject=self.subject, notes=self.notes)


class CheckResult(Frozen):
    """One confidence check: what it measured, against which threshold, and what came out."""

    id: str
    title: str
    bars: Bars = "nothing"
    bars_when: Literal["not-passed", "failed"] = "not-passed"
    """Which outcomes stand in the way: all but `pass`, or `fail` alone."""
    remedy: Message | None = None
    """What settles a verdict that it bars."""
    outcome: Outcome
    statistic_name: str
    statistic: float | None = None
    unit: str = ""
    threshold: float | None = None
    reasons: tuple[Message, ...]
    """Why this outcome; for not-run, why it was not run."""
    source: str = ""
    """Where the statistic comes from."""
    coverage: float = 1.0
    """Share of what could be checked that was looked at."""
    gradients: float = 0.0
    """Cost in minibatch gradients."""
    discloses: bool = False
    """Whether each line that does not pass is a limitation of its own."""
    resampling: bool = False
    """Whether it is about resampled examples, by which verdicts and intervals go."""
    picture: Picture | None = None
    details: tuple[CheckDetail, ...] = ()

    @property
    def in_the_way(self) -> bool:
        """Whether it stands in the way of what it bars."""
        if self.bars == "nothing":
            return False
        return self.outcome == "fail" if self.bars_when == "failed" else self.outcome != "pass"

    def doubts(self, behavior: str) -> tuple[CheckDetail, ...]:
        """Its lines that are in the way of a verdict on a behaviour, those of no behaviour included."""
        return tuple(
            line
            for line in self.details
            if line.behavior in (None, behavior)
            and (line.outcome == "fail" if self.bars_when == "failed" else line.outcome != "pass")
        )


class RoleResult(Frozen):
    """What one party has to do with one behaviour."""

    party: str
    role: Role
    rise: float | None = None
    """What was added to the excess over the limit while the party had its turn, in the behaviour's unit, > 0
    towards the concern; None where it could not be read."""
    effect: float | None = None
    """Of leaving it out, in the behaviour's unit, > 0 towards the concern; None for a party that is no stage."""
    notes: tuple[Message, ...] = ()


class Tally(Frozen):
    """How often the rule ended in one way over resampled evaluation examples."""

    parties: tuple[str, ...]
    """Those whom it named, sorted."""
    ending: Ending
    count: Annotated[int, Field(ge=1)]


class VerdictResult(Frozen):
    """The answer for one behaviour, with the rule that gave it."""

    behavior: str
    verdict: Verdict
    ending: Ending
    """Which rule gave it (docs/verdicts.md)."""
    parties: tuple[str, ...] = ()
    """Ids of those who are answerable, in order of training."""
    roles: tuple[RoleResult, ...] = ()
    """Of every party, in order of training; empty where nothing was estimated."""
    limit: Literal["stated", "self"] | None = None
    """What the level was held against: the stated limit, or the best state of the run itself."""
    tallies: tuple[Tally, ...] = ()
    """Over resampled examples, the most frequent first."""
    masked_by: tuple[str, ...] = ()
    """Stages without which the fault would be larger by more than the tolerance."""
    confidence: float | None = None
    """Share of the resamples in which exactly these were named, at most what evidence of this grade carries;
    None where nobody is named."""
    statement: Message
    reasons: tuple[Message, ...] = ()
    reservations: tuple[Message, ...] = ()
    """What the verdict does not clear or exclude."""
    settle: tuple[Message, ...] = ()
    """What would settle an inconclusive verdict, or tell the parties of a shared one apart."""
    rests_on: tuple[str, ...] = ()
    """Ids of the checks that this verdict would be another without: those that bar it where they are in the
    way, and those about the resampling that it goes by."""


class Finding(Frozen):
    """A behaviour for which at least one party is answerable."""

    id: str
    behavior: str
    verdict: Verdict
    severity: Severity
    parties: tuple[str, ...]
    statement: Message
    alternatives: tuple[Message, ...]
    """Other explanations that the audit does not rule out."""
    suppressed: Suppression | None = None


class Limitation(Frozen):
    """Something that the audit did not establish, generated from what was missing."""

    id: str
    message: Message


class Gate(Frozen):
    """What the policy makes of the verdicts."""

    passed: bool
    exit_code: int
    reasons: tuple[Message, ...]
    policy: Message
    """The policy that was applied."""


class Signer(Frozen):
    """The key that signs the packet."""

    keyid: str
    """sha256 of the public key (SubjectPublicKeyInfo, DER), hex."""
    algorithm: Literal["ecdsa-p256-sha256", "ed25519", "rsa-pss-sha256"]
    certificate: str | None = None
    """sha256 of the X.509 certificate (DER) that names the key's holder, hex; None: the key alone."""
    pdf: Literal["B-B", "B-T", "B-LT", "B-LTA"] | None = None
    """PAdES level of the signature inside the PDF; None: it carries none."""


class Plugin(Frozen):
    """A class of another distribution that was installed where the audit ran."""

    kind: str
    name: str
    distribution: str
    version: str
    digest: str
    """Of the Python files of its package."""


class Isolation(Frozen):
    """What the audited code was kept from."""

    process: bool
    """Whether it ran in a process of its own; if not, it could have changed anything that the audit computed."""
    measures: tuple[Literal["files", "network", "processes", "namespaces"], ...] = ()
    """What the kernel kept it from: files but the evidence and its scratch folder, connections, other processes;
    and whether it had namespaces of its own."""

    @property
    def lacking(self) -> tuple[str, ...]:
        """What it was not kept from."""
        return tuple(m for m in ("files", "network", "processes") if m not in self.measures)

    @property
    def sealed(self) -> bool:
        """Whether it was kept from all three."""
        return self.process and not self.lacking

    @property
    def words(self) -> str:
        """In a phrase."""
        if not self.process:
            return "ran in the audit's own process, which it could have changed"
        if self.sealed:
            return "sealed: kept from files, network, and other processes"
        kept = [m for m in self.measures if m != "namespaces"]
        return f"ran in a process of its own, kept from {', '.join(kept) or 'nothing'}"


class Run(Frozen):
    """How and where the audit ran, for whoever repeats it."""

    tool: str
    """auditspec and its version."""
    created: dt.datetime
    """UTC."""
    command: str
    spec_digest: str
    seconds: float
    gradients: float
    device: str
    dtype: str
    threads: int
    deterministic: bool
    seed: int
    python: str
    platform: str
    versions: dict[str, str]
    """Versions of the libraries that the numbers depend on."""
    engine: str = "rerun"
    """What made the recorded steps again."""
    plugins: tuple[Plugin, ...] = ()
    """Every plug-in that was installed, whether it came into play or not."""
    renderer: dict[str, str] = Field(default_factory=dict)
    """What drew the reports: versions by name (`auditspec.report.renderer`)."""
    isolation: Isolation | None = None
    """None: no audited code was executed."""
    environment: str | None = None
    """Digest of the bill of materials in the packet; None where none was written."""


class AuditResult(Frozen):
    """Everything an audit found: the content of `results.json`."""

    auditspec_results: Literal["2"] = VERSION
    """The format's version."""
    run: Run
    audit: AuditInfo
    auditor: Auditor
    approver: Person | None = None
    exclusions: tuple[Exclusion, ...] = ()
    system: System
    signer: Signer | None = None
    """None: the packet is unsigned."""
    evidence_grade: EvidenceGrade
    evidence: tuple[Evidence, ...]
    stages: tuple[StageResult, ...]
    parties: tuple[PartyResult, ...] = ()
    """Everything that formed the model, in order of training."""
    behaviors: tuple[BehaviorResult, ...]
    methods: tuple[Method, ...] = ()
    """Those of the estimates, each once."""
    estimates: tuple[Estimate, ...] = ()
    effects: tuple[Effect, ...] = ()
    paths: tuple[Path, ...] = ()
    """Every behaviour along the recorded run and every arm."""
    draws: tuple[Draws, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    """Empty unless the spec asks for them (estimator.contributions)."""
    checks: tuple[CheckResult, ...]
    verdicts: tuple[VerdictResult, ...]
    findings: tuple[Finding, ...]
    limitations: tuple[Limitation, ...]
    vocabulary: dict[str, Text] = Field(default_factory=dict)
    """English templates of the plug-ins' codes that stand in these results; those of auditspec's own are not among
    them."""
    gate: Gate
    rubric: dict[Severity, Text] = Field(default_factory=lambda: dict(RUBRIC))
    """What each severity means."""
    _withheld: tuple[Withheld, ...] = PrivateAttr(())

    @property
    def withheld(self) -> tuple[Withheld, ...]:
        """The leaves that are withheld: using a field that holds one raises a `WithheldError`."""
        return self._withheld

    def less(self, withheld: Iterable[Withheld]) -> AuditResult:
        """These results, from which leaves were withheld already, with the list of them."""
        copy = self.model_copy()
        copy._withheld = tuple(withheld)
        return copy

    def to_frame(self, table: Literal["effects", "checks", "findings"] = "effects") -> pd.DataFrame:
        """One tidy pandas table, a row per effect, check, or finding.

        The arm of an effect is one text, such as `omit vendor`.
        Nested fields (a check's details, a finding's suppression) stay as JSON-like values.

        Raises:
            ValueError: for a table that does not exist.
        """
        import pandas as pd

        kinds: dict[str, tuple[type[Frozen], tuple[Frozen, ...]]] = {
            "effects": (Effect, self.effects),
            "checks": (CheckResult, self.checks),
            "findings": (Finding, self.findings),
        }
        if table not in kinds:
            raise ValueError(f"no table {table!r}: one of {', '.join(kinds)}")
        kind, rows = kinds[table]
        frame = pd.DataFrame([row.model_dump() for row in rows], columns=list(kind.model_fields))
        if "arm" in frame:
            frame["arm"] = frame["arm"].map("; ".join)
        return frame
