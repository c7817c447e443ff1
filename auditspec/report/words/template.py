"""Templates of sentences: text with named values, each shown after its kind; nothing is computed or called.

    {reasons}                          as it is: text, a number, messages; of a list, all of it
    {parties!c:party}                  !c: with a capital letter
    {names:list 3}                     the first three, and how many more
    {share:percent 0}                  0.95 as 95 %, with so many decimals
    {value:number 3}                   a number to so many significant digits; signed 3: with its sign
    {cap:declared}                     a number that somebody chose, as it was written
    {level:level unit}                 a level of a metric, whose unit is the value of that name
    {limit:stated unit}                the same of a level that somebody chose
    {rows:count row|rows}              a number and the form of the word that goes with it
    {parties:plural is|are}            that form alone; of a list, that for its length
    {direction:case increase=above|decrease=below}
    {party:party}, {arm:arm}           a party or several, a run

Numbers keep their place in results.json, so that whoever reads the sentence can check them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from string import Formatter

from auditspec.errors import EvidenceError
from auditspec.messages import Message, Scalar, Value
from auditspec.report.numbers import (
    MINUS,
    NBSP,
    decimal,
    declared,
    general,
    unit_of,
)
from auditspec.report.parts import HIDDEN, Number, Part, Phrase, Status, capital, clean
from auditspec.report.words.language import Language
from auditspec.withheld import is_withheld

MOST_ITEMS = 20
"""Most items of a list that a sentence shows."""
MOST_DIGITS = 15
"""Most digits, or items of a list, that a template may ask for."""
DIGITS = frozenset(str(number) for number in range(MOST_DIGITS + 1))
LONGEST = 600
"""Most characters of a text within a sentence."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class UnspeakableError(EvidenceError):
    """A message that cannot be put into words; says which, and why."""


@dataclass(frozen=True)
class Slot:
    """A place for a value."""

    name: str
    kind: str = ""
    argument: str = ""
    capital: bool = False

    @property
    def names(self) -> frozenset[str]:
        """The values that it shows."""
        return frozenset({self.name, self.argument} if self.kind in UNITS else {self.name})

    @property
    def forms(self) -> tuple[str, ...]:
        """The argument's alternatives."""
        return tuple(self.argument.split("|"))


@cache
def parse(template: str) -> tuple[str | Slot, ...]:
    """The parts of a template.

    Raises:
        ValueError: if it is malformed.
    """
    if not template.isprintable():
        raise ValueError("it holds characters that cannot be seen")
    parts: list[str | Slot] = []
    for text, name, spec, conversion in Formatter().parse(template):
        if text:
            parts.append(text)
        if name is None:
            continue
        kind, _, argument = (spec or "").partition(" ")
        if not _NAME.fullmatch(name) or conversion not in (None, "c") or kind not in KINDS:
            raise ValueError(f"{{{name}:{spec}}} is no place for a value")
        if kind in NUMBERED and argument and argument not in DIGITS:
            raise ValueError(f"{{{name}:{spec}}}: {argument!r} is no number up to {MOST_DIGITS}")
        if kind in UNITS and not _NAME.fullmatch(argument):
            raise ValueError(f"{{{name}:{spec}}} names no unit")
        parts.append(Slot(name, kind, argument, conversion == "c"))
    return tuple(parts)


def names(template: str) -> frozenset[str]:
    """The values that a template shows."""
    slots = [part for part in parse(template) if isinstance(part, Slot)]
    return frozenset().union(*(slot.names for slot in slots))


@dataclass(frozen=True)
class Filler:
    """Fills the templates of one language.

    Attributes:
        language: whose templates they are.
        vocabulary: templates of plug-ins' codes.
    """

    language: Language
    vocabulary: Mapping[str, str]

    def sentence(self, message: Message, ref: str) -> Phrase:
        """A message in words.

        Args:
            message: a code and its values.
            ref: JSON pointer to it.

        Raises:
            UnspeakableError: if there is no template for the code, or its values are not those of the template.
        """
        if is_withheld(message) or is_withheld(message.code, message.values):
            return (HIDDEN,)
        code, values = message.code, message.values
        template = (self.vocabulary if ":" in code else self.language.templates).get(code)
        if template is None:
            raise UnspeakableError(
                f"no words for the code {code!r} in {self.language.name!r}",
                "render it with the version of auditspec that wrote it",
            )
        try:
            parts = parse(template)
            if odd := names(template) ^ values.keys():
                raise ValueError(f"missing or superfluous: {', '.join(sorted(odd))}")
            phrase: Phrase = ()
            for part in parts:
                shown = (part,) if isinstance(part, str) else self._fill(part, values, ref)
                phrase = (*phrase, *shown)
        except (ValueError, TypeError) as error:
            raise UnspeakableError(
                f"the message {code!r} cannot be put into words: {error}"
            ) from None
        return phrase

    def joined(self, phrases: list[Phrase]) -> Phrase:
        """Clauses as one text: sentences one after the other, parts of a sentence with semicolons between."""
        whole = all(phrase and plain(phrase).endswith(".") for phrase in phrases)
        return _between(phrases, " " if whole else "; ")

    def _fill(self, slot: Slot, values: Mapping[str, Value], ref: str) -> Phrase:
        value, place = values[slot.name], f"{ref}/values/{slot.name}"
        if isinstance(value, Message) and slot.kind in OF_NUMBERS:
            phrase = self._any(value, place)
        else:
            phrase = KINDS[slot.kind](self, slot, values, place)
        if slot.capital and phrase and isinstance(phrase[0], str):
            return (capital(phrase[0]), *phrase[1:])
        return phrase

    def _any(self, value: Value, ref: str) -> Phrase:
        if isinstance(value, str):
            return (clean(value, LONGEST),)
        if isinstance(value, Message):
            return self.sentence(value, ref)
        if isinstance(value, tuple):
            return self._list(value, ref, MOST_ITEMS)
        if isinstance(value, bool):
            raise ValueError(f"{ref} is a truth value, which has no words of its own")
        return _number(value, ref, general(value))

    def _list(self, value: tuple[Scalar, ...], ref: str, most: int) -> Phrase:
        shown = [self._any(item, f"{ref}/{i}") for i, item in enumerate(value[:most])]
        if value and all(isinstance(item, Message) for item in value):
            phrase = self.joined(shown)
        else:
            phrase = _between(shown, ", ")
        hidden = len(value) - len(shown)
        return (*phrase, self.language.more(hidden)) if hidden else phrase


def plain(phrase: Phrase) -> str:
    """A phrase as text."""
    return "".join(_text(part) for part in phrase).replace(NBSP, " ")


def _text(part: Part) -> str:
    if isinstance(part, str):
        return part
    return part.word if isinstance(part, Status) else part.text


def _between(phrases: list[Phrase], between: str) -> Phrase:
    joined: Phrase = ()
    for phrase in phrases:
        joined = (*joined, between, *phrase) if joined else phrase
    return joined


# --- kinds --------------------------------------------------------------------------------------

Values = Mapping[str, Value]


def _real(values: Values, name: str) -> float:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, not a number")
    return value


def _words(values: Values, name: str) -> tuple[str, ...]:
    value = values[name]
    items = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"{name} is {value!r}, not a text or texts")
    return tuple(str(item) for item in items)


def _number(value: float, ref: str, text: str, scale: float = 1.0, unit: str = "") -> Phrase:
    return (Number(text, value, ref, scale), *((f"{NBSP}{unit}",) if unit else ()))


def _as_it_is(filler: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    return filler._any(values[slot.name], ref)


def _listed(filler: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = values[slot.name]
    items = value if isinstance(value, tuple) else (value,)
    return filler._list(items, ref, int(slot.argument or MOST_ITEMS))


def _between_all(filler: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = values[slot.name]
    items = value if isinstance(value, tuple) else (value,)
    shown = [filler._any(item, f"{ref}/{i}") for i, item in enumerate(items[:MOST_ITEMS])]
    return _between(shown, slot.argument)


def _percent(_: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = _real(values, slot.name)
    return _number(value, ref, decimal(100 * value, int(slot.argument or 0)), 100.0, "%")


def _general(_: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = _real(values, slot.name)
    return _number(value, ref, general(value, int(slot.argument or 3)))


def _signed(_: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = _real(values, slot.name)
    text = general(value, int(slot.argument or 3))
    return _number(value, ref, text if text.startswith(MINUS) or not value else f"+{text}")


def _declared(_: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = _real(values, slot.name)
    return _number(value, ref, declared(value))


def _level(_: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value, (name,) = _real(values, slot.name), _words(values, slot.argument)
    unit = unit_of(name)
    return _number(value, ref, general(value * unit.scale), unit.scale, unit.level)


def _stated(_: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value, (name,) = _real(values, slot.name), _words(values, slot.argument)
    unit = unit_of(name)
    return _number(value, ref, declared(value * unit.scale), unit.scale, unit.level)


def _count(filler: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = _real(values, slot.name)
    word = _form(filler, slot, value) if slot.argument else ""
    return _number(value, ref, decimal(value, 0), 1.0, word)


def _form(filler: Filler, slot: Slot, count: float) -> str:
    form = filler.language.plural(count)
    if form >= len(slot.forms):
        raise ValueError(f"{slot.name} has too few forms")
    return slot.forms[form]


def _plural(filler: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = values[slot.name]
    many = len(value) if isinstance(value, tuple) else _real(values, slot.name)
    return (_form(filler, slot, many),)


def _case(_: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    value = values[slot.name]
    key = str(value).lower() if isinstance(value, bool) else value
    forms = dict(form.partition("=")[::2] for form in slot.forms)
    if not isinstance(key, str) or key not in forms:
        raise ValueError(f"{slot.name} is {value!r}, none of {', '.join(forms)}")
    return (forms[key],)


def _party(filler: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    parties = [clean(filler.language.party(p), LONGEST) for p in _words(values, slot.name)]
    *most, last = parties[:MOST_ITEMS] or [""]
    hidden = len(parties) - MOST_ITEMS
    if hidden > 0:
        return (", ".join([*most, last]) + filler.language.more(hidden),)
    return (", ".join(most) + filler.language.conjunction(len(parties)) + last if most else last,)


def _arm(filler: Filler, slot: Slot, values: Values, ref: str) -> Phrase:
    return (clean(filler.language.arm(_words(values, slot.name)), LONGEST),)


KINDS: dict[str, Callable[[Filler, Slot, Values, str], Phrase]] = {
    "": _as_it_is,
    "list": _listed,
    "joined": _between_all,
    "percent": _percent,
    "number": _general,
    "signed": _signed,
    "declared": _declared,
    "level": _level,
    "stated": _stated,
    "count": _count,
    "plural": _plural,
    "case": _case,
    "party": _party,
    "arm": _arm,
}
NUMBERED = frozenset({"list", "percent", "number", "signed"})
"""Kinds whose argument is a number."""
OF_NUMBERS = frozenset({"percent", "number", "signed", "declared", "level", "stated", "count"})
"""Kinds of numbers; a message may stand in the place of one, such as that it is not finite."""
UNITS = frozenset({"level", "stated"})
"""Kinds whose argument names the value that is the unit."""
