"""Specs with one thing wrong: what is changed, where, and whether that does harm.

Places come from PyYAML's own marks, not from the reader that is under test. A change is harmful where
the spec then contradicts the format, itself, the record, the code, the data, or this machine; a change
that is as good a declaration as the one before (another owner, another severity) is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Mutation:
    """A changed spec, the line (from 1) of what was changed, and what must come of it."""

    name: str
    text: str
    line: int
    harmful: bool = True


@dataclass(frozen=True)
class Leaf:
    """A key or a scalar of the document."""

    path: Path
    node: Any
    is_key: bool = False

    @property
    def line(self) -> int:
        return int(self.node.start_mark.line) + 1


class Document:
    """A spec's text with its leaves."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.root = yaml.compose(text, yaml.SafeLoader)
        self.data = yaml.safe_load(text)
        self.leaves = list(_leaves(self.root, ()))

    def scalars(self, *pattern: str) -> Iterator[Leaf]:
        """The scalars at paths of a pattern; `*` stands for any part."""
        for leaf in self.leaves:
            parts = list(map(str, leaf.path))
            fits = len(parts) == len(pattern) and all(map(_fits, pattern, parts))
            if fits and not leaf.is_key:
                yield leaf

    def put(self, leaf: Leaf, new: str, why: str, *, harmful: bool = True) -> Mutation:
        """The spec with another text in place of a key or scalar."""
        start, end = leaf.node.start_mark.index, leaf.node.end_mark.index
        name = f"{why}: {'.'.join(map(str, leaf.path))} {self.text[start:end]} -> {new}"
        return Mutation(name, self.text[:start] + new + self.text[end:], leaf.line, harmful)

    def lines(self, first: int, last: int) -> str:
        """Lines from `first` to before `last`, counted from 1."""
        return "".join(self.text.splitlines(keepends=True)[first - 1 : last - 1])


def _fits(wanted: str, part: str) -> bool:
    return wanted in ("*", part)


def _leaves(node: Any, path: Path) -> Iterator[Leaf]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield Leaf((*path, key.value), key, is_key=True)
            yield from _leaves(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _leaves(item, (*path, index))
    else:
        yield Leaf(path, node)


def typo(word: str) -> str:
    """Two neighbouring letters exchanged, or the last one doubled where all are alike."""
    for i in range(len(word) // 2, len(word) - 1):
        if word[i] != word[i + 1] and word[i : i + 2].isalnum():
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word + word[-1]


NAMES = (
    "auditspec",
    "model.factory",
    "model.load_batch",
    "model.predict",
    "model.checkpoint",
    "model.initial.kind",
    "model.initial.weights",
    "model.initial.reference",
    "artifacts.*.path",
    "artifacts.*.label",
    "stages.*.id",
    "stages.*.data.*",
    "stages.*.objective",
    "stages.*.extend",
    "stages.*.reference",
    "stages.*.optimizer.name",
    "stages.*.optimizer.schedule",
    "stages.*.optimizer.state",
    "behaviors.*.data",
    "behaviors.*.where",
    "behaviors.*.skill",
    "behaviors.*.metric.name",
    "behaviors.*.metric.entrypoint",
    "behaviors.*.concern.direction",
    "behaviors.*.concern.severity",
    "estimator.method",
    "estimator.device",
    "policy.fail_on.*",
    "policy.inconclusive",
    "policy.suppress.*.behavior",
    "signing.key",
    "signing.certificate",
)
"""Every value that names something, or is one of a few words."""
NUMBERS = (
    "stages.*.optimizer.lr",
    "stages.*.optimizer.momentum",
    "stages.*.optimizer.weight_decay",
    "stages.*.optimizer.eps",
    "stages.*.optimizer.betas.*",
)
"""Every number that the record holds too."""
FREE = (
    "audit.title",
    "auditor.*",
    "system.name",
    "system.owner",
    "system.intended_use",
    "stages.*.owner",
    "stages.*.description",
    "behaviors.*.description",
)
"""Words of the auditor's own."""


def mutations(text: str, functions: tuple[str, ...], columns: tuple[str, ...]) -> list[Mutation]:
    """Every change of a spec, each under a name of its own.

    Args:
        text: the spec.
        functions: entry points of its code, to be exchanged for one another.
        columns: columns of its data that hold no classes, or other ones.
    """
    document = Document(text)
    made = [
        *_misspelled(document),
        *_numbers(document),
        *_types(document),
        *_exchanged(document, functions, columns),
        *_slices(document),
        *_keys(document),
        *_stages(document),
        *_harmless(document),
    ]
    return list({m.text: m for m in made if m.text != text}.values())


def _misspelled(document: Document) -> Iterator[Mutation]:
    for pattern in NAMES:
        for leaf in document.scalars(*pattern.split(".")):
            value = str(leaf.node.value)
            if pattern.endswith("where"):
                column = value.split()[0]
                yield document.put(leaf, value.replace(column, column + "s", 1), "unknown column")
            else:
                quote = '"' if leaf.node.style == '"' else ""
                yield document.put(leaf, f"{quote}{typo(value)}{quote}", "misspelled")


def _numbers(document: Document) -> Iterator[Mutation]:
    for pattern in NUMBERS:
        for leaf in document.scalars(*pattern.split(".")):
            number = float(leaf.node.value)
            for factor in (10, 0.1, 1.01):
                yield document.put(leaf, repr(number * factor), "another number")
            yield document.put(leaf, repr(-number), "another number")
    for key in ("positive", "negative", "class"):
        for leaf in document.scalars("behaviors", "*", "metric", key):
            value = int(leaf.node.value)
            for new in (88, -1, 10 + value):
                yield document.put(leaf, str(new), "no such class")
    for index, behavior in enumerate(document.data["behaviors"]):
        if behavior["metric"]["name"] in ("rate", "accuracy"):
            for leaf in document.scalars("behaviors", str(index), "concern", "*"):
                if leaf.path[-1] in ("tolerance", "limit"):
                    yield document.put(leaf, "1.2", "beyond a share")
                    yield document.put(leaf, "-0.1", "beyond a share")
                if leaf.path[-1] == "tolerance" and float(leaf.node.value) >= 0.1:
                    yield document.put(leaf, str(float(leaf.node.value) * 10), "ten times")


def _types(document: Document) -> Iterator[Mutation]:
    for leaf in document.leaves:
        if leaf.is_key or leaf.node.tag == "tag:yaml.org,2002:timestamp":
            continue
        if leaf.node.tag in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:int"):
            if leaf.node.style is None:
                yield document.put(leaf, f'"{leaf.node.value}"', "text for a number")
                yield document.put(leaf, "[1]", "a list for a number")
        elif leaf.path[-1] in ("id", "path", "objective", "data", "where", "name", "version"):
            yield document.put(leaf, "7", "a number for text")
            yield document.put(leaf, "{a: b}", "a mapping for text")


def _exchanged(
    document: Document, functions: tuple[str, ...], columns: tuple[str, ...]
) -> Iterator[Mutation]:
    data = document.data
    for key in ("factory", "load_batch", "predict"):
        for leaf in document.scalars("model", key):
            for other in functions:
                if other != leaf.node.value:
                    yield document.put(leaf, other, "another function")
    for pattern in (("stages", "*", "objective"), ("stages", "*", "extend")):
        for leaf in document.scalars(*pattern):
            for other in functions:
                if other != leaf.node.value:
                    yield document.put(leaf, other, "another function")
    for leaf in document.scalars("model", "checkpoint"):
        for name in data["artifacts"]:
            if name != leaf.node.value:
                yield document.put(leaf, name, "another artifact")
    for leaf in document.scalars("stages", "*", "data", "*"):
        for name in data["artifacts"]:
            if name != leaf.node.value:
                yield document.put(leaf, name, "another artifact")
    for leaf in document.scalars("behaviors", "*", "data"):
        for name in ("code", "record", data["model"]["checkpoint"]):
            yield document.put(leaf, name, "another artifact")
    for leaf in document.scalars("artifacts", "*", "label"):
        for column in columns:
            yield document.put(leaf, column, "another column")
    for leaf in document.scalars("artifacts", "*", "path"):
        for name, artifact in data["artifacts"].items():
            if artifact["path"] != leaf.node.value:
                yield document.put(leaf, artifact["path"], f"the path of {name}")
    for leaf in document.scalars("stages", "*", "optimizer", "name"):
        for other in ("Adam", "RMSprop", "adamw"):
            yield document.put(leaf, other, "another optimizer")
    for leaf in document.scalars("stages", "*", "optimizer", "schedule"):
        other = "constant" if leaf.node.value == "cosine" else "cosine"
        yield document.put(leaf, other, "another schedule")
    for leaf in document.scalars("stages", "*", "optimizer", "state"):
        yield document.put(leaf, "carry", "another state")
    for leaf in document.scalars("estimator", "device"):
        for other in ("cuda:97", "gpu"):
            yield document.put(leaf, other, "another device")


def _slices(document: Document) -> Iterator[Mutation]:
    for leaf in document.scalars("behaviors", "*", "where"):
        value = leaf.node.value
        column, operator, literal = value.split()[:3]
        rest = value.split(" ", 3)[3:]
        for new in ("33", f'"{literal}"', "true", "1e9", "-1e9"):
            term = " ".join([column, operator if operator in ("==", "!=") else ">", new, *rest])
            yield document.put(leaf, f"'{term}'", "a value that no row has")
        for broken in (f"{column} = {literal}", f"{column} ==", f"max({column}) > 1"):
            yield document.put(leaf, broken, "not of the grammar")
        if '"' in value:
            text = value.split('"')[1]
            yield document.put(leaf, value.replace(text, typo(text)), "a value that no row has")
        both = f"{column} == 0 and {column} == 1" if operator == "==" else f"{column} > 1e9"
        yield document.put(leaf, both, "no row")


def _keys(document: Document) -> Iterator[Mutation]:
    required = {"id", "owner", "description", "data", "objective", "optimizer", "metric", "concern"}
    required |= {
        "name",
        "lr",
        "path",
        "factory",
        "load_batch",
        "predict",
        "checkpoint",
        "direction",
    }
    for leaf in document.leaves:
        if not leaf.is_key:
            continue
        named_freely = leaf.path[0] == "artifacts" and len(leaf.path) == 2
        if not named_freely or leaf.path[-1] in ("code", "record"):
            yield document.put(leaf, typo(str(leaf.path[-1])), "misspelled key")
        if leaf.path[-1] in required and leaf.path[0] in ("stages", "behaviors", "model"):
            yield document.put(leaf, "x-" + str(leaf.path[-1]), "removed key")


def _stages(document: Document) -> Iterator[Mutation]:
    """Whole stages left out, exchanged, repeated, and added."""
    (stages,) = (v for k, v in document.root.value if k.value == "stages")
    starts = [item.start_mark.line + 1 for item in stages.value]
    ends = [*starts[1:], _end(document, "stages")]
    blocks = [document.lines(a, b) for a, b in zip(starts, ends, strict=True)]
    before = document.lines(1, starts[0])
    after = document.lines(ends[-1], len(document.text.splitlines()) + 1)

    def build(name: str, order: list[str], line: int) -> Mutation:
        return Mutation(name, before + "".join(order) + after, line)

    for i in range(len(blocks)):
        left = [b for j, b in enumerate(blocks) if j != i]
        line = starts[i] if i < len(left) else starts[i - 1]
        yield build(f"stage {i} left out", left, line)
        first = blocks[i].splitlines()[0]
        extra = blocks[i].replace(first, first + "-more", 1)
        yield build(f"stage {i} twice", [*blocks[: i + 1], extra, *blocks[i + 1 :]], ends[i])
        repeated = [*blocks[: i + 1], blocks[i], *blocks[i + 1 :]]
        yield build(f"stage {i} repeated", repeated, ends[i])
        for j in range(i):
            order = list(blocks)
            order[i], order[j] = order[j], order[i]
            yield build(f"stages {j} and {i} exchanged", order, starts[j])


def _end(document: Document, section: str) -> int:
    """The line after the last one of a top-level section; comments above the next belong to it."""
    keys = [k.start_mark.line + 1 for k, _ in document.root.value]
    names = [k.value for k, _ in document.root.value]
    after = keys[names.index(section) + 1]
    lines = document.text.splitlines()
    while not lines[after - 2].strip() or lines[after - 2].lstrip().startswith("#"):
        after -= 1
    return int(after)


def _harmless(document: Document) -> Iterator[Mutation]:
    for pattern in FREE:
        for leaf in document.scalars(*pattern.split(".")):
            yield document.put(leaf, '"Somebody, or something"', "other words", harmful=False)
    for leaf in document.scalars("behaviors", "*", "concern", "severity"):
        yield document.put(leaf, "critical", "another severity", harmful=False)
    for leaf in document.scalars("estimator", "budget", "gradients"):
        yield document.put(leaf, "123456", "another budget", harmful=False)
    for leaf in document.scalars("stages", "*", "optimizer", "schedule"):
        yield document.put(leaf, "recorded", "less is claimed", harmful=False)
    yield Mutation("a comment", "# a comment\n" + document.text, 1, harmful=False)
