"""Files that functions name: texts and paths within their reach that are files of this machine.

What a library opens in native code leaves no trace in the process; the name that it was given mostly
stands in the code. Followed are the constants of a function and the globals that it uses: texts,
paths, and functions and classes of the same files. A name that is put together at run time is missed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from auditspec.artifacts.remote import RemoteFunction

LONGEST = 255
"""Longest text that is taken for a path."""


def named_files(
    function: Callable[..., Any], sources: Iterable[str], folders: Iterable[Path]
) -> set[Path]:
    """Regular files that a function names, as absolute paths.

    Args:
        function: where the search begins.
        sources: source files whose functions and classes are followed.
        folders: what a relative name may be relative to.
    """
    if isinstance(function, RemoteFunction):
        return function.named_files(folders)
    found, bases = set(), list(folders)
    for text in set(_names(function, frozenset(map(os.path.abspath, sources)), set())):
        if 0 < len(text) <= LONGEST and text.isprintable():
            for base in bases:
                path = Path(os.path.abspath(base / text))  # noqa: PTH100 - links stay links
                if path.is_file():
                    found.add(path)
    return found


def _names(thing: Any, sources: frozenset[str], seen: set[int]) -> Iterator[str]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    match thing:
        case str():
            yield thing
        case os.PathLike():
            yield os.fsdecode(thing)
        case partial():
            yield from _names(thing.func, sources, seen)
        case FunctionType() if _absolute(thing.__code__.co_filename) in sources:
            for code in _codes(thing.__code__):
                for constant in code.co_consts:
                    yield from _texts(constant)
                used = [thing.__globals__[n] for n in code.co_names if n in thing.__globals__]
                for module in used:
                    if (
                        isinstance(module, ModuleType)
                        and getattr(module, "__file__", "") in sources
                    ):
                        used += [vars(module)[n] for n in code.co_names if n in vars(module)]
                for value in used:
                    yield from _names(value, sources, seen)
            for cell in thing.__closure__ or ():
                yield from _names(cell.cell_contents, sources, seen)
        case type() if _source(thing) in sources:
            for member in vars(thing).values():
                inner = getattr(member, "__func__", member)
                yield from _names(inner, sources, seen)
        case tuple() | list():
            for item in thing:
                yield from _names(item, sources, seen)
        case dict():
            for item in thing.values():
                yield from _names(item, sources, seen)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _texts(constant: Any) -> Iterator[str]:
    if isinstance(constant, str):
        yield constant
    elif isinstance(constant, tuple | frozenset):
        for item in constant:
            yield from _texts(item)


def _source(kind: type) -> str:
    module = sys.modules.get(kind.__module__)
    return _file(module) if module is not None else ""


def _file(module: ModuleType) -> str:
    return _absolute(getattr(module, "__file__", None) or "")


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path else ""  # noqa: PTH100 - links stay links
