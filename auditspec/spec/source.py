"""Reading a spec: bytes to a `Spec` whose every value knows its line and column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from auditspec.errors import Problem, SpecError, UsageError
from auditspec.spec.models import Spec
from auditspec.spec.rules import broken_rules
from auditspec.spec.suggest import did_you_mean
from auditspec.spec.tree import MAX_BYTES, Location, Node, Place, read
from auditspec.spec.validation import validate
from auditspec.spec.versions import LATEST, VERSION_KEY, VERSIONS
from auditspec.urls import is_url


@dataclass(frozen=True)
class LoadedSpec:
    """A valid spec with the bytes that it was read from."""

    spec: Spec
    text: bytes
    path: Path
    root: Node = field(repr=False)
    """The tree that gives every value its place."""
    copies: Mapping[str, Path] = field(default_factory=dict)
    """Where artifacts lie on this machine whose paths are URLs, once they were fetched."""

    def where(self, name: str) -> Path:
        """Where an artifact lies on this machine."""
        path = self.spec.artifacts[name].path
        return self.copies[name] if is_url(path) else self.path.parent / path

    def place(self, location: Location, *, key: bool = False) -> Place:
        """Line and column of the value at a location, or of its key.

        Where the spec leaves the value out, the place is that of the mapping around it.
        """
        node = self.root.nearest(location)
        return node.key_place if key else node.place

    def failing_on(self, severity: str) -> LoadedSpec:
        """The same spec with another policy: findings from a severity on fail, or `never`."""
        rules = () if severity == "never" else (f"severity>={severity}",)
        policy = self.spec.policy.model_copy(update={"fail_on": rules})
        return replace(self, spec=self.spec.model_copy(update={"policy": policy}))

    def problem(
        self, code: str, message: str, location: Location, *, hint: str = "", key: bool = False
    ) -> Problem:
        """A problem at a location of this spec."""
        return Problem(code, message, str(self.path), *self.place(location, key=key), hint)


def load(path: Path) -> LoadedSpec:
    """Read and check a spec; nothing that it names is opened.

    Raises:
        SpecError: with every problem of the spec, sorted by place.
        UsageError: if the file is missing or cannot be read.
    """
    text = read_file(path)
    return parse(text, path)


def parse(text: bytes, path: Path) -> LoadedSpec:
    """Check a spec that is already read; `path` names it in problems.

    Raises:
        SpecError: with every problem of the spec, sorted by place.
    """
    file = str(path)
    root, problems = read(text, file)
    if root is None:
        raise SpecError(in_order(problems))
    spec_type = _type_of(root, file, problems)
    spec, wrong_fields = validate(root, spec_type, file)
    wrong_rules = [
        Problem(
            broken.code,
            broken.message,
            file,
            *(node.key_place if broken.at_key else node.place),
            broken.hint,
        )
        for broken in broken_rules(root.plain())
        if (node := root.nearest(broken.location)).sound
    ]
    if spec is None or problems or wrong_rules:
        raise SpecError(in_order([*problems, *wrong_fields, *wrong_rules]))
    return LoadedSpec(spec, text, path, root)


def _type_of(root: Node, file: str, problems: list[Problem]) -> type[Spec]:
    """The model of the version that a spec declares; of the latest where it declares none."""
    declared = root.child(VERSION_KEY)
    if declared is None or not declared.sound or not isinstance(declared.content, str):
        return VERSIONS[LATEST]  # its field errors tell what is wrong
    version = declared.content
    if version not in VERSIONS:
        message = f"unknown spec version {version!r}"
        hint = did_you_mean(version, VERSIONS, "known versions")
        unknown = Problem("AS016", message, file, *declared.place, hint)
        raise SpecError(in_order([*problems, unknown]))
    return VERSIONS[version]


def read_file(path: Path) -> bytes:
    """The first bytes of a file, one more than a spec may have.

    Raises:
        UsageError: if there is no such file, or it cannot be read.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name the spec's file, for example audit.yaml")
    if not path.is_file():
        raise UsageError(f"{path}: no such file", "`auditspec init` writes a spec to start from")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "check its permissions"
        ) from None


def in_order(problems: list[Problem]) -> list[Problem]:
    """Problems sorted by place."""
    return sorted(problems, key=lambda problem: (problem.line, problem.column))
