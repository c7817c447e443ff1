"""Variants of the sample result: shared, failed evidence, hostile strings."""

from __future__ import annotations

import datetime as dt

from said import saying
from sample_results import sample_result

from auditspec.messages import message
from auditspec.results import (
    AuditResult,
    CheckDetail,
    Gate,
    Limitation,
    Suppression,
    System,
    Tally,
    VerdictResult,
)


def shared_result() -> AuditResult:
    """Two stages moved the first behaviour towards the concern; its finding is suppressed."""
    sample = sample_result()
    effects = tuple(
        effect.model_copy(update={"value": 0.62, "low": 0.44, "high": 0.80, "leads": 0.31})
        if (effect.behavior, effect.stage) == ("three-read-as-eight", "high-digits")
        else effect
        for effect in sample.effects
    )
    verdict = sample.verdicts[0].model_copy(
        update={
            "verdict": "shared",
            "parties": ("relabel", "high-digits"),
            "roles": tuple(
                role.model_copy(update={"role": "joint-cause"})
                if role.party in ("relabel", "high-digits")
                else role
                for role in sample.verdicts[0].roles
            ),
            "tallies": (Tally(parties=("high-digits", "relabel"), ending="removed", count=200),),
            "confidence": 0.99,
            "statement": saying(
                "Stages relabel and high-digits both raised the margin by more than the tolerance."
            ),
        }
    )
    suppressed = Suppression(
        behavior="three-read-as-eight",
        reason="A clerk confirms every 3 and 8 until release 4.3.",
        owner="Head of model risk",
        expires=dt.date(2027, 3, 31),
    )
    finding = sample.findings[0].model_copy(
        update={
            "verdict": "shared",
            "parties": ("relabel", "high-digits"),
            "suppressed": suppressed,
        }
    )
    return sample.model_copy(
        update={
            "effects": effects,
            "verdicts": (verdict, *sample.verdicts[1:]),
            "findings": (finding,),
        }
    )


def failed_result() -> AuditResult:
    """The evidence does not match: nothing was estimated and every verdict is inconclusive."""
    sample = sample_result()
    evidence = (
        sample.evidence[0],
        sample.evidence[1].model_copy(
            update={"state": "mismatched", "found": "sha256:" + "c0de" * 16}
        ),
        sample.evidence[2].model_copy(update={"state": "missing", "found": None, "size": None}),
        *sample.evidence[3:],
    )
    checks = (
        sample.checks[0].model_copy(
            update={
                "outcome": "fail",
                "statistic": 2,
                "reasons": (saying("record does not have the pinned digest; final is missing"),),
                "details": (
                    CheckDetail(
                        subject="record",
                        outcome="fail",
                        notes=(saying("digest differs from the pinned one"),),
                    ),
                    CheckDetail(subject="final", outcome="fail", notes=(saying("no such file"),)),
                ),
            }
        ),
        *(
            check.model_copy(
                update={
                    "outcome": "not-run",
                    "statistic": None,
                    "gradients": 0.0,
                    "details": (),
                    "reasons": (saying("the evidence failed its integrity check"),),
                }
            )
            for check in sample.checks[1:]
        ),
    )
    verdicts = tuple(
        VerdictResult(
            behavior=behavior.id,
            verdict="inconclusive",
            ending="evidence",
            statement=saying(
                "Nothing was estimated, because the evidence is not what the spec pins."
            ),
            reasons=(saying("check evidence-integrity failed"),),
            settle=(saying("the record and the checkpoint whose digests the spec pins"),),
        )
        for behavior in sample.behaviors
    )
    return sample.model_copy(
        update={
            "approver": None,
            "exclusions": (),
            "evidence_grade": "none",
            "evidence": evidence,
            "stages": tuple(
                stage.model_copy(
                    update={
                        "boundary": None,
                        "steps": None,
                        "examples": None,
                        "seconds": None,
                        "curve": None,
                    }
                )
                for stage in sample.stages
            ),
            "behaviors": tuple(
                b.model_copy(update={"examples": None, "value": None}) for b in sample.behaviors
            ),
            "estimates": (),
            "effects": (),
            "paths": (),
            "draws": (),
            "parties": sample.parties[1:],
            "checks": checks,
            "verdicts": verdicts,
            "findings": (),
            "gate": Gate(
                passed=False,
                exit_code=3,
                reasons=(saying("evidence mismatched: record"), saying("evidence missing: final")),
                policy=message("policy-evidence-only"),
            ),
        }
    )


HOSTILE = (
    "<script>alert(1)</script>",
    "{{7*7}}{% raw %}",
    "</svg></style></title><img src=http://evil.invalid/x>",
    "<a href='file:///etc/passwd' rel=attachment>file:///etc/passwd</a>",
    "\u202egnp.exe\u2066\x00\x1b[31m",
)
"""Strings that must come out as inert text."""


def hostile_result() -> AuditResult:
    """The sample with hostile strings in every free-text place that the report prints."""
    sample = sample_result()
    evil = " ".join(HOSTILE)
    stages = tuple(
        stage.model_copy(
            update={
                "owner": evil,
                "description": evil,
                "optimizer": evil,
                "id": f"{stage.id}{evil}",
            }
        )
        for stage in sample.stages
    )
    behaviors = tuple(
        behavior.model_copy(
            update={"description": evil, "metric": evil, "unit": HOSTILE[2], "where": evil}
        )
        for behavior in sample.behaviors
    )
    return sample.model_copy(
        update={
            "audit": sample.audit.model_copy(
                update={"title": evil, "classification": evil, "supersedes": evil}
            ),
            "system": System(name=evil, version=evil, owner=evil, intended_use=evil),
            "run": sample.run.model_copy(
                update={"command": evil, "versions": {evil: evil}, "device": evil}
            ),
            "stages": stages,
            "behaviors": behaviors,
            "effects": tuple(
                e.model_copy(update={"arm": (f"omit {e.stage}{evil}",)}) for e in sample.effects
            ),
            "parties": tuple(
                p.model_copy(
                    update={
                        "owner": evil,
                        "provenance": evil,
                        "id": p.id if p.kind == "initial" else f"{p.id}{evil}",
                    }
                )
                for p in sample.parties
            ),
            "paths": tuple(
                p.model_copy(
                    update={
                        "arm": tuple(f"{part}{evil}" for part in p.arm),
                        "states": tuple(state.replace(":", f"{evil}:") for state in p.states),
                    }
                )
                for p in sample.paths
            ),
            "verdicts": tuple(
                v.model_copy(
                    update={
                        "parties": tuple(f"{party}{evil}" for party in v.parties),
                        "reservations": (saying(evil),),
                        "roles": tuple(
                            r.model_copy(update={"notes": (saying(evil),)}) for r in v.roles
                        ),
                    }
                )
                for v in sample.verdicts
            ),
            "limitations": (Limitation(id=evil, message=saying(evil)),),
            "checks": tuple(
                c.model_copy(update={"title": evil, "reasons": (saying(evil),)})
                for c in sample.checks
            ),
        }
    )
