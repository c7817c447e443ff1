"""What the architecture promises: a new member of any kind is one class in one file, and nothing else.

The files stand in `tests/additions`. They are installed as another distribution would be, a model is
trained and recorded through one of them, whole audits use all of them, and the report shows them.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from click.testing import CliRunner
from plugged import install
from sample_packet import trusting
from small_audit import TRAINING, edit_spec, make

import auditspec
from auditspec.cli.main import cli
from auditspec.sign import keys
from auditspec.sign.signer import KeySigner
from auditspec.verification.verifier import verify

ADDITIONS = Path(__file__).with_name("additions")
POINTS = {
    "estimators": {"task-vector": "example_estimator:TaskVector"},
    "metrics": {"entropy": "example_metric:Entropy"},
    "statistics": {"upper-decile": "example_statistic:UpperDecile"},
    "checks": {"stages-counted": "example_check:Stages"},
    "exports": {"csv": "example_export:Table"},
    "update_rules": {"Heavy": "example_rule:Heavy"},
    "engines": {"bounded": "example_engine:Bounded"},
    "signers": {"openssl": "example_signer:OpenSsl"},
}
HEAVY = """

class Heavy(torch.optim.Optimizer):
    def __init__(self, params, lr, mu=0.8):
        super().__init__(params, {"lr": lr, "mu": mu})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.mul_(group["mu"]).add_(p.grad, alpha=1 - group["mu"])
                p.sub_(average, alpha=group["lr"])


def build_model():"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An audit of a model that trained by another optimizer, heard by another source."""
    sources = {path.stem: path.read_text() for path in ADDITIONS.glob("*.py")}
    install(tmp_path / "site", monkeypatch, sources, POINTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")
    training = TRAINING
    for old, new in (
        ("\n\ndef build_model():", HEAVY),
        ("def main():\n", "def main():\n    from example_source import Told\n\n"),
        (
            "torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)",
            "Heavy(model.parameters(), lr)",
        ),
        ("dataset=data, steps=steps)", "dataset=data, steps=steps, source=Told)"),
        ("optimizer.step()\n", "optimizer.step()\n                    run.stepped()\n"),
    ):
        assert old in training
        training = training.replace(old, new)
    folder = tmp_path / "audit"
    folder.mkdir()
    path = make(folder, training)

    def changed(data: dict[str, object]) -> None:
        for stage in data["stages"]:  # type: ignore[attr-defined]
            lr = stage["optimizer"]["lr"]
            own = {"name": "small_training:Heavy", "lr": lr, "options": {"mu": 0.8}}
            stage["optimizer"] = own | {"schedule": "constant", "state": "reset"}
        told = {
            "id": "unsure",
            "description": "The least sure tenth of the answers is less sure",
            "metric": {"name": "entropy"},
            "statistic": {"name": "upper-decile"},
            "data": "holdout",
            "concern": {"direction": "increase", "tolerance": 0.05},
        }
        data["behaviors"].append(told)  # type: ignore[attr-defined]
        data["estimator"]["engine"] = "bounded"  # type: ignore[index]
        data["report"] = {"formats": ["html", "csv"]}
        keys.write_private(tmp_path / "a.key", keys.generate("ecdsa-p256-sha256"))
        data["signing"] = {"key": f"openssl:{tmp_path}/a.key"}

    edit_spec(path, changed)
    return path


def test_each_addition_is_one_class() -> None:
    files = sorted(ADDITIONS.glob("*.py"))
    assert len(files) == len(POINTS) + 1  # and the source, which a training script names
    for path in files:
        classes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
        assert len(classes) == 1, path.name


@pytest.mark.parametrize("method", ["task-vector", "displacement"])
def test_a_whole_audit_by_all_of_them(spec: Path, tmp_path: Path, method: str) -> None:
    """`displacement` needs the rule of the training code's own optimizer."""
    edit_spec(spec, lambda data: data["estimator"].update(method=method))
    done = CliRunner().invoke(cli, ["validate", str(spec)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert method in {choice.method for choice in auditspec.plan(spec).choices}
    result = auditspec.audit(spec, out=tmp_path / "packet")
    assert {check.id: check.outcome for check in result.checks}["record-fidelity"] == "pass"
    assert {check.id: check.statistic for check in result.checks}["stages-counted"] == 3
    assert method in {estimate.method for estimate in result.estimates}
    (unsure,) = (behavior for behavior in result.behaviors if behavior.id == "unsure")
    assert "0.9 quantile" in unsure.statistic
    assert len([effect for effect in result.effects if effect.behavior == "unsure"]) == 3
    assert result.run.engine == "bounded"
    ours = {p.name for p in result.run.plugins if p.distribution == "example-plugins"}
    assert ours == {name for members in POINTS.values() for name in members}
    packet = tmp_path / "packet"
    signer = KeySigner.from_file(tmp_path / "a.key")
    assert verify(packet, trusting(signer)).error is None
    lines = (packet / "effects.csv").read_text().splitlines()
    assert len(lines) == 1 + len(result.effects)
    report = (packet / "report.html").read_text()
    told = ["entropy of the predicted distribution", "0.9 quantile", "bounded", "stages-counted"]
    told += ["Every stage has an effect", "example-plugins 1.2"]
    told += ["stages were counted"]
    told += ["Task-vector negation", "taken off"] if method == "task-vector" else []
    assert [words for words in told if words not in report] == []


def test_what_they_are_called_instead_when_they_are_not_installed(
    spec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path / "site")])
    edit_spec(spec, lambda data: data["estimator"].update(method="task-vector"))
    done = CliRunner().invoke(cli, ["validate", str(spec)], catch_exceptions=False)
    assert done.exit_code == 2
    assert "entropy" in done.output
