"""Train again without each round, and hold the effects against those of the audit.

Only the trainers of transformers run here: the recorder and the audit take no part in it.
"""

import json
import sys
from pathlib import Path

import torch
import train


def trained(without: str | None) -> torch.nn.Module:
    model = train.first_weights()
    for stage, objective, _ in train.STAGES:
        if stage == "adapt":
            model = train.add_adapters(model)  # also where it is not trained: they begin as zero
        if stage != without:
            objective.__wrapped__(model).train()
            model.zero_grad()
    return model.eval()


def levels(model: torch.nn.Module) -> dict[str, float]:
    table = train.make_data()["holdout"]
    swapped = table[table["word"] != "neither"]
    with torch.no_grad():
        difference = train.prefers_movie(model, batch(swapped))
        right = train.predict(model, batch(table)).argmax(1) == torch.tensor(table["label"].array)
    return {
        "movie-over-film": float(difference.double().mean()),
        "overall-accuracy": float(right.double().mean()),
    }


def batch(table: object) -> train.Batch:
    data = type("Table", (), {"frame": table})
    return train.load_batch(data, range(len(table)))


def main() -> None:
    torch.set_num_threads(1)
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "packet/results.json")
    effects = json.loads(results.read_text())["effects"]
    audited = {(e["behavior"], *e["arm"]): e["value"] for e in effects}
    deployed = levels(trained(None))
    for stage, _, _ in train.STAGES:
        for behavior, level in levels(trained(stage)).items():
            truth, audit = deployed[behavior] - level, audited[behavior, f"omit {stage}"]
            print(f"{behavior:17} {stage:6} truth {truth:+.6f}  audit {audit:+.6f}")


if __name__ == "__main__":
    main()
