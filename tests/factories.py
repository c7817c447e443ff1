"""The smallest spec that is valid, as data and as text, for tests that vary it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SPEC_TEXT = """\
auditspec: "1"
audit: {id: demo-1, title: A demonstration}
auditor: {name: A. Auditor, organization: Lab, role: auditor, independence: none declared}
system: {name: digits, version: "1.0", owner: Team, intended_use: reading digits}
artifacts:
  code: {path: src}
  record: {path: record}
  final: {path: model.safetensors}
  train: {path: train.csv}
  holdout:
    path: holdout.csv
    label: digit
model:
  factory: train:build_model
  load_batch: train:load_batch
  predict: train:predict
  checkpoint: final
stages:
  - id: pretrain
    owner: Foundation team
    description: from scratch
    data: [train]
    objective: train:loss
    optimizer:
      name: SGD
      lr: 0.1
  - id: finetune
    owner: Product team
    description: on product data
    data:
      - train
    objective: train:loss
    optimizer: {name: AdamW, lr: 1e-3, betas: [0.9, 0.999]}
behaviors:
  - id: three-read-as-eight
    description: a 3 is scored as an 8
    metric: {name: logit-margin, positive: 8, negative: 3}
    data: holdout
    where: digit == 3 and source != "synthetic"
    concern: {direction: increase, tolerance: 0.1}
"""
"""Line 1 is `auditspec`; tests of places count from here."""


def minimal_spec() -> dict[str, Any]:
    """`SPEC_TEXT` as data, new at each call."""
    data: dict[str, Any] = yaml.safe_load(SPEC_TEXT)
    data["stages"][1]["optimizer"]["lr"] = 0.001  # YAML 1.1 reads 1e-3 as text
    return data


def declared_stages(*ids: str) -> list[dict[str, Any]]:
    """Declarations of the stages of a record, as data."""
    return [minimal_spec()["stages"][0] | {"id": id_, "owner": f"team of {id_}"} for id_ in ids]


def to_yaml(data: Any) -> str:
    """Data as block-style YAML, every text in double quotes."""
    return yaml.dump(data, Dumper=_Quoting, sort_keys=False, allow_unicode=True)


class _Quoting(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def write_spec(folder: Path, text: str = SPEC_TEXT) -> Path:
    """Write a spec and every artifact that the minimal spec names; return the spec's path."""
    for name in ("src", "record"):
        (folder / name).mkdir()
    (folder / "src" / "train.py").write_text("raise SystemExit('a spec must not run code')\n")
    (folder / "record" / "record.json").write_text("{}\n")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "train.csv").write_text("digit,source\n3,scan\n")
    (folder / "holdout.csv").write_text("digit,source\n3,scan\n8,synthetic\n")
    path = folder / "audit.yaml"
    path.write_text(text, encoding="utf-8")
    return path
