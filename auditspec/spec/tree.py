"""YAML text to a tree whose every key and value knows its line and column.

Built on PyYAML's parse events, and on a small part of YAML: mappings with text keys, sequences, and
scalars. Whatever lets two readers see two different documents is a problem: duplicate keys, anchors
and aliases, tags, merge keys, several documents, ambiguous numbers, invisible characters. Reading
goes on after a problem where the rest still makes sense, so that one pass finds all of them.
"""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import yaml

from auditspec.errors import Problem

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 20_000
MAX_KEY = 256
MAX_HIDDEN = 100

Place = tuple[int, int]
"""Line and column, counted from 1."""
Location = tuple[str | int, ...]
"""Path of keys and indices, for example ("stages", 1, "data", 0)."""
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """A value with its place."""

    content: Scalar | tuple[Node, ...] | dict[str, Node]
    place: Place
    key_place: Place = (1, 1)
    """Of the key that the value stands under; of the value itself in a sequence."""
    source: str = ""
    """A scalar as it is written, quotes included."""
    sound: bool = True
    """False where the content only fills in for something that was already reported."""

    def plain(self) -> Any:
        """The value alone: dict, list, or scalar."""
        match self.content:
            case dict():
                return {key: node.plain() for key, node in self.content.items()}
            case tuple():
                return [node.plain() for node in self.content]
            case _:
                return self.content

    def child(self, part: str | int) -> Node | None:
        """The value under a key or index, if there is one."""
        if isinstance(self.content, dict) and isinstance(part, str):
            return self.content.get(part)
        if isinstance(self.content, tuple) and isinstance(part, int) and part < len(self.content):
            return self.content[part]
        return None

    def nearest(self, location: Location) -> Node:
        """The value at a location, or the innermost one around it that exists."""
        node = self
        for part in location:
            below = node.child(part)
            if below is None:
                break
            node = below
        return node


def read(data: bytes, file: str) -> tuple[Node | None, list[Problem]]:
    """The tree of a document, and what is wrong with its text; `file` names it in problems.

    The tree is None where the text breaks off: the problems then tell why.
    """
    if len(data) > MAX_BYTES:
        return None, [Problem("AS002", f"larger than {MAX_BYTES} bytes", file, 1, 1)]
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        problem = Problem(
            "AS001",
            f"byte 0x{data[error.start]:02x} is not UTF-8",
            file,
            *_place_after(before),
            "save the file as UTF-8",
        )
        return None, [problem]
    reader = _Reader(text, file)
    return reader.document(), reader.problems


class _Halt(Exception):  # noqa: N818
    """Reading cannot go on; the problem is already noted."""


class _Reader:
    """Builds nodes from events, noting problems on the way."""

    def __init__(self, text: str, file: str) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._values = 0
        for character, place in islice(_hidden(text), MAX_HIDDEN):
            self._note("AS004", f"hidden character {_name(character)}", place, "remove it")
        self._text = _visible(text)
        self._events = yaml.SafeLoader(self._text)

    def document(self) -> Node | None:
        try:
            self._next()
            if isinstance(self._peek(), yaml.StreamEndEvent):
                return Node(None, (1, 1))
            start = self._next()
            if start.version or start.tags:
                self._note(
                    "AS007", "directive", _start(start), "remove the line that starts with %"
                )
            root = self._node(depth=0)
            self._next()
            if not isinstance(self._peek(), yaml.StreamEndEvent):
                self._note(
                    "AS009",
                    "a second document",
                    _start(self._peek()),
                    "keep one document in a file",
                )
        except _Halt:
            return None
        return root

    # --- events

    def _peek(self) -> Any:
        return self._advance(self._events.peek_event)

    def _next(self) -> Any:
        return self._advance(self._events.get_event)

    def _advance(self, step: Any) -> Any:
        try:
            return step()
        except yaml.MarkedYAMLError as error:
            mark: Any = error.problem_mark or error.context_mark or self._events.get_mark()
            self._note("AS003", *_syntax(error, mark, self._text))
        except (ValueError, OverflowError):  # from PyYAML: escapes beyond Unicode, long versions
            mark = self._events.get_mark()
            self._note(
                "AS003", "number out of range", _place(mark), "correct the escape or directive"
            )
        raise _Halt

    # --- nodes

    def _node(self, depth: int) -> Node:
        event = self._next()
        place = _start(event)
        self._values += 1
        if self._values > MAX_VALUES:
            self._note("AS002", f"more than {MAX_VALUES} values", place)
            raise _Halt
        if isinstance(event, yaml.AliasEvent):
            self._note(
                "AS006", f"alias '*{_shorten(str(event.anchor))}'", place, "write the value out"
            )
            return Node(None, place, place, sound=False)
        if event.anchor is not None:
            self._note("AS006", f"anchor '&{_shorten(event.anchor)}'", place, "remove it")
        if event.tag is not None:
            self._note("AS007", f"tag {_shorten(event.tag)!r}", place, "remove it; quote a text")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, place)
        if depth == MAX_DEPTH:
            self._note("AS010", f"nested deeper than {MAX_DEPTH}", place)
            raise _Halt
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(tuple(self._items(depth)), place, place)
        return Node(self._entries(depth), place, place)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(self._peek(), yaml.SequenceEndEvent):
            yield self._node(depth + 1)
        self._next()

    def _entries(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(self._peek(), yaml.MappingEndEvent):
            key, value = self._node(depth + 1), self._node(depth + 1)
            name = key.content
            if name == "<<" and key.source == "<<":
                self._note("AS008", "merge key '<<'", key.place, "write the keys out")
            elif not isinstance(name, str):
                if key.sound:
                    self._note("AS017", "a key must be text", key.place, _quoting(key.source))
            elif len(name) > MAX_KEY:
                self._note("AS017", f"a key of more than {MAX_KEY} characters", key.place)
            elif name in entries:
                first = entries[name].key_place
                self._note(
                    "AS005",
                    f"key {name!r} stands already in line {first[0]}",
                    key.place,
                    "keep one of them",
                )
            else:
                entries[name] = replace(value, key_place=key.place)
        self._next()
        return entries

    def _scalar(self, event: Any, place: Place) -> Node:
        source = self._text[event.start_mark.index : event.end_mark.index]
        sound = event.tag is None
        content: Scalar = event.value
        if event.style is None:
            try:
                content = _resolve(event.value)
            except _AmbiguousError as error:
                self._note("AS011", str(error), place, _quoting(source))
                sound = False
        elif event.style == '"':  # the only style with escapes
            escaped = {character for character, _ in _hidden(event.value)}
            for character in sorted(escaped):
                self._note("AS004", f"hidden character {_name(character)}", place, "remove it")
            content = _visible(event.value)
        return Node(content, place, place, source, sound)

    def _note(self, code: str, message: str, place: Place, hint: str = "") -> None:
        self.problems.append(Problem(code, message, self._file, *place, hint))


# --- scalars -----------------------------------------------------------------------------------

_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0\d", re.ASCII)
_WORDS: dict[str, Scalar] = {"": None, "~": None, "null": None, "true": True, "false": False}


class _AmbiguousError(ValueError):
    """A plain scalar that readers take for different things."""


def _resolve(text: str) -> Scalar:
    """What an unquoted scalar means (YAML 1.2 core schema, decimal numbers only)."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise _AmbiguousError(f"{text} is not a finite number")
    if not _NUMBER.fullmatch(text):
        return text
    if _LEADING_ZERO.match(text):
        raise _AmbiguousError(f"{_shorten(text)} has a leading zero")
    value = float(text)
    whole = _INTEGER.fullmatch(text) is not None
    if not math.isfinite(value) or (whole and abs(value) >= 2**63):
        raise _AmbiguousError(f"{_shorten(text)} is out of range")
    return int(text) if whole else value


def _quoting(source: str) -> str:
    return f'quote it if it is text: "{_shorten(source)}"' if source else ""


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


# --- characters and places ---------------------------------------------------------------------

_LINE = re.compile(r"\r\n|\r|\n")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _is_hidden(character: str) -> bool:
    """Control and format characters, other line ends, halves of pairs, and non-characters."""
    if character in "\t\n\r":
        return False
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return hidden or ord(character) & 0xFFFE == 0xFFFE


def _hidden(text: str) -> Iterator[tuple[str, Place]]:
    found = {character for character in set(text) if _is_hidden(character)}
    if found:
        for line, content in enumerate(_LINE.split(text), start=1):
            for column, character in enumerate(content, start=1):
                if character in found:
                    yield character, (line, column)


def _visible(text: str) -> str:
    found = {character for character in set(text) if _is_hidden(character)}
    return text.translate(dict.fromkeys(map(ord, found), _REPLACEMENT))


def _name(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()


def _place_after(text: str) -> Place:
    lines = _LINE.split(text)
    return len(lines), len(lines[-1]) + 1


def _place(mark: Any) -> Place:
    return mark.line + 1, mark.column + 1


def _start(event: Any) -> Place:
    return _place(event.start_mark)


def _syntax(error: yaml.MarkedYAMLError, mark: Any, text: str) -> tuple[str, Place, str]:
    """A syntax error in words, its place, and a hint."""
    if text[mark.index : mark.index + 1] == "\t":
        return "a tab cannot indent", _place(mark), "indent with spaces"
    reason = error.problem or error.context or "unreadable"
    known = {
        "mapping values are not allowed here": "quote a text that holds ': '",
        "could not find expected ':'": "write key: value, and indent what belongs to a key",
        "found character '@' that cannot start any token": "quote the text",
        "found character '`' that cannot start any token": "quote the text",
        "found unexpected end of stream": "close the quote or bracket",
    }
    return f"not YAML: {reason}", _place(mark), known.get(reason, "check quotes and indentation")
