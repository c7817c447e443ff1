"""Pipelines on which a plain leave-one-out answers wrongly, audited whole, held against exact retraining.

They are drawn by the calibration study's generator; what is planted, and what a clean twin of it would have
given, come from a training loop that does not import auditspec (`benchmarks.calibration.truth`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from auditspec.results import AuditResult
from benchmarks.calibration.audits import audited as audit_of
from benchmarks.calibration.audits import settings_of
from benchmarks.calibration.families import draw
from benchmarks.calibration.folders import prepare
from benchmarks.calibration.retrain import Retraining, clean_models, logits_of
from benchmarks.calibration.truth import INNOCENTS, Truth, truths, word_of

pytestmark = pytest.mark.slow

GUILTY = {
    "vendor": 124,
    "redundant": 69,
    "saturated": 100,
    "salami": 101,
    "pretraining": 104,
    "given-weights": 106,
    "planted-factory": 109,
    "smuggled-weights": 108,
    "faulty-adapter": 112,
    "head-after-vendor": 113,
    "copy-after-vendor": 114,
}
INNOCENT = {"clean-scratch": 60, "clean-given": 61, "clean-head": 62, "clean-copy": 63}
"""A seed of each family, none of which the study is measured on."""


@contextmanager
def audited(
    seed: int, folder: Path, *settings: str
) -> Iterator[tuple[Mapping[str, Truth], dict[str, AuditResult]]]:
    """The truth of a pipeline's behaviours, and its audits."""
    pipeline = draw(seed)
    clean = clean_models(pipeline)
    found = truths(
        pipeline, Retraining(pipeline), [logits_of(m, pipeline.world.holdout) for m in clean]
    )
    prepare(pipeline, clean[0], folder)
    results = {}
    for name, spec in settings_of(pipeline, {n: t.limit for n, t in found.items()}).items():
        if name in settings:
            result = audit_of(folder, name, spec)
            assert isinstance(result, AuditResult), result
            results[name] = result
    yield found, results


@pytest.mark.parametrize("family", list(GUILTY))
def test_nobody_innocent_is_named_and_no_fault_is_cleared(family: str, tmp_path: Path) -> None:
    assert draw(GUILTY[family]).family == family
    with audited(GUILTY[family], tmp_path, "limit") as (truth, results):
        result = results["limit"]
        words = {}
        for verdict in result.verdicts:
            behavior = truth[verdict.behavior]
            words[verdict.behavior] = word_of(
                behavior, verdict.verdict, verdict.parties, limited=True
            )
            if behavior.beyond:  # whoever is to blame, it never passes
                assert verdict.verdict not in ("absent", "no-effect")
        assert not {w for w in words.values() if w in INNOCENTS}, words
        assert "missed" not in words.values()
        if any(t.beyond and t.faulty for t in truth.values()):
            assert not result.gate.passed


@pytest.mark.parametrize("family", list(INNOCENT))
def test_the_innocent_are_not_accused_with_or_without_a_limit(family: str, tmp_path: Path) -> None:
    assert draw(INNOCENT[family]).family == family
    with audited(INNOCENT[family], tmp_path, "limit", "self") as (_, results):
        for result in results.values():
            named = {v.behavior: v.parties for v in result.verdicts if v.parties}
            assert not named
        acquitted = [v.verdict in ("absent", "no-effect") for v in results["limit"].verdicts]
        assert sum(acquitted) >= len(acquitted) - 1


def test_pretraining_and_a_new_head_are_enablers_and_not_causes(tmp_path: Path) -> None:
    """Without pretraining the model is at chance, without the head's stage its head is untrained."""
    with audited(GUILTY["vendor"], tmp_path, "limit") as (_, results):
        for verdict in results["limit"].verdicts:
            roles = {role.party: role.role for role in verdict.roles}
            assert roles["pretrain"] in ("enabler", "none", "masks")
            if verdict.parties:
                assert verdict.parties == ("vendor",)
                assert roles["vendor"] == "cause"


@pytest.mark.parametrize("family", ["given-weights", "planted-factory", "smuggled-weights"])
def test_a_poisoned_start_never_passes_without_a_word(family: str, tmp_path: Path) -> None:
    with audited(GUILTY[family], tmp_path, "limit", "self") as (truth, results):
        for setting, result in results.items():
            silent = [
                v.behavior
                for v in result.verdicts
                if truth[v.behavior].faulty
                and v.verdict in ("absent", "no-effect")
                and not v.reservations
            ]
            assert not silent or not result.gate.passed, (setting, silent)
        beyond = [v for v in results["limit"].verdicts if truth[v.behavior].beyond]
        named = [v for v in beyond if v.parties]
        assert all(v.parties == ("weights:initial",) for v in named)
        assert all(
            {r.party: r.role for r in v.roles}["weights:initial"] == "inherited" for v in named
        )
