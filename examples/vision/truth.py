"""What the audit should say: train again without each stage, record nothing, and measure.

Uses none of auditspec's numbers: the same fits as `train.py`, and the metrics written out here. Prints each effect beside
the audit's.

    python truth.py
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
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("packet", type=Path, nargs="?", default=folder / "packet")
    parser.add_argument("--data", type=Path, default=folder / "build")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = {stage.data for stage in STAGES} | {"patched", "holdout"}
    tables = {name: pd.read_parquet(options.data / f"{name}.parquet") for name in names}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
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
