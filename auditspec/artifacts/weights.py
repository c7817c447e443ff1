"""Weights as they are shipped: one file or a folder, in the forms that libraries save.

| form | what it is |
|---|---|
| `safetensors` | one file, or a folder with `model.safetensors` |
| `sharded` | a folder with `….index.json`, whose shards are files of safetensors or by `torch.save` |
| `torch` | one file by `torch.save`, Lightning's `.ckpt` among them: a state dict, or one within dictionaries |
| `distributed` | a folder by torch.distributed.checkpoint |
| `adapter` | a folder by peft: `adapter_model.safetensors` and `adapter_config.json`; the base model is not in it |

Pickles are read by `pickled` only. Every file of a folder counts in its digest, those that are not read too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from auditspec.artifacts import strict_json
from auditspec.artifacts.checkpoints import read_tensors
from auditspec.artifacts.digest import check, read_verified
from auditspec.artifacts.manifest import Manifest
from auditspec.artifacts.pickled import is_distributed, read_saved
from auditspec.artifacts.weight_files import (
    ADAPTER_CONFIG,
    aligned,
    is_index,
    main_file,
    shards_of,
)
from auditspec.errors import EvidenceError

Form = Literal["safetensors", "sharded", "torch", "distributed", "adapter"]
WITHIN = ", "


@dataclass(frozen=True)
class Weights:
    """The tensors of a file or folder, by the names that it gives them."""

    tensors: dict[str, Tensor]
    form: Form
    entry: str = ""
    """Keys under which the state dict stands in the file, joined by dots; empty where it is the whole file."""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """`adapter_config.json`, of an adapter."""


def read_weights(
    path: Path,
    expected: str | None = None,
    *,
    names: Collection[str] = (),
    entry: str | None = None,
) -> Weights:
    """The weights at a path, on the CPU.

    Args:
        path: a file or folder of one of the forms.
        expected: the digest of exactly the bytes that are read: of the file, or of all files of the folder.
        names: tensors that the model has. Where a file holds several state dicts, the one with all of these
            is taken.
        entry: the keys of the one to take, joined by dots, in their place.

    Raises:
        EvidenceError: if it is missing, unsafe to read, of none of the forms, not what `expected` says, or
            damaged, a shard is missing, the index names files that are no shards of the folder, or no state
            dict, or more than one, is the model's.
    """
    if is_distributed(path):
        saved = read_saved(path, expected)
        tensors, place = state_dict_in(saved, path, names, entry)
        return Weights(tensors, "distributed", place)
    if is_index(path):
        raise EvidenceError(
            f"{path}: is the index of shards, which hold the weights",
            f"name the folder, {path.parent.name}: its digest covers the shards too",
        )
    if path.is_dir():
        return _of_folder(path, expected, names, entry)
    if path.suffix == ".safetensors":
        return Weights(read_tensors(path, expected), "safetensors")
    tensors, place = state_dict_in(read_saved(path, expected), path, names, entry)
    return Weights(tensors, "torch", place)


def _of_folder(
    path: Path, expected: str | None, names: Collection[str], entry: str | None
) -> Weights:
    manifest = Manifest.scan(path)
    if expected is not None:
        check(path, expected, manifest.digest)
    name = main_file(path, [file.path for file in manifest.files])
    if is_index(path / name):
        return _sharded(path, name, manifest)
    weights = read_weights(path / name, manifest.entry(name).digest, names=names, entry=entry)
    if ADAPTER_CONFIG not in {file.path for file in manifest.files}:
        return weights
    digest = manifest.entry(ADAPTER_CONFIG).digest
    config = strict_json.parse(
        read_verified(path / ADAPTER_CONFIG, digest), str(path / ADAPTER_CONFIG)
    )
    if not isinstance(config, dict):
        raise EvidenceError(f"{path / ADAPTER_CONFIG}: not an object", "restore the file")
    return Weights(weights.tensors, "adapter", weights.entry, config)


def _sharded(folder: Path, index: str, manifest: Manifest) -> Weights:
    """Every shard that the index names, and nothing but what it says of them."""
    data = read_verified(folder / index, manifest.entry(index).digest)
    where = shards_of(data, folder / index)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(where.values())):
        if not (folder / shard).exists():
            raise EvidenceError(
                f"{folder / index}: its shard {shard} is missing", "restore the file"
            )
        found = read_weights(folder / shard, manifest.entry(shard).digest).tensors
        claimed = {name for name, file in where.items() if file == shard}
        if found.keys() != claimed:
            odd = sorted(found.keys() ^ claimed)
            raise EvidenceError(
                f"{folder / shard}: its tensors are not those that {index} says it holds: {odd[0]}"
                + (f", and {len(odd) - 1} more" if len(odd) > 1 else ""),
                "restore the shards that were saved together with the index",
            )
        tensors |= found
    return Weights(tensors, "sharded")


# --- a state dict within other things ----------------------------------------------------------------


def state_dict_in(
    saved: Any, path: Path, names: Collection[str], entry: str | None
) -> tuple[dict[str, Tensor], str]:
    """The one state dict in a saved value that is the model's, with its keys joined by dots.

    Args:
        saved: by `read_saved`.
        path: where from, for messages.
        names: tensors that the model has; empty where there is one state dict.
        entry: the keys of the one to take, joined by dots, in their place.

    Raises:
        EvidenceError: if there is none, or more than one.
    """
    candidates = dict(_state_dicts(saved, ()))
    if entry is not None:
        if entry not in candidates:
            known = WITHIN.join(filter(None, candidates)) or "none"
            raise EvidenceError(
                f"{path}: no state dict stands at {entry!r}", f"its state dicts: {known}"
            )
        return candidates[entry], entry
    fitting = {
        key: found
        for key, found in candidates.items()
        if not names or aligned(found, names) is not None
    }
    if len(fitting) == 1:
        ((key, found),) = fitting.items()
        return found, key
    if not candidates:
        raise EvidenceError(
            f"{path}: it is not a state dict: a dictionary of tensors by name, alone or within dictionaries",
            "save model.state_dict()",
        )
    told = WITHIN.join(
        f"{key or 'the file itself'} ({len(candidates[key])} tensors)"
        for key in (fitting or candidates)
    )
    if not fitting:
        raise EvidenceError(
            f"{path}: none of its state dicts has the model's tensors: {told}",
            "name the weights of the model that was recorded",
        )
    raise EvidenceError(
        f"{path}: more than one state dict has the model's tensors: {told}",
        "say which is deployed by model.conversion.entry, or ship it in a file by itself",
    )


def _state_dicts(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary of tensors by name; those of optimizers, which are numbered, are none."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return
    if value and all(isinstance(item, Tensor) for item in value.values()):
        yield ".".join(keys), value
        return
    for key, item in value.items():
        yield from _state_dicts(item, (*keys, key))
