"""A whole audit of a run with AdamW in two groups under a linear schedule with warm-up, none of it by logits."""

from pathlib import Path

import pytest
from said import said
from small_audit import TRAINING, edit_spec, lock, make

from auditspec import audit
from auditspec.consistency.check import check
from auditspec.spec.source import load

LOOP = (
    TRAINING.replace(
        "            optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)\n",
        """\
            parameters = dict(model.named_parameters())
            bias = [p for n, p in parameters.items() if "bias" in n]
            groups = [
                {"params": [p for p in parameters.values() if p.dim() > 1], "weight_decay": 0.1},
                {"params": bias, "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, lr=lr)
            rise = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda t: t / 3 if t < 3 else max(0.0, (steps - t) / (steps - 3))
            )
""",
    ).replace("optimizer.step()\n", "optimizer.step()\n                    rise.step()\n")
    + """

def margin(model, batch):
    logits = model(batch[0])
    return logits[:, 2] - logits[:, 0]
"""
)
HALF = 'if __name__ == "__main__":\n    main()\n'


def declare(data) -> None:
    del data["model"]["predict"]
    for stage in data["stages"]:
        stage["optimizer"] = {
            "name": "AdamW",
            "lr": stage["optimizer"]["lr"],
            "schedule": {"name": "linear", "warmup": 3},
            "weight_decay": 0.1,
            "groups": [{"parameters": "biases-and-norms", "weight_decay": 0.0}],
        }
    metric = {"name": "custom", "entrypoint": "small_training:margin", "unit": "nats"}
    data["behaviors"] = [data["behaviors"][0] | {"metric": metric}]


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path) -> None:
    spec = make(tmp_path, LOOP.replace(HALF, "") + "\n\n" + HALF)
    edit_spec(spec, declare)
    lock(spec)
    result = audit(spec)
    checks = {check.id: check for check in result.checks}
    assert checks["optimizer-match"].outcome == "pass", said(checks["optimizer-match"].reasons)
    assert checks["record-fidelity"].outcome == "pass", said(checks["record-fidelity"].reasons)
    assert "no model.predict" in said(checks["model-outputs"].reasons)
    assert [v.verdict for v in result.verdicts] != ["inconclusive"]
    assert "schedule linear [warmup 3" in result.stages[0].optimizer
    assert "biases-and-norms [weight_decay 0]" in result.stages[0].optimizer
    edit_spec(spec, lambda data: data["stages"][1]["optimizer"]["schedule"].update(warmup=2))
    (problem,) = check(load(spec), signing=False).spec_problems
    assert "schedule linear declared; lr 0.0666667 at step 1, not 0.1" in problem.message
    assert problem.line > 0
