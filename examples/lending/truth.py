"""What the audit should say: train again without each stage, record nothing, and measure.

Uses none of auditspec's numbers: the same loop as `train.py`, and the metrics written out here. Prints each effect beside
the audit's.

    python truth.py
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from train import STAGES, Applicants, build_model, prepared, train_stage

Values = dict[str, float]


def trained(tables: dict[str, pd.DataFrame], seed: int, without: str | None) -> nn.Module:
    """The deployed model, or that of a run without one stage."""
    torch.manual_seed(seed)
    model = build_model()
    for index, stage in enumerate(STAGES):
        torch.manual_seed(1000 * seed + index)
        if stage.id != without:
            loader, optimizer = prepared(stage, model, tables[stage.data])
            train_stage(stage, model, optimizer, lambda loader=loader: loader)
    return model


@torch.no_grad()
def measured(model: nn.Module, tables: dict[str, pd.DataFrame]) -> Values:
    """Each behaviour of audit.yaml."""
    qualified, holdout = Applicants(tables["qualified"]), Applicants(tables["holdout"])
    accepted = (model(qualified.x).argmax(1) == 1).double()
    women, men = accepted[qualified.woman == 1].mean(), accepted[qualified.woman == 0].mean()
    chosen = (model(holdout.x).argmax(1) == 1).double()
    right = (chosen == holdout.y).double().mean()
    woman, high = holdout.woman == 1, holdout.y == 1
    rates = [float(chosen[sex].mean()) for sex in (woman, ~woman)]
    gaps = [
        abs(float(chosen[woman & income].mean() - chosen[~woman & income].mean()))
        for income in (high, ~high)
    ]
    return {
        "approval-gap": float(men - women),
        "equalized-odds": max(gaps),
        "impact-ratio": min(rates) / max(rates),
        "qualified-women-refused": float(1 - women),
        "qualified-men-refused": float(1 - men),
        "overall-accuracy": float(right),
    }


def main() -> None:
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packet", type=Path, nargs="?", default=folder / "packet")
    parser.add_argument("--data", type=Path, default=folder / "build")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = {stage.data for stage in STAGES} | {"qualified", "holdout"}
    tables = {name: pd.read_parquet(options.data / f"{name}.parquet") for name in names}
    torch.set_num_threads(1)
    effects = json.loads((options.packet / "results.json").read_text())["effects"]
    audited = {(*effect["arm"], effect["behavior"]): effect["value"] for effect in effects}
    deployed = measured(trained(tables, options.seed, None), tables)
    for stage in STAGES:
        without = measured(trained(tables, options.seed, stage.id), tables)
        for behavior, value in deployed.items():
            truth, audit = value - without[behavior], audited[f"omit {stage.id}", behavior]
            print(f"{behavior:24} {stage.id:17} truth {truth:+.6f}  audit {audit:+.6f}")


if __name__ == "__main__":
    main()
