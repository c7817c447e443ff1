"""What every check keeps: the built-in ones, and one of another distribution through the same path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from deployment import deployed_as
from estimates import attributed
from examined import examined
from factories import SPEC_TEXT, minimal_spec, spec_of_record, write_spec
from plugged import install
from pydantic import ValidationError
from said import said, saying
from training import Recorded, StagePlan, build_mlp32, table, train

from auditspec import Dataset
from auditspec.artifacts.weights import Weights
from auditspec.beginnings import FirstWeights
from auditspec.behaviors.evaluate import Evaluator
from auditspec.behaviors.statistics import SliceStatistic
from auditspec.behaviors.statistics.mean import Mean
from auditspec.checks import CHECKS
from auditspec.checks.additivity import Account, Additivity
from auditspec.checks.asked_again import AskedAgainCheck
from auditspec.checks.batching import Batching, TwoBatchings
from auditspec.checks.commitment import CommitmentCheck, StageAsMade
from auditspec.checks.convergence import Convergence
from auditspec.checks.data_provenance import DataProvenance
from auditspec.checks.data_use import DataUse
from auditspec.checks.evaluation_noise import EvaluationNoise
from auditspec.checks.evidence_integrity import EvidenceIntegrity
from auditspec.checks.examination import Examination, available, run_check
from auditspec.checks.initial_weights import InitialWeights
from auditspec.checks.interface import ABOUT, Check
from auditspec.checks.linearity import Linearity, TwoReadings
from auditspec.checks.memorization import Fit, MemorizationCheck, StageFit
from auditspec.checks.model_outputs import ModelOutputs
from auditspec.checks.off_path import OffPathCheck
from auditspec.checks.optimizer_match import OptimizerMatch
from auditspec.checks.placebo import Drawn, Placebo
from auditspec.checks.precision import Precision, TwoPrecisions
from auditspec.checks.record_fidelity import RecordFidelity
from auditspec.checks.refinement import Refinement
from auditspec.checks.sampling import SamplingCheck
from auditspec.checks.spot_check import SpotCheck
from auditspec.checks.subject import Artifacts, AskedAgain, Estimated, Rerunnable, Rescored, Subject
from auditspec.data_evidence import AuditReads, Outside, TrainedRows
from auditspec.effects import Unread
from auditspec.errors import PluginError, SpecError
from auditspec.estimator.model_outputs import Borrowed
from auditspec.estimator.off_path import OffPath
from auditspec.findings import laxer_than_default
from auditspec.gather import Opened
from auditspec.intervals import Sample, intervals
from auditspec.messages import message
from auditspec.record.commitment import Commitment
from auditspec.record.matching import StageRows
from auditspec.report.words import Words
from auditspec.report.words.vocabulary import vocabulary_of
from auditspec.results import Bars, CheckResult, Concern, Evidence, Picture
from auditspec.sealed.witness import Repeated
from auditspec.sign.sealing import SealedCommitment
from auditspec.spec.checks import CheckOptions, Checks
from auditspec.spec.measures import AS_DECLARED
from auditspec.spec.models import Spec
from auditspec.spec.source import load
from auditspec.spot_checks import Comparison
from auditspec.verdicts import EVIDENCE_GATES

SPEC = Spec.model_validate(minimal_spec())
PARTS = {AskedAgain, Artifacts, Opened, TrainedRows, Rerunnable, Estimated, AuditReads}
OPTIONS = {check.id: SPEC.checks.of(check.id, check.section) for check in CHECKS}
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)


# --- a failing case of each -----------------------------------------------------------------------


def wrong_checkpoint(recorded: Recorded) -> CheckResult:
    options: Any = OPTIONS[RecordFidelity.id]
    return RecordFidelity(recorded.rerun(), deployed_as({}), options).run()


def undecided() -> CheckResult:
    """It never fails: whether there are enough examples is known or open."""
    effects = np.linspace(-1, 1, 12)[:, None]
    few = sample(effects, tolerance=0.0)
    options: Any = OPTIONS[SamplingCheck.id]
    return SamplingCheck([few], intervals([few], options, seed=0), options).run()


def sample(effects: Any, errors: float = 0.0, tolerance: float = 0.1) -> Sample:
    return Sample(
        behavior="b",
        dataset="holdout",
        ids=np.arange(len(effects)),
        deployed=np.zeros(len(effects)),
        changes=effects,
        errors=np.array([errors]),
        statistic=SliceStatistic(Mean(name="mean"), {}),
        binary=False,
        concern=Concern(direction="increase", tolerance=tolerance),
    )


def other_stages() -> CheckResult:
    trajectory: Any = SimpleNamespace(stages=(SimpleNamespace(id="another"),))
    return OptimizerMatch(SPEC.stages, trajectory).run()


def not_in_the_data() -> CheckResult:
    rows = StageRows("one", ("train",), steps=[[("elsewhere", 0)]], foreign={"elsewhere": 1})
    return DataProvenance([rows]).run()


def another_order() -> CommitmentCheck:
    digest = "sha256:" + "0" * 64
    planned = Commitment(
        stage="one",
        code=digest,
        objective="train:loss",
        initial=digest,
        seed=0,
        random=digest,
        boundary="reset",
        datasets={},
        optimizer="SGD",
        groups=(),
        frozen=(),
        clip_norm=None,
        steps=1,
        order=digest,
    )
    made = planned.model_copy(update={"order": "sha256:" + "1" * 64})
    return CommitmentCheck([StageAsMade("one", SealedCommitment(planned, None), made)], None)


def options(check: type[Check]) -> Any:
    return OPTIONS[check.id]


FAILING: dict[type[Check], Callable[[], CheckResult]] = {
    EvidenceIntegrity: lambda: EvidenceIntegrity(
        [Evidence(name="code", kind="folder", path="code", state="missing")]
    ).run(),
    OptimizerMatch: other_stages,
    DataProvenance: not_in_the_data,
    CommitmentCheck: lambda: another_order().run(),
    InitialWeights: lambda: InitialWeights(FirstWeights("random", 1, "one.weight", "")).run(),
    ModelOutputs: lambda: ModelOutputs([Borrowed("two", "one", "logits")]).run(),
    Convergence: lambda: Convergence({"one": Unread("its weights are not finite", True)}).run(),
    Refinement: lambda: Refinement(
        [sample(np.ones((12, 1)), errors=2.0)], ["one"], options(Refinement)
    ).run(),
    SpotCheck: lambda: SpotCheck([Comparison("one", "b", 1.0, -1.0, 0.1, 0.1, 2.0)], [], 6.0).run(),
    SamplingCheck: undecided,
    EvaluationNoise: lambda: EvaluationNoise([Rescored("b", 0.1, noise=0.2)], 0.95).run(),
    Linearity: lambda: Linearity(
        [TwoReadings("one", "b", 1.0, -1.0, 2.0, 1.0, 0.1, first_order=True)],
        options(Linearity),
    ).run(),
    Precision: lambda: Precision(
        [TwoPrecisions("one / b", 1.0, 2.0, 1.0, "one", "b")], 12, 0.0, options(Precision)
    ).run(),
    Batching: lambda: Batching([TwoBatchings("b", 16, 0.5, 1.0)], 64).run(),
    Additivity: lambda: Additivity([Account("b", 1.0, (3.0,), 0.1)], options(Additivity)).run(),
    Placebo: lambda: Placebo([Drawn("one", "b", 1.0, np.ones(40), matters=True)], {}).run(),
    OffPathCheck: lambda: OffPathCheck([OffPath("two", 0.5, 0.0, 0.0, 1.0)], {}, "one").run(),
    AskedAgainCheck: lambda: AskedAgainCheck(
        Repeated({"code:loss": 12}, {"code:loss": 0.5}, {})
    ).run(),
    MemorizationCheck: lambda: MemorizationCheck(
        [StageFit("one", [Fit(np.arange(8.0) - 100, np.arange(8.0))])], 0
    ).run(),
    DataUse: lambda: DataUse(
        [], [], [Outside("notes.txt", (message("training-read"),), None, starts=True)], []
    ).run(),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    plan = (StagePlan("one", options={"lr": 0.1}), StagePlan("two", shift=1))
    return train(tmp_path_factory.mktemp("run"), plan, build_mlp32)


@every_check
def test_a_failing_case_says_where_and_why(check: type[Check], recorded: Recorded) -> None:
    failing = wrong_checkpoint(recorded) if check is RecordFidelity else FAILING[check]()
    assert failing.outcome == ("inconclusive" if check is SamplingCheck else "fail")
    assert said(failing.reasons)
    assert failing.in_the_way is (check.bars != "nothing")
    assert not failing.details or any(d.outcome == failing.outcome for d in failing.details)
    assert CheckResult.model_validate_json(failing.model_dump_json()) == failing


# --- what a class says of itself ------------------------------------------------------------------


@every_check
def test_a_check_says_what_it_is(check: type[Check]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", check.id)
    for name in ("title", "statistic_name", "source"):
        assert getattr(check, name).strip(), name
    assert check.unit == check.unit.strip()
    assert inspect.getdoc(check) and inspect.getdoc(check.run)


@every_check
def test_a_check_says_what_it_bars(check: type[Check]) -> None:
    assert check.bars in get_args(Bars)
    assert check.bars_when in ("not-passed", "failed")
    assert (check.remedy is not None) is (check.bars in ("estimated", "behavior"))
    assert check.picture in (None, *get_args(Picture))
    assert not check.halts or check.bars == "all"


@every_check
def test_a_check_is_the_only_one_of_its_file(check: type[Check]) -> None:
    module = import_module(check.__module__)
    assert module.__name__ == f"auditspec.checks.{check.id.replace('-', '_')}"
    assert (module.__doc__ or "").startswith(f"{check.id}: ")
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Check)]
    assert [c for c in own if c is not Check] == [check]


@every_check
def test_a_check_looks_at_parts_of_an_audit(check: type[Check]) -> None:
    assert check.looks_at
    assert set(check.looks_at) <= PARTS


def test_the_list_is_whole_and_says_each_once() -> None:
    def below(kind: type[Check]) -> set[type[Check]]:
        return {kind, *(c for sub in kind.__subclasses__() for c in below(sub))}

    there = {c for c in below(Check) if c.__module__.startswith("auditspec.") and c is not Check}
    assert set(CHECKS) == there
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    assert set(FAILING) | {RecordFidelity} == set(CHECKS)
    assert list(available())[: len(CHECKS)] == [check.id for check in CHECKS]


def test_what_every_packet_must_hold_bars_every_verdict() -> None:
    assert set(EVIDENCE_GATES) <= {check.id for check in CHECKS if check.bars == "all"}


# --- options --------------------------------------------------------------------------------------


@every_check
def test_options_have_defaults_and_stand_in_the_spec(check: type[Check]) -> None:
    default = check.section()
    assert Checks().of(check.id, check.section) == default
    assert default.laxer() == []
    assert set(check.section.laxer_above + check.section.laxer_below) <= set(
        check.section.model_fields
    )


def test_the_spec_has_a_section_for_each_check_with_options_and_for_no_other() -> None:
    sections = dict(Checks().sections())
    assert {check.id: check.section for check in CHECKS if check.section is not CheckOptions} == {
        id_: type(options) for id_, options in sections.items()
    }


# --- results --------------------------------------------------------------------------------------


@every_check
def test_a_skipped_check_says_why(check: type[Check]) -> None:
    skipped = check.skipped(saying("the sun was in its eyes"), gradients=3.0)
    assert (skipped.outcome, said(skipped.reasons)) == ("not-run", "the sun was in its eyes")
    assert (skipped.statistic, skipped.details, skipped.gradients) == (None, (), 3.0)
    assert {name: getattr(skipped, name) for name in ABOUT} == check.about()


def test_a_subject_that_lacks_everything_leaves_a_reason_with_every_check() -> None:
    examination = Examination(Subject(SPEC), CHECKS)
    examination.add()
    results = examination.results(saying("there was nothing to look at"))
    assert [result.id for result in results] == [check.id for check in CHECKS]
    assert {(r.outcome, said(r.reasons)) for r in results} == {
        ("not-run", "there was nothing to look at")
    }
    assert examination.gradients == 0


def test_what_halts_leaves_the_rest_unlooked_at() -> None:
    missing = Evidence(name="code", kind="folder", path="code", state="missing")
    examination = Examination(Subject(SPEC), CHECKS)
    examination.add(Artifacts((missing,)))
    assert examination.halted == EvidenceIntegrity.halts
    trajectory: Any = SimpleNamespace()  # it would not survive being looked at
    examination.add(
        Opened(trajectory, "", Weights({}, "safetensors"), None, {}, trajectory, trajectory, None)
    )
    first, *others = examination.results(examination.halted)
    assert first.outcome == "fail"
    assert {(r.outcome, r.reasons) for r in others} == {("not-run", (EvidenceIntegrity.halts,))}


# --- one of another distribution ------------------------------------------------------------------

PLUG_IN = '''
from typing import ClassVar
from auditspec.checks.interface import Check
from auditspec.checks.subject import AskedAgain, Estimated
from auditspec.messages import message
from auditspec.spec.checks import CheckOptions

class Options(CheckOptions):
    laxer_above = ("most",)
    most: float = 1e-9

class Bold(Check):
    """Finds every effect too large."""
    id = "bold"
    title = "No effect is large"
    bars = "behavior"
    statistic_name = "largest effect"
    source = "made up"
    section = Options
    looks_at = (Estimated,)
    sentences = {"bold:largest": "the largest effect is {size:number 2}"}

    def __init__(self, effects, most):
        self.effects, self.most = effects, most

    @classmethod
    def of(cls, subject):
        effects = [e.effects for e in subject[Estimated].effects.values()]
        sizes = [float(abs(values.mean())) for by in effects for values in by.values()]
        return cls(sizes, subject.spec.checks.of(cls.id, Options).most)

    def run(self):
        """Fails above the largest accepted one."""
        worst = max(self.effects)
        outcome = "fail" if worst > self.most else "pass"
        reason = message("bold:largest", size=worst)
        return self.result(outcome, reason, statistic=worst, threshold=self.most)
'''
BEHAVIOR = {
    "id": "b",
    "description": "d",
    "metric": {"name": "logit-margin", "positive": 2, "negative": 0},
    "data": "holdout",
    "concern": {"direction": "increase", "tolerance": 0.05},
}


@pytest.fixture(scope="module")
def reader(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    path = tmp_path_factory.mktemp("data") / "holdout.parquet"
    table(seed=7).to_parquet(path)
    data = {"holdout": Dataset.open(path)}
    return Evaluator(recorded.rerun(), with_options().behaviors, data, {"holdout": "y"}, {})


@pytest.fixture
def bold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Check]:
    points = {"checks": {"bold": "bold_check:Bold"}}
    install(tmp_path / "site", monkeypatch, {"bold_check": PLUG_IN}, points)
    return available()["bold"]


def with_options(**checks: Any) -> Spec:
    data = spec_of_record("one", "two") | {"behaviors": [BEHAVIOR]}
    data["checks"] = {"placebo": {"draws": 0}, "precision": {"examples": 0}} | checks
    return Spec.model_validate(data)


@pytest.mark.parametrize(
    ("options", "outcome", "laxer"),
    [({}, "fail", []), ({"bold": {"most": 1e9}}, "pass", ["checks.bold.most"])],
)
@pytest.mark.usefixtures("bold")
def test_one_of_another_distribution_runs_behind_the_built_in_ones(
    reader: Evaluator, options: dict[str, Any], outcome: str, laxer: list[str]
) -> None:
    spec = with_options(**options)
    results = examined(attributed(spec, reader), spec)
    assert list(results) == [*(check.id for check in CHECKS), "bold"]
    assert (results["bold"].outcome, results["bold"].bars) == (outcome, "behavior")
    vocabulary = vocabulary_of(results["bold"], available().items())
    assert set(vocabulary) == {"bold:largest"}
    assert "the largest effect is" in Words(vocabulary=vocabulary).text(*results["bold"].reasons)
    told = laxer_than_default(spec)
    assert [option for option in told if "bold" in option] == laxer
    assert Spec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


@pytest.mark.usefixtures("bold")
def test_its_options_are_checked_where_the_spec_is_read(tmp_path: Path) -> None:
    path = write_spec(tmp_path, SPEC_TEXT + "checks:\n  bold: {most: much}\n  blod: {}\n")
    with pytest.raises(SpecError) as caught:
        load(path)
    wrong = {(p.code, p.line): p.message for p in caught.value.problems}
    line = len(SPEC_TEXT.splitlines())
    assert "number" in wrong["AS014", line + 2]
    assert "unknown key 'blod'" in wrong["AS012", line + 3]


def test_the_options_of_one_that_is_not_here_are_an_unknown_key() -> None:
    with pytest.raises(ValidationError, match="bold"):
        with_options(bold={"most": 1.0})
    data = with_options().model_dump(by_alias=True) | {"checks": {"bold": {"most": 1.0}}}
    Spec.model_validate(data, context=AS_DECLARED)  # whoever verifies a packet


def test_one_that_fails_says_so_and_takes_no_other_down(
    bold: type[Check], reader: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_options()
    attribution = attributed(spec, reader)
    for step in ("run", "of"):
        monkeypatch.setattr(bold, step, lambda *_: 1 / 0)
        results = examined(attribution, spec)
        assert results["bold"].outcome == "not-run"
        assert "ZeroDivisionError" in said(results["bold"].reasons)
        assert results["convergence"].outcome == "pass"


def test_what_bars_every_verdict_takes_the_audit_down_with_it(
    bold: type[Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bold, "bars", "all")
    monkeypatch.setattr(bold, "of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_check(bold, Subject(SPEC))


@pytest.mark.parametrize("wrong", [None, "pass", Convergence.skipped(saying("no"))], ids=repr)
def test_another_thing_than_a_result_of_its_own_is_an_error(
    bold: type[Check], monkeypatch: pytest.MonkeyPatch, wrong: object
) -> None:
    monkeypatch.setattr(bold, "of", lambda *_: wrong)
    with pytest.raises(PluginError, match="the check 'bold'"):
        run_check(bold, Subject(SPEC))
    monkeypatch.setattr(bold, "of", lambda *_: bold([1.0], 0.0))  # type: ignore[call-arg]
    monkeypatch.setattr(bold, "run", lambda *_: wrong)
    with pytest.raises(PluginError, match="the check 'bold'"):
        run_check(bold, Subject(SPEC))


def test_the_documented_one_keeps_the_interface(tmp_path: Path, reader: Evaluator) -> None:
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    source = text.partition("### A check\n")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"__name__": "documented"}
    (tmp_path / "documented.py").write_text(source)  # its docstrings are read from there
    exec(compile(source, str(tmp_path / "documented.py"), "exec"), names)
    documented: type[Check] = names["EveryStage"]
    spec = with_options()
    examination = Examination(Subject(spec), [documented])
    examination.add(attributed(spec, reader).estimated)
    assert examination[documented].outcome == "pass"
    assert documented(("one",), 0).run().outcome == "fail"  # type: ignore[call-arg]
