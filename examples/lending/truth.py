"""What the audit should say: train again without each stage, record nothing, and measure.

Uses none of auditspec's numbers: the same loop as `train.py`, and the metrics written out here. With the folder of a
packet it prints the audit's effects beside those that retraining gives.

    python truth.py packet
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
    right = (model(holdout.x).argmax(1) == holdout.y).double().mean()
    return {
        "approval-gap": 100 * float(men - women),
        "qualified-women-refused": float(1 - women),
        "qualified-men-refused": float(1 - men),
        "overall-accuracy": float(right),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packet", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = {stage.data for stage in STAGES} | {"qualified", "holdout"}
    tables = {name: pd.read_parquet(options.data / f"{name}.parquet") for name in names}
    torch.set_num_threads(1)
    audited: dict[tuple[str, str], float] = {}
    if options.packet is not None:
        results = json.loads((options.packet / "results.json").read_text())
        audited = {(arm, e["behavior"]): e["value"] for e in results["effects"] for arm in e["arm"]}
    deployed = measured(trained(tables, options.seed, None), tables)
    print("deployed:", ", ".join(f"{name} {value:.4f}" for name, value in deployed.items()))
    for stage in STAGES:
        without = measured(trained(tables, options.seed, stage.id), tables)
        for name, value in deployed.items():
            said = audited.get((f"omit {stage.id}", name))
            beside = "" if said is None else f"   the audit says {said:+.6f}"
            print(f"{stage.id:18} {name:24} {value - without[name]:+.6f}{beside}")


if __name__ == "__main__":
    main()
