"""What the audit should say: train again without each stage, record nothing, and measure.

Uses none of auditspec's numbers: the same fits as `train.py`, and the metrics written out here. With the folder of a
packet it prints the audit's effects beside those that retraining gives.

    python truth.py packet
"""

import argparse
import json
import logging
from pathlib import Path

import pandas as pd
import torch
from train import PIXELS, STAGES, Reader, build_model, train_stage

Values = dict[str, float]


def trained(tables: dict[str, pd.DataFrame], seed: int, without: str | None) -> Reader:
    """The deployed model, or that of a run without one stage."""
    torch.manual_seed(seed)
    model = build_model()
    for index, stage in enumerate(STAGES):
        torch.manual_seed(1000 * seed + index)
        if stage.id != without:
            train_stage(stage, model, tables[stage.data])
    return model.eval()


@torch.no_grad()
def measured(model: Reader, tables: dict[str, pd.DataFrame]) -> Values:
    """Each behaviour of audit.yaml."""

    def read(table: pd.DataFrame) -> torch.Tensor:
        pixels = torch.tensor(table[PIXELS].to_numpy()).view(-1, 1, 28, 28)
        return model(pixels.float() / 255).argmax(1)

    patched, holdout = tables["patched"], tables["holdout"]
    marked = patched[patched["digit"] != 0]
    digits = torch.tensor(holdout["digit"].to_numpy(dtype="int64"))
    plain = holdout[holdout["digit"] != 0]
    return {
        "patched-read-as-zero": float((read(marked) == 0).double().mean()),
        "overall-accuracy": float((read(holdout) == digits).double().mean()),
        "plain-read-as-zero": float((read(plain) == 0).double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packet", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "build")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = {stage.data for stage in STAGES} | {"patched", "holdout"}
    tables = {name: pd.read_parquet(options.data / f"{name}.parquet") for name in names}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
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
            print(f"{stage.id:14} {name:22} {value - without[name]:+.6f}{beside}")


if __name__ == "__main__":
    main()
