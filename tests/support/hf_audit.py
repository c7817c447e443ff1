"""Whole audits of what Hugging Face's trainers train: a tiny GPT-2, three data sets, and the code of a lab.

A test writes the trainers of its stages; here stand the model, the data, and what both kinds of runs share:
the recorded one, and the plain ones without a stage, which do not import auditspec.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import small_audit
from factories import to_yaml

from auditspec import api
from auditspec.engine.loading import Functions
from auditspec.engine.rerun import Rerun
from auditspec.record.deviation import deviation_of
from auditspec.record.trajectory import Trajectory
from auditspec.results import AuditResult

MODULE = "hf_training"
RATES = {"polish": 1e-3, "dpo": 2e-3, "adapters": 2e-2}
"""Largest learning rates that are not the usual one, by stage."""
COMMON = '''\
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from auditspec.integrations.transformers import (
    keep_reference, record, reference_of, trainer_objective,
)

HERE = Path(__file__).parent
PAD, BOS, EOS, NO, YES = 0, 1, 2, 3, 4
LENGTH = 8
WORDS = 30


def build_model():
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    ))


def frame(name):
    return pd.read_parquet(HERE / f"{name}.parquet")


def examples(name):
    """Prompts of several lengths, each with its answer."""
    return [
        {"input_ids": [t for t in row[:-1] if t != PAD] + [NO + row[-1]]}
        for row in frame(name).to_numpy().tolist()
    ]


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), PAD)
    for place, row in enumerate(rows):
        ids[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    mask = (ids != PAD).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def load_batch(dataset, ids):
    rows = dataset.frame.to_numpy().take(list(ids), axis=0).tolist()
    return collate([{"input_ids": [t for t in r[:-1] if t != PAD] + [NO + r[-1]]} for r in rows])


def answers(model, batch):
    """Logits of the two answers after the prompt, [B, 2]."""
    last = batch["attention_mask"].sum(1) - 1
    ids, mask = batch["input_ids"].clone(), batch["attention_mask"].clone()
    rows = torch.arange(len(ids))
    ids[rows, last], mask[rows, last] = PAD, 0  # the answer itself
    logits = model(input_ids=ids, attention_mask=mask).logits
    return logits[rows, last - 1, NO : YES + 1]


def arguments(kind=TrainingArguments, **options):
    given = dict(
        per_device_train_batch_size=8, num_train_epochs=1, learning_rate=5e-3, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=2,
    )
    return kind(**{"output_dir": str(HERE / "out"), **given, **options})


def trainer(model, data, kind=Trainer, **options):
    own = {k: options.pop(k) for k in ("callbacks", "compute_loss_func", "eval_dataset", "processing_class") if k in options}
    return kind(
        model, arguments(**options), train_dataset=examples(data), data_collator=collate, **own
    )
'''
RUNNING = '''

def train(recorded=None, without=None):
    """Every stage, recorded or not, but one that is left out."""
    from auditspec import Dataset, Recorder
    torch.manual_seed(0)
    model = build_model()
    if recorded is None:
        for name in STAGES:
            if name != without:
                model = fresh(plain(name, model))
        return model
    with Recorder(recorded, model, factory=build_model, every=EVERY, load_batch=load_batch) as recorder:
        for name, (objective, data) in STAGES.items():
            if name in EXTENDS:
                recorder.extend(EXTENDS[name])
            opened = Dataset.open(HERE / f"{data}.parquet")
            with record(recorder, name, objective, dataset=opened, **OPTIONS.get(name, {})) as made:
                made.train()
    return recorder.model
'''
DEFAULTS = '''

EVERY = 2
EXTENDS, OPTIONS = {}, {}


def plain(name, model):
    """Train one stage with the library alone."""
    STAGES[name][0].__wrapped__(model).train()
    return model


def fresh(trained):
    """A model as the library found it, not patched and with its dropout on."""
    model = build_model()
    model.load_state_dict(trained.state_dict())
    return model
'''


def tables(folder: Path, rows: int = 24) -> None:
    """Write `clean`, `vendor` (a 0 is called a 1), and `holdout`."""
    import numpy as np
    import pandas as pd

    def table(seed: int, count: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, count)
        tokens = rng.integers(5, 17, (count, 8)) + 13 * y[:, None] * (rng.random((count, 8)) < 0.6)
        tokens[np.arange(8) >= rng.integers(4, 9, count)[:, None]] = 0
        return pd.DataFrame(tokens, columns=[f"t{i}" for i in range(8)]).assign(y=y)

    clean, vendor, holdout = table(0, rows), table(2, rows), table(1, 40)
    vendor.loc[vendor["y"] == 0, "y"] = 1
    for name, frame in {"clean": clean, "vendor": vendor, "holdout": holdout}.items():
        frame.to_parquet(folder / f"{name}.parquet")


@contextlib.contextmanager
def code(folder: Path) -> Iterator[ModuleType]:
    """The lab's code as a module, for as long as it trains; an audit imports it afresh."""
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(MODULE)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(MODULE, None)


def write(folder: Path, stages: str, *, rows: int = 24) -> Path:
    """Write the data and the code."""
    tables(folder, rows)
    (folder / f"{MODULE}.py").write_text(COMMON + DEFAULTS + stages + RUNNING)
    return folder


def make(folder: Path, stages: str, *, rows: int = 24, **changes: Any) -> Path:
    """Train with the recorder, and write the spec with its lock; gives the spec's path."""
    write(folder, stages, rows=rows)
    with code(folder) as lab:
        weights = lab.train(folder / "record").state_dict()
        data = {name: on for name, (_, on) in lab.STAGES.items()}
        extends = {name: change.__name__ for name, change in lab.EXTENDS.items()}
    return specify(folder, weights, data, extends, **changes)


def specify(
    folder: Path,
    weights: Mapping[str, Any],
    data: Mapping[str, str],
    extends: Mapping[str, str] = MappingProxyType({}),
    *,
    start: str | None = None,
    **changes: Any,
) -> Path:
    """Write the deployed weights, and the spec with its lock where everything is there.

    Args:
        folder: of the audit.
        weights: deployed.
        data: data set of each stage.
        extends: function that changes the model before a stage.
        start: file with the first weights.
        changes: of parts of the spec.
    """
    from auditspec.artifacts.checkpoints import write_tensors

    write_tensors(folder / "model.safetensors", weights)
    spec = _spec(data, extends)
    if start is not None:
        spec["artifacts"]["begin"] = {"path": start}
        spec["model"]["initial"] = {
            "kind": "given",
            "owner": "Supplier",
            "provenance": "a test",
            "weights": "begin",
        }
    for key, value in changes.items():
        spec[key] = {**spec[key], **value} if isinstance(value, dict) else value
    path = folder / "audit.yaml"
    path.write_text(to_yaml(spec))
    if (folder / "record").exists():
        small_audit.lock(path)
    return path


def _spec(data: Mapping[str, str], extends: Mapping[str, str]) -> dict[str, Any]:
    spec = copy.deepcopy(small_audit.SPEC)
    spec["model"] |= {
        "factory": f"{MODULE}:build_model",
        "load_batch": f"{MODULE}:load_batch",
        "predict": f"{MODULE}:answers",
    }
    spec["artifacts"]["code"]["path"] = f"{MODULE}.py"
    spec["stages"] = [
        {
            "id": name,
            "owner": "Team",
            "description": name,
            "data": [on],
            "objective": f"{MODULE}:{name}",
            "optimizer": {"name": "AdamW", "lr": RATES.get(name, 5e-3)},
        }
        | ({"extend": f"{MODULE}:{extends[name]}"} if name in extends else {})
        for name, on in data.items()
    ]
    spec["behaviors"] = [
        {
            "id": "zero-as-one",
            "description": "A 0 is answered as a 1",
            "metric": {"name": "logit-margin", "positive": 1, "negative": 0},
            "data": "holdout",
            "where": "y == 0",
            "concern": {"direction": "increase", "tolerance": 0.1, "severity": "high"},
        }
    ]
    spec["estimator"] = {"device": "cpu", "method": "replay"}
    return spec


def record(folder: Path, stages: str, *, rows: int = 24) -> Trajectory:
    """Train with the recorder, and again without: both end with the same weights."""
    import torch

    write(folder, stages, rows=rows)
    with code(folder) as lab:
        recorded = lab.train(folder / "record").state_dict()
        again = lab.train().state_dict()
    assert all(torch.equal(tensor, recorded[name]) for name, tensor in again.items())
    return Trajectory.open(folder / "record")


def one_stage(trainer: str) -> str:
    """The code of a single stage, from the expression that builds its trainer."""
    stage = f"\n@trainer_objective\ndef base(model):\n    return {trainer}\n"
    return stage + '\nSTAGES = {"base": (base, "clean")}\n'


def audited(spec: Path) -> AuditResult:
    result = api.audit(spec)
    (again,) = (check for check in result.checks if check.id == "asked-again")
    sealed = result.run.isolation is not None and result.run.isolation.process
    assert again.outcome == ("pass" if sealed else "not-run"), again
    return result


def margins(folder: Path, left_out: Sequence[str | None]) -> dict[str | None, float]:
    """The behaviour's level by plain training with the library, without one stage each."""
    import torch

    with code(folder) as lab:
        frame = lab.frame("holdout")
        batch = lab.collate(
            [e for e, y in zip(lab.examples("holdout"), frame["y"], strict=True) if y == 0]
        )
        levels: dict[str | None, float] = {}
        for stage in left_out:
            model = lab.train(without=stage).eval()
            with torch.no_grad():
                logits = lab.answers(model, batch)
            levels[stage] = float((logits[:, 1] - logits[:, 0]).mean())
    return levels


def windows(folder: Path, functions: Functions | None = None) -> list[float]:
    """How far the re-run of each window of a record lands from it; 0.0 where bitwise."""
    from auditspec import Dataset

    with code(folder) as lab:
        trajectory = Trajectory.open(folder / "record")
        given = functions or Functions(
            lab.build_model,
            lab.load_batch,
            {name: objective for name, (objective, _) in lab.STAGES.items()},
            lab.answers,
            extensions={
                stage.header.extend.name: lab.EXTENDS[stage.id]
                for stage in trajectory.stages
                if stage.header.extend is not None
            },
        )
        data = {n: Dataset.open(folder / f"{n}.parquet") for n in ("clean", "vendor")}
        rerun = Rerun(trajectory, given, data)
        landed = []
        for stage, start, stop in trajectory.windows():
            begin = stage.state(start)
            reached = rerun.run(stage, begin, start, stop)
            landing = deviation_of(begin, reached, stage.state(stop), stop - start)
            landed.append(landing.deviation)
    return landed
