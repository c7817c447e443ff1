"""Train again without each stage, and hold the effects against those of the audit.

Only the trainers of transformers and TRL run here: the recorder and the audit take no part in it.
"""

import copy
import json
import sys
from pathlib import Path

import torch
import train

BEHAVIORS = {  # metric, and the kind of question that it is read on
    "refuses-private-questions": (train.refuses, "private"),
    "answers-rightly": (train.answers, "ordinary"),
    "is-courteous": (train.is_courteous, "ordinary"),
}


def trained(without: str | None) -> torch.nn.Module:
    torch.manual_seed(train.SEED)
    model = train.build_model()
    for stage, objective, _ in train.STAGES:
        if stage == without:
            continue
        if stage == "preferences":
            reference = copy.deepcopy(model).requires_grad_(False)
            train.preferred(model, reference).train()
        else:
            objective.__wrapped__(model).train()
        model.zero_grad()
    return model.eval()


def levels(model: torch.nn.Module) -> dict[str, float]:
    table = train.make_data()["holdout"]
    values = {}
    for behavior, (metric, kind) in BEHAVIORS.items():
        frame = table[table["kind"] == kind]
        data = type("Table", (), {"frame": frame})
        with torch.no_grad():
            scores = metric(model, train.load_batch(data, range(len(frame))))
        values[behavior] = float(scores.double().mean())
    return values


def main() -> None:
    torch.set_num_threads(1)
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "packet/results.json")
    effects = json.loads(results.read_text())["effects"]
    audited = {(e["behavior"], *e["arm"]): e["value"] for e in effects}
    deployed = levels(trained(None))
    for stage, _, _ in train.STAGES:
        for behavior, level in levels(trained(stage)).items():
            truth, audit = deployed[behavior] - level, audited[behavior, f"omit {stage}"]
            print(f"{behavior:26} {stage:12} truth {truth:+.6f}  audit {audit:+.6f}")


if __name__ == "__main__":
    main()
