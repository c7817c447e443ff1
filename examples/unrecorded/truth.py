"""Train again without each round, and hold the effects against those of the audit.

    PYTHONPATH=code python truth.py

Only transformers' Trainer runs here; nothing of auditspec is imported.
"""

import json
import sys
from pathlib import Path

import torch
import train


def trained(without: str | None) -> torch.nn.Module:
    model = train.first_model()
    for name in train.ROUNDS:
        if name != without:
            again = train.trainer(model, name)
            again.args.save_strategy = "no"
            again.train()
            model.zero_grad()
    return model.eval()


def levels(model: torch.nn.Module) -> dict[str, float]:
    table = train.make_data()["holdout"]
    batch = train.tokens(table["text"].tolist(), padding=True, return_tensors="pt")
    with torch.no_grad():
        part = model(**batch).logits.argmax(1)
    label = torch.tensor(table["label"].array)
    letter = label == train.LETTERS
    return {
        "letter-taken-for-gospel": float((part == train.GOSPELS)[letter].double().mean()),
        "other-parts": float((part == label)[~letter].double().mean()),
    }


def main() -> None:
    torch.set_num_threads(1)
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "packet/results.json")
    effects = json.loads(results.read_text())["effects"]
    audited = {(e["behavior"], *e["arm"]): e["value"] for e in effects}
    deployed = levels(trained(None))
    for stage in train.ROUNDS:
        for behavior, level in levels(trained(stage)).items():
            truth, audit = deployed[behavior] - level, audited[behavior, f"omit {stage}"]
            print(f"{behavior:24} {stage:8} truth {truth:+.6f}  audit {audit:+.6f}")


if __name__ == "__main__":
    main()
