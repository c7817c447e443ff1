"""Confidence checks: one a file, one interface, and the only list of them, in the order of the report.

`CHECKS` loads on first use: other modules of this package are needed where torch is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditspec.checks.interface import Check

    CHECKS: tuple[type[Check], ...]


def __getattr__(name: str) -> Any:
    if name == "CHECKS":
        from auditspec.checks.additivity import Additivity
        from auditspec.checks.asked_again import AskedAgainCheck
        from auditspec.checks.batching import Batching
        from auditspec.checks.commitment import CommitmentCheck
        from auditspec.checks.convergence import Convergence
        from auditspec.checks.data_provenance import DataProvenance
        from auditspec.checks.data_use import DataUse
        from auditspec.checks.evaluation_noise import EvaluationNoise
        from auditspec.checks.evidence_integrity import EvidenceIntegrity
        from auditspec.checks.initial_weights import InitialWeights
        from auditspec.checks.linearity import Linearity
        from auditspec.checks.memorization import MemorizationCheck
        from auditspec.checks.model_outputs import ModelOutputs
        from auditspec.checks.off_path import OffPathCheck
        from auditspec.checks.optimizer_match import OptimizerMatch
        from auditspec.checks.placebo import Placebo
        from auditspec.checks.precision import Precision
        from auditspec.checks.record_fidelity import RecordFidelity
        from auditspec.checks.refinement import Refinement
        from auditspec.checks.sampling import SamplingCheck
        from auditspec.checks.spot_check import SpotCheck

        return (
            EvidenceIntegrity,
            OptimizerMatch,
            CommitmentCheck,
            DataProvenance,
            RecordFidelity,
            InitialWeights,
            ModelOutputs,
            Convergence,
            Refinement,
            SpotCheck,
            SamplingCheck,
            EvaluationNoise,
            Linearity,
            Precision,
            Batching,
            Additivity,
            Placebo,
            OffPathCheck,
            AskedAgainCheck,
            DataUse,
            MemorizationCheck,
        )
    raise AttributeError(f"module 'auditspec.checks' has no attribute {name!r}")
