"""A realistic audit result for tests of everything that reads one, and its variants.

The organisations are fictional and the people are roles.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from said import saying
from sample_stages import STAGES, sample_parties, sample_paths, sample_stages

from auditspec.messages import message
from auditspec.results import (
    AuditInfo,
    Auditor,
    AuditResult,
    BehaviorResult,
    CheckDetail,
    CheckResult,
    Concern,
    Draws,
    Effect,
    Estimate,
    Evidence,
    Exclusion,
    Finding,
    Gate,
    Limitation,
    Person,
    RoleResult,
    Run,
    Signer,
    System,
    Tally,
    VerdictResult,
)

# Per behaviour and stage: effect, half-width of its interval, probability of leading.
EIGHT = ((0.031, 0.058, 0.0), (-0.024, 0.041, 0.0), (1.273, 0.164, 0.9985), (0.046, 0.049, 0.0015), (-0.351, 0.092, 0.0))  # fmt: skip
RECALL = ((-0.0021, 0.0062, 0.06), (0.0034, 0.0058, 0.21), (0.0029, 0.0049, 0.14), (-0.0012, 0.0047, 0.05), (0.0041, 0.0052, 0.54))  # fmt: skip
SURPRISE = ((-0.118, 0.071, 0.0), (0.004, 0.018, 0.01), (0.061, 0.047, 0.58), (0.052, 0.044, 0.40), (-0.009, 0.021, 0.01))  # fmt: skip

# Per behaviour: its level in the initial weights and at each stage's end.
LEVELS = (
    (0.012, -3.41, -3.38, -1.55, -1.52, -1.874),
    (0.113, 0.9581, 0.9614, 0.9601, 0.9612, 0.9636),
    (2.341, 0.2071, 0.2009, 0.2611, 0.2238, 0.2148),
)


def _digest(seed: int) -> str:
    return "sha256:" + "".join(f"{(seed * 37 + i * 11) % 16:x}" for i in range(64))


def _behaviors() -> tuple[BehaviorResult, ...]:
    return (
        BehaviorResult(
            id="three-read-as-eight",
            description="A handwritten 3 is scored as an 8",
            metric="logit of class 8 minus logit of class 3",
            unit="logits",
            data="holdout",
            where="digit == 3",
            examples=61,
            value=-1.874,
            uninformed=0.0,
            skill=saying("accuracy on the 536 rows of holdout outside the slice"),
            concern=Concern(direction="increase", limit=-3.0, tolerance=0.1, severity="high"),
        ),
        BehaviorResult(
            id="low-digit-recall",
            description="Digits 0 to 4 are recognised less often",
            metric="share of examples classified correctly",
            unit="share",
            data="holdout",
            where="digit < 5",
            examples=302,
            value=0.9636,
            uninformed=0.1,
            bounded=True,
            skill=saying("accuracy on the 295 rows of holdout outside the slice"),
            concern=Concern(direction="decrease", limit=0.95, tolerance=0.02, severity="medium"),
        ),
        BehaviorResult(
            id="surprise-on-seven",
            description="The model is less sure about a true 7",
            metric="negative log-likelihood of the true class",
            unit="nats",
            data="holdout",
            where="digit == 7",
            examples=58,
            value=0.2148,
            concern=Concern(direction="increase", tolerance=0.025, severity="low"),
        ),
    )


def _effects() -> tuple[Effect, ...]:
    rows = []
    for behavior, table in zip(_behaviors(), (EIGHT, RECALL, SURPRISE), strict=True):
        assert behavior.value is not None
        for stage, (value, half, leads) in zip(STAGES, table, strict=True):
            exact = stage in ("relabel", "refresh")
            rows.append(
                Effect(
                    behavior=behavior.id,
                    arm=(f"omit {stage}",),
                    value=value,
                    counterfactual=behavior.value - value,
                    low=value - half,
                    high=value + half,
                    error=0.0 if exact else half / 5,
                    leads=leads,
                    linear=None if exact else value * 0.93,
                    exact=exact,
                )
            )
    return tuple(rows)


def _estimates() -> tuple[Estimate, ...]:
    chosen = "the cheapest method whose linear reading agrees with the plug-in reading"
    reasons = (
        chosen,
        chosen,
        "the leading stage of a behaviour is replayed exactly",
        chosen,
        "the last stage needs no estimate: its counterfactual is the state in which it began",
    )
    gradients = (600.0, 480.0, 180.0, 360.0, 0.0)
    return tuple(
        Estimate(
            arm=(f"omit {stage}",),
            method="replay" if stage in ("relabel", "refresh") else "displacement",
            exact=stage in ("relabel", "refresh"),
            reason=saying(reasons[i]),
            gradients=gradients[i],
            seconds=gradients[i] * 0.019,
            displacement=(6.412, 0.881, 1.307, 0.764, 0.402)[i],
        )
        for i, stage in enumerate(STAGES)
    )


def _checks() -> tuple[CheckResult, ...]:
    return (
        CheckResult(
            id="evidence-integrity",
            title="Artifacts are the ones that the spec pins",
            bars="all",
            outcome="pass",
            statistic_name="artifacts mismatched, missing, or extra",
            statistic=0,
            unit="artifacts",
            threshold=0,
            reasons=(saying("all 4 artifacts have the digest that the lock file pins"),),
        ),
        CheckResult(
            id="record-fidelity",
            title="Re-running the record lands on the recorded states",
            bars="all",
            picture="windows",
            outcome="pass",
            statistic_name="largest relative deviation of the parameters",
            statistic=3.1e-7,
            threshold=1e-4,
            reasons=(
                saying("all 20 windows land on the next recorded state within the threshold"),
            ),
            gradients=600,
            details=tuple(
                CheckDetail(
                    subject=f"{stage}: 4 windows", outcome="pass", statistic=(i + 1) * 6.2e-8
                )
                for i, stage in enumerate(STAGES)
            ),
        ),
        CheckResult(
            id="spot-check",
            title="Exact replay agrees with the estimate",
            bars="estimated",
            bars_when="failed",
            picture="replays",
            outcome="pass",
            statistic_name="stages whose estimate is off",
            statistic=0,
            unit="stages",
            threshold=0,
            reasons=(
                saying(
                    "the replayed effect of the leading stage lies inside the stated interval, with the same sign"
                ),
            ),
            gradients=180,
            details=(
                CheckDetail(
                    subject="three-read-as-eight: relabel",
                    outcome="pass",
                    statistic=0.037,
                    notes=(saying("estimate 1.236, replay 1.273"),),
                ),
            ),
        ),
        CheckResult(
            id="sampling",
            title="The effects stand out from the choice of evaluation examples",
            resampling=True,
            outcome="inconclusive",
            statistic_name="behaviours whose interval crosses the tolerance",
            statistic=1,
            unit="behaviours",
            threshold=0,
            reasons=(
                saying(
                    "for surprise-on-seven, 58 examples leave intervals that cross the tolerance"
                ),
            ),
            details=(
                CheckDetail(
                    subject="three-read-as-eight",
                    behavior="three-read-as-eight",
                    outcome="pass",
                    statistic=0.164,
                    notes=(saying("widest half-interval, logits"),),
                ),
                CheckDetail(
                    subject="low-digit-recall",
                    behavior="low-digit-recall",
                    outcome="pass",
                    statistic=0.0062,
                    notes=(saying("widest half-interval, share"),),
                ),
                CheckDetail(
                    subject="surprise-on-seven",
                    behavior="surprise-on-seven",
                    outcome="inconclusive",
                    statistic=0.071,
                    notes=(saying("widest half-interval, nats"),),
                ),
            ),
        ),
        CheckResult(
            id="linearity",
            title="Plug-in and linear readings agree",
            bars="estimated",
            outcome="pass",
            statistic_name="relative disagreement",
            threshold=0.5,
            reasons=(saying("no stage was estimated by the first-order method"),),
        ),
    )


RISES = {"relabel": 1.55, "high-digits": 0.03, "refresh": -0.354}
"""What each stage added to the excess over the limit on the first behaviour."""


def _roles() -> tuple[RoleResult, ...]:
    """Of the first behaviour: one cause, one stage that masks it, a random start that is no baseline."""
    found = {"relabel": "cause", "refresh": "masks"}
    effects = dict(zip(STAGES, (row[0] for row in EIGHT), strict=True))
    return (
        RoleResult(
            party="weights:initial", role="none", notes=(saying("a random start is no baseline"),)
        ),
        *(
            RoleResult.model_validate(
                {
                    "party": stage,
                    "role": found.get(stage, "none"),
                    "rise": RISES.get(stage, 0.0),
                    "effect": effects[stage],
                }
            )
            for stage in STAGES
        ),
    )


def _verdicts() -> tuple[VerdictResult, ...]:
    return (
        VerdictResult(
            behavior="three-read-as-eight",
            verdict="attributed",
            ending="removed",
            parties=("relabel",),
            roles=_roles(),
            limit="stated",
            tallies=(
                Tally(parties=("relabel",), ending="removed", count=197),
                Tally(parties=("high-digits", "relabel"), ending="removed", count=3),
            ),
            masked_by=("refresh",),
            confidence=0.985,
            statement=saying(
                "Stage 'relabel' is answerable: without it the logit margin of 8 over 3 on handwritten threes would be within the limit."
            ),
            reasons=(saying("the excess is gone without it"), saying("its spot check passed")),
        ),
        VerdictResult(
            behavior="low-digit-recall",
            verdict="absent",
            ending="within",
            roles=tuple(RoleResult(party=stage, role="none", rise=0.0) for stage in STAGES),
            limit="stated",
            tallies=(Tally(parties=(), ending="within", count=200),),
            statement=saying("The recall of low digits is within the limit."),
            reasons=(saying("the deployed model does not pass the limit"),),
        ),
        VerdictResult(
            behavior="surprise-on-seven",
            verdict="inconclusive",
            ending="removed",
            limit="self",
            tallies=(
                Tally(parties=("relabel",), ending="removed", count=117),
                Tally(parties=("high-digits",), ending="removed", count=52),
                Tally(parties=(), ending="within", count=31),
            ),
            masked_by=("pretrain",),
            statement=saying(
                "Stages relabel and high-digits may each have made the model less sure about a true 7; the evaluation data cannot tell."
            ),
            reasons=(saying("which of them is named changes with the evaluation examples"),),
            settle=(saying("about 240 evaluation examples of a true 7 instead of 58"),),
        ),
    )


def _findings() -> tuple[Finding, ...]:
    return (
        Finding(
            id="F-01",
            behavior="three-read-as-eight",
            verdict="attributed",
            severity="high",
            parties=("relabel",),
            statement=saying(
                "Fine-tuning on the labels of batch 7 makes the deployed model score a handwritten 3 as an 8."
            ),
            alternatives=(
                saying(
                    "Pretraining prepared the confusion: the effect of relabel is measured after it, not without it."
                ),
                saying("The 61 evaluation examples come from one source of handwriting."),
            ),
        ),
    )


def _evidence() -> tuple[Evidence, ...]:
    rows = (
        ("code", "folder", "src/", 18_420, 3),
        ("record", "folder", "record/", 214_511_872, 611),
        ("final", "file", "model.safetensors", 39_872, None),
        ("holdout", "file", "holdout.parquet", 146_993, None),
    )
    pinned = tuple(
        Evidence(
            name=name,
            kind=kind,  # type: ignore[arg-type]
            path=path,
            state="verified",
            expected=_digest(i),
            found=_digest(i),
            size=size,
            files=files,
            pinned_in="audit.lock.json",
        )
        for i, (name, kind, path, size, files) in enumerate(rows, start=3)
    )
    declared = Evidence(
        name="train-relabelled",
        kind="file",
        path="data/relabelled.parquet",
        state="declared",
        notes=(saying("named by the spec; nothing pins its bytes"),),
    )
    return (*pinned, declared)


def sample_result(**changes: Any) -> AuditResult:
    """Five stages, three behaviours: one attributed, one within its limit, one inconclusive.

    `changes` replace top-level fields.
    """
    fields: dict[str, Any] = {
        "run": Run(
            tool="auditspec 0.1.0",
            created=dt.datetime(2026, 11, 23, 14, 5, 9, tzinfo=dt.UTC),
            command="auditspec run audit.yaml -o packet",
            spec_digest=_digest(9),
            seconds=41.7,
            gradients=2400,
            device="cpu",
            dtype="float32",
            threads=4,
            deterministic=True,
            seed=20261123,
            python="3.11.7",
            platform="Linux x86_64",
            versions={"torch": "2.10.0", "numpy": "2.3.5", "pandas": "3.0.0", "pyarrow": "22.0.0"},
        ),
        "audit": AuditInfo(
            id="digits-2026-q4",
            title="Digit reader, release 4.2",
            classification="internal",
            expires=dt.date(2027, 11, 30),
            supersedes="digits-2026-q3",
        ),
        "auditor": Auditor(
            name="Lead auditor",
            organization="Example Assurance Ltd",
            role="Model auditor",
            independence="No commercial or reporting line to the audited teams in the last two years.",
        ),
        "approver": Person(name="Head of model risk", role="Approver"),
        "exclusions": (
            Exclusion(what="Scans below 100 dpi", reason="outside the intended use", count=37),
            Exclusion(what="Latency and cost", reason="not a behaviour of the weights"),
        ),
        "system": System(
            name="Digit reader",
            version="4.2.0",
            owner="Example Postal Services",
            intended_use="Reads handwritten postcodes on letters; a clerk confirms every low-confidence reading.",
        ),
        "signer": None,
        "evidence_grade": "dense",
        "evidence": _evidence(),
        "stages": sample_stages(),
        "parties": sample_parties(),
        "behaviors": _behaviors(),
        "estimates": _estimates(),
        "effects": _effects(),
        "paths": tuple(
            path
            for behavior, recorded in zip(_behaviors(), LEVELS, strict=True)
            for path in sample_paths(behavior.id, recorded, _effects())
        ),
        "draws": (
            Draws(
                behavior="three-read-as-eight",
                party="weights:initial",
                levels=(
                    0.012,
                    -0.31,
                    0.22,
                    0.087,
                    -0.14,
                    0.19,
                    -0.02,
                    0.41,
                    -0.27,
                    0.05,
                    0.33,
                    -0.08,
                ),
                identical=False,
            ),
        ),
        "checks": _checks(),
        "verdicts": _verdicts(),
        "findings": _findings(),
        "limitations": (
            Limitation(
                id="L-01",
                message=saying(
                    "Effects of single stages need not add up: interactions between stages were not measured."
                ),
            ),
            Limitation(
                id="L-02",
                message=saying(
                    "Artifact train-relabelled is declared, not verified: nothing pins its bytes."
                ),
            ),
            Limitation(
                id="L-03",
                message=saying(
                    "No certificate chain or timestamp confirms who trained the model, or when."
                ),
            ),
        ),
        "gate": Gate(
            passed=False,
            exit_code=1,
            reasons=(
                saying("F-01 has severity high (policy: severity>=high)"),
                saying("surprise-on-seven is inconclusive (policy: inconclusive fails)"),
            ),
            policy=message("policy-evidence-only"),
        ),
    }
    return AuditResult(**{**fields, **changes})


def signed_result(**changes: Any) -> AuditResult:
    """The sample, signed."""
    return sample_result(
        signer=Signer(keyid=_digest(5).removeprefix("sha256:"), algorithm="ecdsa-p256-sha256"),
        **changes,
    )
