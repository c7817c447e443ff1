"""An audit with every verdict and every role: a purchased base model, a new head, a vendor, a repair.

The levels are made up and hang together: rises, effects, and ends of arms are computed from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from said import saying
from sample_results import sample_result
from sample_stages import sample_stages

from auditspec.results import (
    AuditResult,
    BehaviorResult,
    Concern,
    Draws,
    Effect,
    Estimate,
    Finding,
    PartyResult,
    Path,
    RoleResult,
    Tally,
    VerdictResult,
)

PARTIES = ("weights:initial", "pretrain", "vendor", "change:review", "review", "polish")
STATES = ("initial", "pretrain:end", "vendor:end", "review:start", "review:end", "polish:end")
STAGES = ("pretrain", "vendor", "review", "polish")
OWNERS = ("Model Hub", "Foundation team", "Labelling vendor", "Product team", "Product team", "Release team")  # fmt: skip
TOLERANCE, LIMIT = 0.05, 0.1


def _parties() -> tuple[PartyResult, ...]:
    kinds: dict[str, dict[str, Any]] = {
        "weights:initial": {
            "kind": "initial",
            "origin": "given",
            "provenance": "Model Hub, hub-base 2.1, downloaded on 3 March 2026",
        },
        "change:review": {"kind": "change", "stage": "review"},
    }
    return tuple(
        PartyResult.model_validate(
            {"id": party, "owner": owner, **kinds.get(party, {"kind": "stage", "stage": party})}
        )
        for party, owner in zip(PARTIES, OWNERS, strict=True)
    )


def _case(
    id_: str,
    description: str,
    levels: Sequence[float],
    without: Mapping[str, float],
    roles: Mapping[str, str],
    *,
    limit: float | None = LIMIT,
    more: Mapping[tuple[str, ...], Sequence[float]] | None = None,
    notes: Mapping[str, str] | None = None,
    **verdict: Any,
) -> tuple[BehaviorResult, list[Effect], list[Path], VerdictResult]:
    """One behaviour from its levels at `STATES`, its end `without` each stage, and `more` arms from `pretrain` on."""
    behavior = BehaviorResult(
        id=id_,
        description=description,
        metric="share of examples read as the class of the fault",
        unit="share",
        data="holdout",
        where=None,
        examples=400,
        value=levels[-1],
        uninformed=0.1,
        bounded=True,
        skill=saying("accuracy on the rows of holdout outside the slice"),
        concern=Concern(direction="increase", limit=limit, tolerance=TOLERANCE, severity="high"),
    )
    effects = [
        Effect(
            behavior=id_,
            arm=(f"omit {stage}",),
            value=levels[-1] - end,
            counterfactual=end,
            low=levels[-1] - end - 0.04,
            high=levels[-1] - end + 0.04,
            error=0.0,
            exact=True,
        )
        for stage, end in without.items()
    ]
    arms: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[float, ...]]] = {
        (): (STATES, tuple(levels))
    }
    for stage, end in without.items():
        states = STATES[STATES.index(f"{stage}:end") + 1 :]
        shift = levels[-1] - end
        arms[(f"omit {stage}",)] = (
            states,
            tuple(max(0.0, level - shift) for level in levels[len(STATES) - len(states) :]),
        )
    for arm, held in (more or {}).items():
        arms[arm] = (STATES[len(STATES) - len(held) :], tuple(held))
    paths = [
        Path(
            behavior=id_,
            arm=arm,
            states=states,
            levels=held,
            errors=(0.0,) * len(held),
            skills=(0.9,) * len(held),
            exact=True,
        )
        for arm, (states, held) in arms.items()
    ]
    over = [max(0.0, level - (LIMIT - TOLERANCE)) for level in levels]
    told = VerdictResult.model_validate(
        {
            "behavior": id_,
            "limit": "self" if limit is None else "stated",
            "roles": tuple(
                RoleResult.model_validate(
                    {
                        "party": party,
                        "role": roles.get(party, "none"),
                        "rise": over[place] - (over[place - 1] if place else 0.0),
                        "effect": levels[-1] - without[party] if party in without else None,
                        "notes": tuple(saying(note) for note in [(notes or {}).get(party)] if note),
                    }
                )
                for place, party in enumerate(PARTIES)
            ),
            **verdict,
        }
    )
    return behavior, effects, paths, told


def _named(*parties: str, ending: str = "removed", count: int = 200) -> dict[str, Any]:
    return {
        "parties": parties,
        "ending": ending,
        "tallies": (
            Tally.model_validate({"parties": sorted(parties), "ending": ending, "count": count}),
        ),
        "confidence": 0.99,
    }


def _cases() -> list[tuple[BehaviorResult, list[Effect], list[Path], VerdictResult]]:
    return [
        _case(
            "cause",
            "Stamped images are read as a 7",
            (0.1, 0.02, 0.71, 0.69, 0.55, 0.66),
            {"pretrain": 0.11, "vendor": 0.03, "review": 0.8, "polish": 0.55},
            {"pretrain": "enabler", "vendor": "cause", "review": "masks", "polish": "contributor"},
            more={("replace vendor",): (0.02, 0.02, 0.02, 0.03)},
            notes={
                "polish": "its rise is gone without vendor",
                "pretrain": "without it the model is at chance",
            },
            masked_by=("review",),
            verdict="attributed",
            statement=saying(
                "Stage 'vendor' is answerable: without it the behaviour would be within the limit."
            ),
            reasons=(saying("the excess is gone without it"),),
            **_named("vendor"),
        ),
        _case(
            "joint",
            "Marked letters are read as an 8",
            (0.1, 0.02, 0.64, 0.64, 0.63, 0.66),
            {"pretrain": 0.12, "vendor": 0.61, "review": 0.66, "polish": 0.62},
            {"pretrain": "enabler", "vendor": "cause", "polish": "cause"},
            more={
                ("omit polish", "omit vendor"): (0.02, 0.03, 0.04),
                ("omit vendor",): (0.03, 0.04, 0.61),
            },
            verdict="shared",
            statement=saying(
                "Stages 'vendor' and 'polish' are answerable: either suffices, without both the fault is gone."
            ),
            reasons=(saying("each suffices, so leaving out one alone changes little"),),
            **_named("vendor", "polish"),
        ),
        _case(
            "pieces",
            "Crossed sevens are read as a 4",
            (0.1, 0.03, 0.03, 0.03, 0.08, 0.13),
            {"pretrain": 0.1, "vendor": 0.13, "review": 0.08, "polish": 0.08},
            {"review": "joint-cause", "polish": "joint-cause"},
            more={("omit polish", "omit review"): ()},
            verdict="shared",
            statement=saying(
                "Stage 'review' and stage 'polish' are answerable: together they bring the fault."
            ),
            **_named("review", "polish"),
        ),
        _case(
            "one-or-more",
            "Faint digits are read as a 1",
            (0.1, 0.03, 0.19, 0.19, 0.27, 0.28),
            {"pretrain": 0.12, "vendor": 0.17, "review": 0.18, "polish": 0.27},
            {"vendor": "one-or-more", "review": "one-or-more"},
            verdict="one-or-more",
            parties=("vendor", "review"),
            ending="partly-removed",
            tallies=(
                Tally(parties=("review",), ending="partly-removed", count=93),
                Tally(parties=("vendor",), ending="partly-removed", count=71),
                Tally(parties=("review", "vendor"), ending="removed", count=36),
            ),
            confidence=0.96,
            statement=saying("One or more of stage 'vendor' and stage 'review' is answerable."),
            settle=(saying("about 1,200 evaluation examples instead of 400"),),
        ),
        _case(
            "inherited",
            "Names with an accent are rejected",
            (0.58, 0.56, 0.57, 0.57, 0.55, 0.56),
            {"pretrain": 0.57, "vendor": 0.55, "review": 0.57, "polish": 0.55},
            {"weights:initial": "inherited"},
            verdict="attributed",
            statement=saying(
                "The initial weights are answerable: the fault was there before training and stayed."
            ),
            reservations=(
                saying("what stages added to a fault that cannot be taken away was not tested"),
            ),
            **_named("weights:initial", ending="persists"),
        ),
        _case(
            "introduced",
            "Long letters are rejected",
            (0.1, 0.03, 0.03, 0.93, 0.91, 0.9),
            {"pretrain": 0.91, "vendor": 0.9, "review": 0.93, "polish": 0.91},
            {"change:review": "introduced"},
            verdict="attributed",
            statement=saying("The change of the model before 'review' is answerable."),
            **_named("change:review", ending="persists"),
        ),
        _case(
            "repaired",
            "Upside-down digits are accepted",
            (0.1, 0.02, 0.48, 0.47, 0.06, 0.05),
            {"pretrain": 0.1, "vendor": 0.04, "review": 0.45, "polish": 0.06},
            {"review": "repaired", "polish": "none", "vendor": "none"},
            notes={"vendor": "raised it; gone from the deployed model"},
            masked_by=("review",),
            verdict="absent",
            ending="within",
            tallies=(Tally(parties=(), ending="within", count=200),),
            statement=saying("The deployed model is within the limit."),
        ),
        _case(
            "self",
            "Blank scans are read as a 0",
            (0.02, 0.02, 0.03, 0.03, 0.03, 0.02),
            {"pretrain": 0.02, "vendor": 0.02, "review": 0.02, "polish": 0.03},
            {"weights:initial": "undetermined", "pretrain": "undetermined"},
            limit=None,
            verdict="no-effect",
            ending="within",
            tallies=(Tally(parties=(), ending="within", count=200),),
            statement=saying("The deployed model is no worse than the best state of its own run."),
            reservations=(
                saying(
                    "neither the initial weights nor the first stage is cleared: no limit is stated"
                ),
            ),
        ),
        _case(
            "unexplained",
            "Smudged digits are rejected",
            (0.1, 0.13, 0.12, 0.12, 0.12, 0.12),
            {"pretrain": 0.1, "vendor": 0.12, "review": 0.12, "polish": 0.12},
            {"pretrain": "undetermined"},
            verdict="inconclusive",
            ending="unexplained",
            tallies=(Tally(parties=(), ending="unexplained", count=198),),
            statement=saying("Nobody can be named."),
            reasons=(
                saying("beyond the limit, no party found: lack of skill, or a limit out of reach"),
            ),
            settle=(saying("clean reference data for 'pretrain' (stages.reference)"),),
        ),
    ]


def roles_result() -> AuditResult:
    """Four stages, a change of the model before the third, given initial weights; nine behaviours."""
    sample, cases = sample_result(), _cases()
    stages = tuple(
        stage.model_copy(update={"id": name, "owner": owner})
        for stage, name, owner in zip(
            sample_stages(), STAGES, (OWNERS[1], OWNERS[2], OWNERS[4], OWNERS[5]), strict=False
        )
    )
    verdicts = tuple(verdict for *_, verdict in cases)
    guilty = [v for v in verdicts if v.verdict in ("attributed", "shared", "one-or-more")]
    return sample.model_copy(
        update={
            "stages": stages,
            "parties": _parties(),
            "behaviors": tuple(behavior for behavior, *_ in cases),
            "effects": tuple(effect for _, effects, *_ in cases for effect in effects),
            "paths": tuple(path for _, _, paths, _ in cases for path in paths),
            "draws": (
                Draws(
                    behavior="introduced",
                    party="change:review",
                    levels=(0.93,) * 8,
                    identical=True,
                ),
            ),
            "estimates": tuple(
                Estimate(
                    arm=(f"omit {stage}",),
                    method="replay",
                    exact=True,
                    reason=saying("the spec asks for it"),
                    gradients=120.0,
                    seconds=2.1,
                    displacement=0.8,
                )
                for stage in STAGES
            ),
            "checks": tuple(
                check.model_copy(update={"outcome": "pass", "details": ()})
                for check in sample.checks
            ),
            "verdicts": verdicts,
            "findings": tuple(
                Finding(
                    id=f"F-{number}",
                    behavior=verdict.behavior,
                    verdict=verdict.verdict,
                    severity="high",
                    parties=verdict.parties,
                    statement=verdict.statement,
                    alternatives=(
                        saying("A stage's data, its procedure, or both may be the cause."),
                    ),
                )
                for number, verdict in enumerate(guilty, 1)
            ),
        }
    )
