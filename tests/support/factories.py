"""The smallest spec that is valid, as data and as text, for tests that vary it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from auditspec.artifacts.digest import digest_bytes

ONE = "sha256:" + "1" * 64

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


CODE = """\
def build_model(): ...
def load_batch(dataset, ids): ...
def predict(model, batch): ...
def loss(model, batch): ...
raise SystemExit('a spec must not run code')
"""
_TENSORS = b'{"head.weight":{"dtype":"F32","shape":[10,1],"data_offsets":[0,40]}}'
WEIGHTS = len(_TENSORS).to_bytes(8, "little") + _TENSORS + bytes(40)
"""A safetensors file with one matrix of ten outputs."""


def record_header(data: str) -> dict[str, Any]:
    """The header of a record of boundaries that fits the minimal spec; `data`: digest of `train`."""
    loss = {"name": "train:loss", "digest": ONE}
    options = {"SGD": {"lr": 0.1}, "AdamW": {"lr": 1e-3, "betas": [0.9, 0.999]}}
    return {
        "created": "2027-01-01T00:00:00Z",
        "versions": {},
        "device": "cpu",
        "threads": 1,
        "deterministic": False,
        "every": "boundaries",
        "layout": {"world_size": 1, "sharding": "single"},
        "factory": {"name": "train:build_model", "digest": ONE},
        "load_batch": {"name": "train:load_batch", "digest": ONE},
        "parameters": [{"name": "head.weight", "shape": [10, 1], "dtype": "float32"}],
        "buffers": [],
        "ties": {},
        "stages": [
            {
                "id": id_,
                "objective": loss,
                "optimizer": name,
                "groups": [{"parameters": ["head.weight"], "options": options[name]}],
                "boundary": "reset",
                "datasets": {"train": data},
                "steps": 3,
                "complete": True,
            }
            for id_, name in (("pretrain", "SGD"), ("finetune", "AdamW"))
        ],
        "complete": True,
    }


def minimal_spec() -> dict[str, Any]:
    """`SPEC_TEXT` as data, new at each call."""
    data: dict[str, Any] = yaml.safe_load(SPEC_TEXT)
    data["stages"][1]["optimizer"]["lr"] = 0.001  # YAML 1.1 reads 1e-3 as text
    return data


def spec_of_record(*stages: str) -> dict[str, Any]:
    """The minimal spec, as data, on a record of other stages, whose evaluation data has the label `y`."""
    data = minimal_spec()
    data["artifacts"]["holdout"]["label"] = "y"
    declared = data["stages"][0]
    data["stages"] = [declared | {"id": id_, "owner": f"team of {id_}"} for id_ in stages]
    return data


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
    (folder / "src" / "train.py").write_text(CODE)
    (folder / "train.csv").write_text("digit,source\n3,scan\n")
    header = record_header(digest_bytes((folder / "train.csv").read_bytes()))
    (folder / "record" / "record.json").write_text(json.dumps(header))
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "holdout.csv").write_text("digit,source\n3,scan\n8,synthetic\n")
    path = folder / "audit.yaml"
    path.write_text(text, encoding="utf-8")
    return path
