"""The audited code, imported from the very bytes whose digest was checked.

`CodeBundle.read` takes every file into memory and checks the digest of those bytes. Inside
`with bundle.importable():` a finder in front of all others serves modules from them, so that a file
changed on disk after the check changes nothing. Importing runs the code: do it only in `run`.
"""

from __future__ import annotations

import difflib
import importlib.util
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import decode_source, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from auditspec.artifacts.digest import check, digest_bytes, read_verified
from auditspec.artifacts.manifest import FileEntry, Manifest
from auditspec.errors import EvidenceError, UsageError

INIT = "__init__.py"
DISTRIBUTIONS = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
"""What to install for packages that are imported under another name."""


@dataclass(frozen=True)
class CodeBundle:
    """A `.py` file or a folder of code, held in memory."""

    root: Path
    """The folder that the code is imported from, absolute."""
    digest: str
    files: tuple[FileEntry, ...]
    contents: dict[str, bytes] = field(repr=False)
    """Bytes by path relative to `root`."""
    package: str = ""
    """Name of the folder, where it can be imported as a package (`python -m mypkg.train`); empty for a
    file, and for a name that is not the folder's own."""

    @classmethod
    def read(cls, path: Path, expected: str | None) -> CodeBundle:
        """Read the code and check that exactly these bytes have the pinned digest.

        Raises:
            EvidenceError: if it is missing, unsafe to read, not Python, or not what `expected` says.
        """
        path = path.absolute()
        if path.is_dir() and not path.is_symlink():
            manifest = Manifest.scan(path)
            if expected is not None:
                check(path, expected, manifest.digest)
            contents = {f.path: read_verified(path / f.path, f.digest) for f in manifest.files}
            own = path.name.isidentifier() and (INIT in contents or _is_free(path.name, path))
            package = path.name if own and path.name not in sys.stdlib_module_names else ""
            bundle = cls(path, manifest.digest, manifest.files, contents, package)
        else:
            data = read_verified(path, expected)
            digest = digest_bytes(data)
            entry = FileEntry(path.name, len(data), digest)
            bundle = cls(path.parent, digest, (entry,), {path.name: data})
        if not bundle.modules:
            raise EvidenceError(
                f"{path}: holds no Python module", "name a .py file or a folder of them"
            )
        return bundle

    @cached_property
    def modules(self) -> dict[str, str | None]:
        """Path of each importable module by dotted name; None for a folder without `__init__.py`.

        Those of a folder are named from within it (`train`) and, as a package, from above it
        (`mypkg.train`): which of the two is meant depends on how training was started. Within a
        package a file may have the name of a module elsewhere (`mypkg/types.py`); it then has the
        long name only.
        """
        within = self._modules_within()
        if not self.package or self.package in within or not (within or INIT in self.contents):
            return within
        is_package = INIT in self.contents
        above = {f"{self.package}.{dotted}": path for dotted, path in within.items()}
        above[self.package] = INIT if is_package else None
        if is_package:
            within = {
                dotted: path
                for dotted, path in within.items()
                if _is_free(dotted.partition(".")[0], self.root)
            }
        return within | above

    def _modules_within(self) -> dict[str, str | None]:
        modules: dict[str, str | None] = {}
        for path in self.contents:
            *folders, name = path.removesuffix(".py").split("/")
            dotted = folders if name == "__init__" else [*folders, name]
            if not path.endswith(".py") or not dotted or not all(map(str.isidentifier, dotted)):
                continue
            for end in range(1, len(dotted)):
                modules.setdefault(".".join(dotted[:end]), None)
            is_package = name == "__init__"
            if is_package or modules.get(".".join(dotted)) is None:
                modules[".".join(dotted)] = path
        return modules

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Let Python import the bundle's modules, and forget them afterwards.

        Raises:
            EvidenceError: if a module would take the name of a standard library module, or of one
                that is already imported.
        """
        self._refuse_shadowing()
        finder = _Finder(self)
        sys.meta_path.insert(0, finder)
        for path in filter(None, self.modules.values()):
            _show_source_in_tracebacks(self.filename(path), self.contents[path])
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
            for name in self.modules:
                sys.modules.pop(name, None)
            for path in filter(None, self.modules.values()):
                linecache.cache.pop(self.filename(path), None)

    def load(self, entry_point: str) -> Callable[..., Any]:
        """The callable that `module:name` means; to be called inside `importable()`.

        Raises:
            EvidenceError: if the code has no such module or callable, or importing it fails; the
                message then gives the place inside the code.
            UsageError: if the code imports a package that is not installed here.
        """
        module_name, _, name = entry_point.partition(":")
        if module_name not in self.modules:
            raise EvidenceError(
                f"{entry_point}: the code has no module '{module_name}'",
                _did_you_mean(module_name, list(self.modules)),
            )
        module = self._import(module_name)
        if not hasattr(module, name):
            public = [n for n in vars(module) if callable(getattr(module, n)) and n[0] != "_"]
            raise EvidenceError(
                f"{entry_point}: module '{module_name}' has no '{name}'",
                _did_you_mean(name, public),
            )
        target = getattr(module, name)
        if not callable(target):
            raise EvidenceError(
                f"{entry_point}: is a {type(target).__name__}, which cannot be called",
                "name a function or class",
            )
        return target  # type: ignore[no-any-return]

    def filename(self, path: str) -> str:
        """The `__file__` of a module: where its bytes were read."""
        return str(self.root / path)

    def _refuse_shadowing(self) -> None:
        for name in sorted({dotted.partition(".")[0] for dotted in self.modules}):
            if name in sys.stdlib_module_names:
                raise EvidenceError(
                    f"the code's module '{name}' has the name of a standard library module",
                    f"rename {name}, so that no import can mean either of two",
                )
            if name in sys.modules:
                origin = getattr(sys.modules[name], "__file__", None) or "elsewhere"
                raise EvidenceError(
                    f"the code's module '{name}' is already imported from {origin}",
                    "rename it, or audit in a fresh process",
                )

    def _import(self, name: str) -> ModuleType:
        if not any(isinstance(f, _Finder) and f.bundle is self for f in sys.meta_path):
            raise RuntimeError("CodeBundle.load is called outside importable()")
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever the code raises is its reader's news
            self.blame_environment(error)
            place = self.place(error)
            where = f" at {place}" if place else ""
            raise EvidenceError(
                f"importing '{name}' failed{where}: {type(error).__name__}: {error}",
                "correct the code, then pin it again",
            ) from None

    def blame_environment(self, error: BaseException) -> None:
        """Tell a package that is not installed here from a fault of the code.

        Raises:
            UsageError: if `error` is an import of a package that is not part of the code.
        """
        if not isinstance(error, ModuleNotFoundError) or not error.name:
            return
        package = error.name.partition(".")[0]
        if package not in self.modules and package not in sys.modules:
            raise UsageError(*not_installed(package, self.place(error))) from None

    def place(self, error: BaseException) -> str:
        """`place_of`, and where a file that is no Python goes wrong."""
        filenames = {self.filename(path): path for path in self.contents}
        if isinstance(error, SyntaxError) and error.filename in filenames:
            return f"{filenames[error.filename]}:{error.lineno}"
        return place_of(error)


def place_of(error: BaseException) -> str:
    """file:line of the innermost line of any bundle's module that `error` passed through, if any."""
    if isinstance(elsewhere := getattr(error, "place", None), str):
        return elsewhere  # raised in another process, which knows
    place, trace = "", error.__traceback__
    while trace is not None:
        loader = trace.tb_frame.f_globals.get("__loader__")
        if isinstance(loader, _Finder):
            path = loader.bundle.modules.get(trace.tb_frame.f_globals["__name__"])
            place = f"{path}:{trace.tb_lineno}" if path else place
        trace = trace.tb_next
    return place


class _Finder(MetaPathFinder, ExecutionLoader):
    """Finds and loads a bundle's modules, and no others."""

    def __init__(self, bundle: CodeBundle) -> None:
        self.bundle = bundle

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.bundle.modules:
            return None
        # With its origin given, a package gets an empty search path: no module comes from the disk.
        spec = spec_from_loader(fullname, self, origin=self.get_filename(fullname))
        if spec is not None:
            spec.has_location = True  # sets __file__
        return spec

    def is_package(self, fullname: str) -> bool:
        path = self.bundle.modules[fullname]
        return path is None or path.endswith(INIT)

    def get_filename(self, fullname: str) -> str:
        path = self.bundle.modules[fullname]
        return self.bundle.filename(path or f"{fullname.replace('.', '/')}/__init__.py")

    def get_source(self, fullname: str) -> str:
        path = self.bundle.modules[fullname]
        return decode_source(self.bundle.contents[path]) if path else ""

    def get_data(self, path: str) -> bytes:
        """A file of the bundle, for `pkgutil.get_data`."""
        try:
            return self.bundle.contents[Path(path).relative_to(self.bundle.root).as_posix()]
        except (KeyError, ValueError):
            raise FileNotFoundError(f"{path}: not in the code") from None


def not_installed(package: str, place: str) -> tuple[str, str]:
    """Message and remedy for a package that the audited code imports at `place` (file:line)."""
    return (
        f"the audited code imports {package!r}{f' at {place}' if place else ''}, which is neither "
        "part of it nor installed here",
        f"pip install {DISTRIBUTIONS.get(package, package)}, or add it to the code that is pinned",
    )


def _is_free(name: str, folder: Path) -> bool:
    """Whether no other module than one of the folder goes by a name."""
    if name in sys.stdlib_module_names or name in sys.modules:
        return False
    found = importlib.util.find_spec(name)
    if found is None:
        return True
    places = [found.origin or "", *(found.submodule_search_locations or ())]
    return any(Path(place).is_relative_to(folder) for place in places if place)


def _show_source_in_tracebacks(filename: str, source: bytes) -> None:
    try:
        lines = decode_source(source).splitlines(keepends=True)
    except (SyntaxError, UnicodeDecodeError):
        return  # importing it will say so
    # A modification time of None keeps linecache from looking at the file on disk.
    linecache.cache[filename] = (len(source), None, lines, filename)


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"it has: {', '.join(sorted(known)) or 'nothing'}"
