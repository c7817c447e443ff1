"""What the audited code defines and imports, read from its syntax trees: nothing is executed.

Only what stands at the top of a module counts, under `if` and `try` too: it is what importing the
module defines and needs. Where the answer depends on running the code (`from x import *` of another
package, a module's `__getattr__`, decorators), the answer is that nothing is known against it.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import decode_source

from auditspec.artifacts.code import INIT, CodeBundle

ABSENT = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
"""What catches an import of something that is not installed."""
_DYNAMIC = frozenset({"globals", "vars", "exec", "setattr"})
_CONSTANTS = (ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.JoinedStr, ast.ListComp)
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Complaint:
    """Why a name of the code cannot be used as it is meant to be."""

    message: str
    word: str = ""
    """The part of the name that is unknown."""
    known: tuple[str, ...] = ()
    """What might have been meant by it."""
    remedy: str = ""
    missing: bool = True
    """The code has no such name; False: it has, and it is something else."""


@dataclass(frozen=True)
class Import:
    """An import that cannot work here."""

    name: str
    """The package, or the module or name of the code, that is not there."""
    place: str
    """file:line"""


@dataclass(frozen=True)
class _Module:
    """The names that a module defines at its top, and its unconditional imports."""

    tree: ast.Module
    names: dict[str, list[ast.stmt]] = field(default_factory=dict)
    stars: list[ast.ImportFrom] = field(default_factory=list)
    open: bool = False
    """It may define names that its text does not show."""


class Sources:
    """The syntax trees of a bundle's modules."""

    def __init__(self, bundle: CodeBundle) -> None:
        self.bundle = bundle
        self._read: dict[str, _Module | str] = {}

    @cached_property
    def tops(self) -> frozenset[str]:
        """Names under which the bundle's modules are imported, first parts only."""
        return frozenset(dotted.partition(".")[0] for dotted in self.bundle.modules)

    def complaint(
        self, entry_point: str, arguments: int, *, is_class: bool = False
    ) -> Complaint | None:
        """Why `module:name` cannot be called with so many arguments; None where nothing says so.

        Args:
            entry_point: `module:name`.
            arguments: positional arguments that it will be given.
            is_class: it must be a class; how that is called is not looked at.
        """
        module, _, name = entry_point.partition(":")
        if module not in self.bundle.modules:
            return Complaint(f"the code has no module {module!r}", module, self._modules_like(name))
        if self._climbs(module):
            message = f"module {module!r} imports relatively, which works only inside its package"
            inside = f"{self.bundle.package}.{module}"
            known = inside in self.bundle.modules
            remedy = f"did you mean {inside!r}?" if known else "pin its package: name the folder"
            return Complaint(message, remedy=remedy)
        found = self._resolve(module, name, frozenset())
        if not isinstance(found, list):
            return found
        complaints = [_callable(node, entry_point, arguments, is_class) for node in found]
        return None if None in complaints else complaints[-1]

    def unreadable(self, entry_points: Iterable[str]) -> dict[str, str]:
        """Modules that the entry points import and that are no Python, with file:line and reason."""
        reached = self._reached(entry_points)
        return {m: text for m in reached if isinstance(text := self._module(m), str)}

    def missing(self, entry_points: Iterable[str]) -> tuple[list[Import], list[Import]]:
        """What the entry points' modules import and is not there: packages, then parts of the code.

        Imports inside functions, under `if`, and under a `try` that catches their failure are not
        needed to import the module.
        """
        packages: dict[str, Import] = {}
        parts: list[Import] = []
        for dotted in self._reached(entry_points):
            module = self._module(dotted)
            if isinstance(module, str):
                continue
            for node in _needed_imports(module.tree.body):
                place = f"{self.bundle.modules[dotted]}:{node.lineno}"
                for target, name in self._targets(dotted, node):
                    top = target.partition(".")[0]
                    if not top:
                        parts.append(Import("a package above the code", place))
                    elif top not in self.tops:
                        if not _installed(top):
                            packages.setdefault(top, Import(top, place))
                    elif target not in self.bundle.modules:
                        parts.append(Import(target, place))
                    elif name and self._lacks(target, name):
                        parts.append(Import(f"{target}.{name}", place))
        return list(packages.values()), parts

    # --- modules

    def _module(self, dotted: str) -> _Module | str:
        """A module's names; a text that says where and why it cannot be read."""
        if dotted not in self._read:
            self._read[dotted] = self._parse(dotted)
        return self._read[dotted]

    def _parse(self, dotted: str) -> _Module | str:
        path = self.bundle.modules[dotted]
        if path is None:
            return _Module(ast.Module([], []))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its style
                tree = ast.parse(decode_source(self.bundle.contents[path]), path)
        except SyntaxError as error:
            return f"{path}:{error.lineno or 1}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"{path}:1: {error}"
        module = _Module(tree)
        is_open = False
        for node in _top_level(tree.body):
            for name in _bound(node):
                module.names.setdefault(name, []).append(node)
            if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
                module.stars.append(node)
            is_open |= isinstance(node, _Function) and node.name == "__getattr__"
            if not isinstance(node, _Function | ast.ClassDef):
                is_open |= _is_dynamic(node)
        return _Module(tree, module.names, module.stars, is_open)

    def _reached(self, entry_points: Iterable[str]) -> list[str]:
        """Modules that importing the entry points' modules executes, packages above them included."""
        wanted = [entry.partition(":")[0] for entry in entry_points]
        reached: dict[str, None] = {}
        while wanted:
            parts = wanted.pop().split(".")
            for end in range(1, len(parts) + 1):
                dotted = ".".join(parts[:end])
                if dotted in reached or dotted not in self.bundle.modules:
                    continue
                reached[dotted] = None
                module = self._module(dotted)
                if not isinstance(module, str):
                    for node in _needed_imports(module.tree.body):
                        for target, name in self._targets(dotted, node):
                            wanted += [target, f"{target}.{name}"] if name else [target]
        return list(reached)

    def _targets(self, dotted: str, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
        """The modules that an import names, each with the name taken from it (empty: none, or all)."""
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
            return
        target = self._origin(dotted, node)
        for alias in node.names:
            yield target, "" if alias.name == "*" else alias.name

    def _origin(self, dotted: str, node: ast.ImportFrom) -> str:
        """The module that `from … import` reads, absolute; empty where it lies above the code."""
        if not node.level:
            return node.module or ""
        path = self.bundle.modules[dotted]
        is_package = path is None or path.endswith(INIT)
        parts = dotted.split(".")
        keep = len(parts) - node.level + is_package
        if keep <= 0:
            return ""
        return ".".join([*parts[:keep], *([node.module] if node.module else [])])

    def _climbs(self, dotted: str) -> bool:
        """Whether a module imports from above all of the code under this name."""
        module = self._module(dotted)
        nodes = [] if isinstance(module, str) else _needed_imports(module.tree.body)
        return any(isinstance(n, ast.ImportFrom) and not self._origin(dotted, n) for n in nodes)

    # --- names

    def _lacks(self, dotted: str, name: str) -> bool:
        found = self._resolve(dotted, name, frozenset())
        return isinstance(found, Complaint) and found.missing

    def _resolve(
        self, dotted: str, name: str, seen: frozenset[str]
    ) -> list[ast.stmt] | Complaint | None:
        """The statements that may give a name of a module its value; None where that is not known."""
        module = self._module(dotted)
        if isinstance(module, str) or f"{dotted}:{name}" in seen:
            return None
        seen |= {f"{dotted}:{name}"}
        held: list[ast.stmt] = []
        complaint: Complaint | None = None
        for node in module.names.get(name, ()):
            found = self._followed(dotted, node, name, seen)
            if found is None:
                return None
            if isinstance(found, Complaint):
                complaint = found
            else:
                held += found
        if held or complaint:
            return held or complaint
        for star in module.stars:
            origin = self._origin(dotted, star)
            if origin not in self.bundle.modules:
                return None
            if not isinstance(found := self._resolve(origin, name, seen), Complaint):
                return found
        if f"{dotted}.{name}" in self.bundle.modules:
            message = f"{dotted}.{name} is a module, which cannot be called"
            remedy = f"name a function of it: {dotted}.{name}:…"
            return Complaint(message, remedy=remedy, missing=False)
        if module.open:
            return None
        public = (n for n, nodes in module.names.items() if not isinstance(nodes[-1], ast.Import))
        return Complaint(f"module {dotted!r} has no {name!r}", name, tuple(public))

    def _followed(
        self, dotted: str, node: ast.stmt, name: str, seen: frozenset[str]
    ) -> list[ast.stmt] | Complaint | None:
        """The same for one statement: imports are followed within the code."""
        elsewhere = f"{name!r} is a module, which cannot be called"
        if isinstance(node, ast.Import):
            return Complaint(elsewhere, remedy="name a function of the code", missing=False)
        if not isinstance(node, ast.ImportFrom):
            return [node]
        origin = self._origin(dotted, node)
        if origin.partition(".")[0] not in self.tops:
            if _is_namespace(self._module(dotted), name):
                return Complaint(elsewhere, remedy="name a function of the code", missing=False)
            return None
        if origin not in self.bundle.modules:
            return Complaint(f"the code has no module {origin!r}", origin, self._modules_like(name))
        alias = next(a for a in node.names if (a.asname or a.name) == name)
        return self._resolve(origin, alias.name, seen)

    def _modules_like(self, name: str) -> tuple[str, ...]:
        """Modules, those first that define a name."""
        held = [m for m, path in self.bundle.modules.items() if path]
        fits = [m for m in held if isinstance(s := self._module(m), _Module) and name in s.names]
        return tuple(fits or held)


def _callable(node: ast.stmt, entry_point: str, arguments: int, is_class: bool) -> Complaint | None:
    """Why what a statement makes of a name cannot be called so."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        alone = any(isinstance(target, ast.Name) for target in targets)  # not unpacked
        if alone and isinstance(node.value, _CONSTANTS):
            message = f"{entry_point} is a value, which cannot be called"
            return Complaint(message, remedy="name a function or class", missing=False)
        return None
    if is_class:
        if isinstance(node, _Function):
            return Complaint(f"{entry_point} is a function", remedy="name a class", missing=False)
        return None
    if isinstance(node, ast.AsyncFunctionDef):
        message = f"{entry_point} is asynchronous, and is called as a plain function"
        return Complaint(message, remedy="name one that is not", missing=False)
    if isinstance(node, ast.ClassDef):
        made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not made or node.decorator_list:
            return None
        return _arity(made[-1], entry_point, arguments, bound=1)
    return _arity(node, entry_point, arguments) if isinstance(node, ast.FunctionDef) else None


def _arity(
    function: ast.FunctionDef, entry_point: str, arguments: int, bound: int = 0
) -> Complaint | None:
    if function.decorator_list:
        return None
    accepted = function.args
    positional = len(accepted.posonlyargs) + len(accepted.args) - bound
    needed = positional - len(accepted.defaults)
    named = [
        a.arg for a, d in zip(accepted.kwonlyargs, accepted.kw_defaults, strict=True) if d is None
    ]
    most = None if accepted.vararg else positional
    if needed <= arguments and (most is None or arguments <= most) and not named:
        return None
    takes = (
        f"{needed}"
        if most == needed
        else f"{needed} to {most}"
        if most is not None
        else f"{needed} or more"
    )
    extra = f" and {', '.join(named)} by name" if named else ""
    message = f"{entry_point} takes {takes} arguments{extra}, and is called with {arguments}"
    return Complaint(message, remedy="name another function", missing=False)


def _is_namespace(module: _Module | str, name: str) -> bool:
    """Whether a module only ever reads attributes of a name, as of `nn` in `nn.Linear`."""
    if isinstance(module, str):
        return False
    used = [n for n in ast.walk(module.tree) if isinstance(n, ast.Name) and n.id == name]
    held = [n.value for n in ast.walk(module.tree) if isinstance(n, ast.Attribute)]
    return bool(used) and all(any(n is v for v in held) for n in used)


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those under `if`, `try` and loops too."""
    for node in body:
        yield node
        if isinstance(node, _Function | ast.ClassDef):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from _top_level(getattr(node, part, ()))
        for handler in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            yield from _top_level(handler.body)


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement binds itself."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
        case ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name for alias in names)
        case ast.Assign(targets=targets):
            for target in targets:
                yield from _names(target)
        case ast.AnnAssign(target=target, value=value) if value is not None:
            yield from _names(target)
        case ast.For(target=target):
            yield from _names(target)
        case ast.With(items=items):
            for item in items:
                if item.optional_vars is not None:
                    yield from _names(item.optional_vars)


def _names(target: ast.expr) -> Iterator[str]:
    yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def _is_dynamic(node: ast.stmt) -> bool:
    calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
    return any(isinstance(f, ast.Name) and f.id in _DYNAMIC for f in calls)


def _needed_imports(body: Iterable[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports without which importing the module fails."""
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield node
            case ast.Try(handlers=handlers) if any(map(_catches_absence, handlers)):
                yield from _needed_imports([*node.orelse, *node.finalbody])
            case ast.Try():
                yield from _needed_imports([*node.body, *node.orelse, *node.finalbody])
            case ast.With(items=items) if not any(_suppresses(item.context_expr) for item in items):
                yield from _needed_imports(node.body)
            case ast.ClassDef():
                yield from _needed_imports(node.body)


def _catches_absence(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or _mentions_absence(handler.type)


def _suppresses(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Call) and any(map(_mentions_absence, expression.args))


def _mentions_absence(expression: ast.expr) -> bool:
    return any(isinstance(n, ast.Name) and n.id in ABSENT for n in ast.walk(expression))


def _installed(package: str) -> bool:
    if package in sys.modules or package in sys.stdlib_module_names:
        return True
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
