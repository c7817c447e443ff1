"""What a packet concludes must follow from what it publishes, or verifying it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import minimal_spec
from said import saying
from sample_packet import RESOLVED, SPEC, packet_result, trusting

from auditspec.conclusions import concluded_again
from auditspec.errors import SignatureError
from auditspec.results import AuditResult, CheckResult
from auditspec.sign import keys, redaction
from auditspec.sign.disclosure import Disclosure
from auditspec.sign.packet import PacketWriter, read_results
from auditspec.sign.signer import KeySigner
from auditspec.spec.models import Spec
from auditspec.verdicts import EVIDENCE_GATES
from auditspec.verification.examination import same_conclusions
from auditspec.verification.steps import Step
from auditspec.verification.verifier import verify_all

SIGNER = KeySigner(keys.generate("ed25519"))


def signed(folder: Path, result: AuditResult, resolved: bytes | None = None) -> Path:
    """A packet without reports, sealed by the auditor, who may be a liar."""
    given = RESOLVED.model_dump_json(by_alias=True).encode() if resolved is None else resolved
    files = {
        "spec.yaml": SPEC,
        "spec.resolved.json": given,
        "evidence.json": b"[]\n",
        "results.json": result.model_dump_json().encode(),
    }
    with PacketWriter(folder / "packet", replace=True) as packet:
        for name, data in files.items():
            packet.write(name, data)
        packet.seal(SIGNER, result)
    return folder / "packet"


def step(folder: Path, result: AuditResult, resolved: bytes | None = None) -> Step:
    """The step `conclusions`, which is reached; every other step before the trust holds."""
    found = verify_all(signed(folder, result, resolved), trusting(SIGNER))
    assert found.error is None or found.error.step in ("conclusions", "rebuild"), found.error
    return next(s for s in found.steps if s.name == "conclusions")


def refused(folder: Path, result: AuditResult, said: str, resolved: bytes | None = None) -> None:
    found = verify_all(signed(folder, result, resolved), trusting(SIGNER))
    assert isinstance(found.error, SignatureError)
    assert (found.error.step, found.error.exit_code) == ("conclusions", 6)
    assert said in found.error.message


def test_conclusions_that_follow_are_drawn_again(tmp_path: Path) -> None:
    found = step(tmp_path, packet_result())
    assert (found.outcome, found.detail) == ("pass", "3 drawn again")


# --- conclusions that do not follow ---------------------------------------------------------------


def with_verdict(result: AuditResult, **changes: Any) -> AuditResult:
    first, *rest = result.verdicts
    return result.model_copy(update={"verdicts": (first.model_copy(update=changes), *rest)})


def test_a_packet_that_acquits_whom_its_levels_name_is_refused(tmp_path: Path) -> None:
    """Verdict, finding, and gate agree with each other, and with nothing else."""
    honest = packet_result()
    assert honest.verdicts[0].verdict == "attributed"
    for kind, ending in (
        ("no-effect", "within"),
        ("absent", "within"),
        ("inconclusive", "removed"),
    ):
        lie = with_verdict(honest, verdict=kind, ending=ending, parties=(), confidence=None)
        passed = honest.gate.model_copy(update={"passed": True, "exit_code": 0, "reasons": ()})
        lie = lie.model_copy(update={"findings": (), "gate": passed})
        refused(tmp_path, lie, "lead to attributed ['relabel']")


@pytest.mark.parametrize(
    "changes",
    [
        {"parties": ("pretrain",)},
        {"parties": ("relabel", "pretrain")},
        {"confidence": 1.0},
        {"statement": saying("Nobody did it.")},
        {"reasons": (saying("a reason of its own"),)},
        {"masked_by": ("pretrain",)},
        {"limit": "self"},
        {"roles": ()},
        {"reservations": (saying("none"),)},
        {"tallies": ()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_word_of_a_verdict_is_compared(tmp_path: Path, changes: dict[str, Any]) -> None:
    refused(tmp_path, with_verdict(packet_result(), **changes), "the verdict on")


def test_a_role_is_compared_too(tmp_path: Path) -> None:
    honest = packet_result()
    roles = list(honest.verdicts[0].roles)
    roles[0] = roles[0].model_copy(update={"role": "inherited"})
    refused(tmp_path, with_verdict(honest, roles=tuple(roles)), "the verdict on")


def test_a_verdict_that_was_left_out_is_missed(tmp_path: Path) -> None:
    honest = packet_result()
    refused(tmp_path, honest.model_copy(update={"verdicts": honest.verdicts[:2]}), "the verdicts")
    twice = (*honest.verdicts, honest.verdicts[-1])
    refused(tmp_path, honest.model_copy(update={"verdicts": twice}), "the verdicts")


def test_findings_that_do_not_follow_are_refused(tmp_path: Path) -> None:
    honest = packet_result()
    (finding,) = honest.findings
    for findings in (
        (),
        (finding, finding),
        (finding.model_copy(update={"severity": "low"}),),
        (finding.model_copy(update={"parties": ("pretrain",)}),),
        (finding.model_copy(update={"alternatives": ()}),),
    ):
        refused(tmp_path, honest.model_copy(update={"findings": findings}), "the findings are not")


def test_a_gate_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    honest = packet_result()
    assert honest.gate.exit_code == 1
    for changes in (
        {"passed": True, "exit_code": 0, "reasons": ()},
        {"exit_code": 5},
        {"reasons": honest.gate.reasons[1:]},
        {"policy": saying("fails on nothing")},
    ):
        gate = honest.gate.model_copy(update=changes)
        refused(tmp_path, honest.model_copy(update={"gate": gate}), "the gate are not")


# --- what they follow from ------------------------------------------------------------------------


def levels(result: AuditResult, change: Callable[[tuple[float, ...]], tuple[float, ...]]) -> Any:
    first, *rest = result.paths
    return (first.model_copy(update={"levels": change(first.levels)}), *rest)


def failed(result: AuditResult) -> tuple[CheckResult, ...]:
    return tuple(
        c.model_copy(update={"outcome": "fail"}) if c.id in EVIDENCE_GATES else c
        for c in result.checks
    )


def test_levels_draws_and_checks_are_what_they_follow_from(tmp_path: Path) -> None:
    """Changing any of them without the conclusions is refused; with the conclusions it is another audit."""
    honest = packet_result()
    for changes in (
        {"paths": levels(honest, lambda held: (*held[:-1], -9.0))},
        {"paths": honest.paths[1:]},
        {"checks": failed(honest)},
        {"evidence_grade": "boundaries"},
        {"parties": tuple(p for p in honest.parties if p.id != "relabel")},
        {"behaviors": (honest.behaviors[1], honest.behaviors[0], honest.behaviors[2])},
    ):
        other = honest.model_copy(update=changes)
        assert step(tmp_path, other).outcome == "fail", changes.keys()


def test_the_policy_and_the_resamples_are_those_of_the_resolved_spec(tmp_path: Path) -> None:
    honest = packet_result()
    lax = minimal_spec() | {"policy": {"fail_on": [], "inconclusive": "pass"}}
    few = minimal_spec() | {"checks": {"sampling": {"verdicts": 300}}}
    for data in (lax, few):
        resolved = Spec.model_validate(data)
        text = resolved.model_dump_json(by_alias=True).encode()
        assert step(tmp_path, honest, text).outcome == "fail"
        again = concluded_again(honest, resolved)
        drawn = {n: getattr(again, n) for n in ("verdicts", "findings", "gate")}
        assert step(tmp_path, honest.model_copy(update=drawn), text).outcome == "pass"


@pytest.mark.parametrize("text", [b"{}", b"[]", b"", b"\xff", b'{"auditspec": "2"}'])
def test_a_resolved_spec_that_cannot_be_read_is_told(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path, packet_result(), "cannot be drawn again", text)


def pruned(document: Any, place: tuple[str | int, ...]) -> AuditResult:
    """The result without what stands at a place."""
    held = json.loads(json.dumps(document))
    holder = held
    for key in place[:-1]:
        holder = holder[key]
    del holder[place[-1]]
    return AuditResult.model_validate(held)


def test_results_that_are_not_whole_are_refused_and_crash_nothing() -> None:
    """Without any one party, path, level with its state, or check: other conclusions, or none."""
    honest = packet_result()
    document = honest.model_dump(mode="json")
    places: list[tuple[str | int, ...]] = [
        (part, n)
        for part in ("parties", "paths", "checks", "draws")
        for n in range(len(document[part]))
    ]
    odd = [pruned(document, place) for place in places]
    first = honest.paths[0]
    odd += [
        honest.model_copy(update={"paths": (first.model_copy(update=changes), *honest.paths[1:])})
        for changes in (
            {"levels": first.levels[:-1]},
            {"states": (), "levels": (), "errors": (), "skills": ()},
            {"states": first.states[:1], "levels": first.levels[:1], "skills": first.skills[:1]},
            {"states": first.states[::-1]},
            {"states": ("elsewhere", *first.states[1:])},
            {"arm": ("burn relabel",)},
            {"arm": ("omit nothing-known",)},
            {"skills": ()},
        )
    ]
    odd += [
        honest.model_copy(update={part: ()}) for part in ("parties", "paths", "draws", "checks")
    ]
    odd.append(honest.model_copy(update={"parties": honest.parties[:1]}))
    odd.append(honest.model_copy(update={"parties": honest.parties[::-1]}))
    for result in odd:
        try:
            concluded_again(result, RESOLVED)
        except ValueError:
            continue


# --- withheld -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "drawn"),
    [
        ("/paths", False),
        ("/draws", False),
        ("/checks/0/reasons", True),
        ("/verdicts/0/confidence", True),
        ("/effects/0/value", True),
        ("/evidence/0/path", False),
    ],
)
def test_what_is_withheld_is_not_drawn_again_and_the_step_says_so(
    tmp_path: Path, pointer: str, drawn: bool
) -> None:
    files = {"results.json": packet_result().model_dump_json().encode()}
    files |= {"spec.yaml": SPEC, "spec.resolved.json": b"", "evidence.json": b""}
    redacted = redaction.withhold(files, Disclosure.fresh(files), [pointer], "a trade secret")
    shown = {name: data for name, data in redacted.files.items() if name != "spec.resolved.json"}
    if "spec.resolved.json" in redacted.files:
        shown["spec.resolved.json"] = RESOLVED.model_dump_json(by_alias=True).encode()
    said, skipped = same_conclusions(shown, read_results(redacted.document, "results.json"))
    assert bool(said) is drawn
    assert drawn or skipped.startswith("not re-derived")


def test_verdicts_that_do_not_rest_on_what_is_withheld_are_drawn_again() -> None:
    files = {"results.json": packet_result().model_dump_json().encode(), "evidence.json": b""}
    redacted = redaction.withhold(files, Disclosure.fresh(files), ["/paths/0/levels/0"], "secret")
    resolved = {"spec.resolved.json": RESOLVED.model_dump_json(by_alias=True).encode()}
    shown = read_results(redacted.document, "results.json")
    said, _ = same_conclusions(resolved, shown)
    first = packet_result().behaviors[0].id
    assert said.startswith("2 drawn again; not re-derived: findings, gate, and the verdicts on ")
    assert f"{first} (/paths/0/levels" in said
    lie = shown.verdicts[1].model_copy(update={"verdict": "inconclusive"})
    verdicts = (shown.verdicts[0], lie, shown.verdicts[2])
    with pytest.raises(SignatureError, match="the verdict on 'low-digit-recall' is inconclusive"):
        same_conclusions(resolved, shown.model_copy(update={"verdicts": verdicts}))


def effect_of(result: AuditResult, **changes: float) -> AuditResult:
    """The largest effect, of the stage that is named, with some numbers changed by so much."""
    effects = list(result.effects)
    (at,) = (
        n
        for n, effect in enumerate(effects)
        if (effect.behavior, effect.arm) == (result.behaviors[0].id, ("omit relabel",))
    )
    moved = {name: getattr(effects[at], name) + change for name, change in changes.items()}
    effects[at] = effects[at].model_copy(update=moved)
    return result.model_copy(update={"effects": tuple(effects)})


@pytest.mark.parametrize(
    "changes",
    [
        {"value": -1.0},
        {"counterfactual": 1.0},
        {"value": -1.0, "counterfactual": 1.0},  # their sum is the deployed model's value still
        {"value": 0.5, "counterfactual": -0.5},
    ],
)
def test_effects_follow_from_levels(tmp_path: Path, changes: dict[str, float]) -> None:
    """The verdict goes by levels; whoever reads the table of effects is to read the same."""
    refused(tmp_path, effect_of(packet_result(), **changes), "the effect of 'omit relabel' on")
    step(tmp_path, effect_of(packet_result(), value=0.0))


def test_the_deployed_models_value_is_the_end_of_its_run(tmp_path: Path) -> None:
    """The gate and the words of a verdict go by the value, the verdict itself by the levels."""
    result = packet_result()
    first, *others = result.behaviors
    assert first.value is not None
    far = first.model_copy(update={"value": first.value - 3 * first.concern.tolerance - 1})
    refused(tmp_path, result.model_copy(update={"behaviors": (far, *others)}), "run ends at")
