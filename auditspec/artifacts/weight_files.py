"""Which files of a folder hold weights, told by their names; without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from auditspec.artifacts import strict_json
from auditspec.artifacts.files import read_regular
from auditspec.artifacts.manifest import DISTRIBUTED
from auditspec.artifacts.tensor_header import SUFFIX, TensorEntry, read_entries
from auditspec.errors import EvidenceError

Entry = TypeVar("Entry")
ORIGINAL = "_orig_mod."
"""What torch.compile puts before the names of a compiled module."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
"""Endings of files by `torch.save`."""
SUFFIXES = (SUFFIX, *PICKLES)
INDEX = ".index.json"
ADAPTER_CONFIG = "adapter_config.json"
MAIN = (
    "model.safetensors.index.json",
    "model.safetensors",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Files with the weights of a folder, as transformers and peft name them; the first that is there is read."""


def is_index(path: Path) -> bool:
    """Whether a file says which shard holds which tensor."""
    return path.name.endswith(INDEX)


def holds_weights(path: Path) -> bool:
    """Whether a file or folder is one of weights, by names alone."""
    if not path.is_dir():
        return path.suffix in SUFFIXES or is_index(path)
    if (path / DISTRIBUTED).is_file():
        return True
    try:
        main_file(path, [entry.name for entry in path.iterdir() if entry.is_file()])
    except EvidenceError:
        return False
    return True


def main_file(folder: Path, files: Sequence[str]) -> str:
    """The file with a folder's weights, or the index of its shards.

    Args:
        folder: for messages.
        files: the folder's files, relative to it.

    Raises:
        EvidenceError: if there is none, or more than one might be it.
    """
    here = [name for name in files if "/" not in name]
    known = next((name for name in MAIN if name in here), None)
    if known is not None:
        return known
    indices = [name for name in here if is_index(Path(name))]
    weights = indices or [name for name in here if Path(name).suffix == SUFFIX]
    weights = weights or [name for name in here if Path(name).suffix in PICKLES]
    if len(weights) == 1:
        return weights[0]
    if weights:
        raise EvidenceError(
            f"{folder}: which of its files holds the weights? {', '.join(sorted(weights)[:5])}",
            "name the file itself, or keep the index of the shards beside them",
        )
    raise EvidenceError(
        f"{folder}: holds no weights (one of {', '.join(MAIN[:3])}, …)", "name a folder that does"
    )


def shards_of(index: bytes, path: Path) -> dict[str, str]:
    """The shard of each tensor, by an index.

    Args:
        index: the bytes of `….index.json`.
        path: its path, for messages.

    Raises:
        EvidenceError: if it is no such index, or names anything but plain files of its own folder.
    """
    value = strict_json.parse(index, str(path))
    shards = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise EvidenceError(f"{path}: holds no weight_map of tensors to files", "restore the file")
    for name in shards.values():
        if Path(name).name != name or name.startswith(".") or "\\" in name:
            raise EvidenceError(
                f"{path}: names {name!r} as a shard, which is no file of its folder",
                "shards lie beside their index",
            )
        if Path(name).suffix not in SUFFIXES:
            raise EvidenceError(
                f"{path}: names {name!r} as a shard, which is no file of weights",
                f"shards end in {', '.join(SUFFIXES)}",
            )
    return dict(shards)


def read_all_entries(path: Path) -> dict[str, TensorEntry] | None:
    """Every tensor of a file, or of a folder's shards, by the headers; None where that takes unpickling.

    Raises:
        EvidenceError: as `tensor_header.read_entries` and `main_file`, or where a shard is missing.
    """
    if path.is_dir():
        if (path / DISTRIBUTED).is_file():
            return None
        path = path / main_file(path, [entry.name for entry in path.iterdir()])
    if path.suffix == SUFFIX:
        return read_entries(path)
    if not is_index(path):
        return None
    shards = shards_of(read_regular(path), path)
    if any(Path(name).suffix != SUFFIX for name in shards.values()):
        return None
    entries: dict[str, TensorEntry] = {}
    for name in sorted(set(shards.values())):
        if not (path.parent / name).exists():
            raise EvidenceError(f"{path}: its shard {name} is missing", "restore the file")
        entries |= read_entries(path.parent / name)
    return entries


def fitted(
    tensors: Mapping[str, Entry], names: Collection[str], ties: Mapping[str, str]
) -> dict[str, Entry]:
    """Tensors under a model's names, as `aligned`, those that it shares under their first name too.

    Args:
        tensors: as a file names them.
        names: of the model's parameters; a shared one once.
        ties: second names of shared ones, each with the first.
    """
    tied = {*ties, *ties.values()}
    own = aligned(tensors, [n for n in names if n not in tied] or list(names))
    found = dict(tensors) if own is None else own[0]
    for second, first in ties.items():
        if second in found:
            found.setdefault(first, found[second])
    return found


def aligned(
    tensors: Mapping[str, Entry], names: Collection[str]
) -> tuple[dict[str, Entry], str] | None:
    """Tensors under the model's names, where they have others only by a wrapper, with what was taken off.

    What torch.compile puts before names is taken off, and one prefix that all have, such as `module.` of
    data parallelism or `model.` of a module that holds the model; or such a prefix is put on, said with a
    plus. None where that does not give every one of `names`, or there is more than one way.
    """
    wanted = set(names)
    if wanted <= tensors.keys():
        return dict(tensors), ""
    plain = {name.replace(ORIGINAL, ""): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        return None
    taken = ORIGINAL if plain.keys() != tensors.keys() else ""
    if wanted <= plain.keys():
        return plain, taken
    anchor = max(wanted, key=len)
    off = {name[: -len(anchor)] for name in plain if name.endswith("." + anchor)}
    off = {prefix for prefix in off if all(prefix + name in plain for name in wanted)}
    if len(off) == 1:
        (prefix,) = off
        return {name.removeprefix(prefix): t for name, t in plain.items()}, taken + prefix
    on = {anchor[: -len(name)] for name in plain if anchor.endswith("." + name)}
    on = {
        prefix
        for prefix in on
        if all(name.startswith(prefix) and name.removeprefix(prefix) in plain for name in wanted)
    }
    if off or len(on) != 1:
        return None
    (prefix,) = on
    return {prefix + name: t for name, t in plain.items()}, f"{taken}+{prefix}"
