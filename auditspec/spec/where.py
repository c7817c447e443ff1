"""The grammar of `where`: which rows of a dataset belong to a slice.

    condition  := conjunction ("or" conjunction)*
    conjunction:= negation ("and" negation)*
    negation   := "not" negation | test
    test       := "(" condition ")" | operand operator operand | column ["not"] "in" list
    operand    := column | literal
    operator   := "==" | "!=" | "<" | "<=" | ">" | ">="
    list       := "[" literal ("," literal)* "]"
    column     := identifier | "`" any text "`"
    literal    := integer | float | 'text' | "text" | true | false

Nothing else exists: no calls, attributes, arithmetic, variables, or escapes. A text is parsed by
hand into a tree of the classes below and never given to an evaluator.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal as OneOf
from typing import NamedTuple, NoReturn

MAX_LENGTH = 2000
MAX_DEPTH = 32
ALLOWED = (
    "allowed are columns, numbers, quoted text, true, false, == != < <= > >=, "
    "in [..], not in [..], and, or, not, and parentheses"
)

Operator = OneOf["==", "!=", "<", "<=", ">", ">="]
OPERATORS: tuple[Operator, ...] = ("==", "!=", "<", "<=", ">", ">=")
KEYWORDS = frozenset({"and", "or", "not", "in", "true", "false"})


class WhereError(ValueError):
    """A text is not an expression of the grammar.

    `message` says why and what is allowed; `offset` is the 0-based character where reading stopped.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} (at character {offset + 1})")
        self.message = message
        self.offset = offset


@dataclass(frozen=True)
class Column:
    """A column of the dataset."""

    name: str

    def __str__(self) -> str:
        plain = _WORD.fullmatch(self.name) and self.name not in KEYWORDS | _FOREIGN.keys()
        return self.name if plain else f"`{self.name}`"


@dataclass(frozen=True)
class Literal:
    """A number, a text, or a truth value."""

    value: int | float | str | bool

    def __str__(self) -> str:
        match self.value:
            case bool():
                return "true" if self.value else "false"
            case str():
                quote = '"' if "'" in self.value else "'"
                return f"{quote}{self.value}{quote}"
            case _:
                return repr(self.value)


@dataclass(frozen=True)
class Comparison:
    """Two operands, at least one of them a column."""

    left: Column | Literal
    operator: Operator
    right: Column | Literal

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right}"


@dataclass(frozen=True)
class Membership:
    """A column's value is (or, negated, is not) one of some literals."""

    column: Column
    values: tuple[Literal, ...]
    negated: bool = False

    def __str__(self) -> str:
        verb = "not in" if self.negated else "in"
        return f"{self.column} {verb} [{', '.join(map(str, self.values))}]"


@dataclass(frozen=True)
class Not:
    """The term does not hold."""

    term: Expression

    def __str__(self) -> str:
        return f"not {_nested(self.term)}"


@dataclass(frozen=True)
class And:
    """Every term holds."""

    terms: tuple[Expression, ...]

    def __str__(self) -> str:
        return " and ".join(map(_nested, self.terms))


@dataclass(frozen=True)
class Or:
    """At least one term holds."""

    terms: tuple[Expression, ...]

    def __str__(self) -> str:
        return " or ".join(map(_nested, self.terms))


Expression = Comparison | Membership | Not | And | Or


def parse(text: str) -> Expression:
    """Parse an expression; `parse(str(tree)) == tree`.

    Raises:
        WhereError: if the text is not an expression of the grammar, is longer than `MAX_LENGTH`
            characters, or is nested deeper than `MAX_DEPTH`.
    """
    if len(text) > MAX_LENGTH:
        raise WhereError(f"longer than {MAX_LENGTH} characters", MAX_LENGTH)
    return _Parser(_tokens(text)).whole()


def columns(expression: Expression) -> frozenset[str]:
    """Names of the columns that an expression reads."""
    match expression:
        case Comparison(left=left, right=right):
            return frozenset(side.name for side in (left, right) if isinstance(side, Column))
        case Membership(column=column):
            return frozenset({column.name})
        case Not(term=term):
            return columns(term)
        case And(terms=terms) | Or(terms=terms):
            return frozenset().union(*map(columns, terms))


def _nested(term: Expression) -> str:
    return f"({term})" if isinstance(term, And | Or) else str(term)


# --- tokens ------------------------------------------------------------------------------------

_SPACE = re.compile(r"\s*", re.ASCII)
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | (?P<text>'[^'\\\n]*'|"[^"\\\n]*")
      | (?P<quoted>`[^`\\\n]+`)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<symbol>==|!=|<=|>=|[<>()\[\],])
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII,
)
_LEADING_ZERO = re.compile(r"-?0\d")

_FOREIGN = {
    "True": "write true",
    "False": "write false",
    "None": "missing values match no comparison",
    "null": "missing values match no comparison",
    "nan": "missing values match no comparison",
    "AND": "write and",
    "OR": "write or",
    "NOT": "write not",
    "IN": "write in",
    "is": "write ==",
}
_REFUSED = {
    "=": "'=' is not a comparison: write ==",
    "&": "'&' is not allowed: write and",
    "|": "'|' is not allowed: write or",
    "~": "'~' is not allowed: write not",
    "!": "'!' is not allowed: write not or !=",
    ".": "attributes are not allowed, and a number starts with a digit",
    "\\": "backslashes are not allowed",
    "`": "a quoted column name ends with ` on the same line and has no backslash",
    "'": "a text ends with ' on the same line and has no backslash",
    '"': 'a text ends with " on the same line and has no backslash',
    "{": "braces are not allowed: write a list in [..]",
}


class _Token(NamedTuple):
    kind: str
    """number, text, quoted, word, symbol, or end."""
    text: str
    offset: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else repr(self.text)


def _tokens(text: str) -> list[_Token]:
    """The tokens of a text; the last one is its end."""
    tokens: list[_Token] = []
    position = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            offset = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # matches anything
            raise WhereError(f"{_why_refused(text[offset])}; {ALLOWED}", offset)
        kind = found.lastgroup
        token = _Token(kind, found[kind], found.start(kind))
        if tokens and kind == "word" and tokens[-1].kind == "number" and position == token.offset:
            raise WhereError(
                f"{tokens[-1].text + token.text!r} is neither a number nor a column; "
                "quote a column name that starts with a digit with backticks",
                tokens[-1].offset,
            )
        tokens.append(token)
        position = found.end()
    return tokens


def _why_refused(character: str) -> str:
    if character.isalpha():
        return f"{character!r} is not an ASCII letter: quote the column's name with backticks"
    return _REFUSED.get(character, f"{character!r} is not allowed")


# --- recursive descent -------------------------------------------------------------------------


class _Parser:
    """One method for each rule of the grammar, each reading from `_token` on."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def whole(self) -> Expression:
        expression = self._condition()
        if self._token.kind != "end":
            self._refuse_rest()
        return expression

    def _condition(self) -> Expression:
        terms = [self._conjunction()]
        while self._take("or"):
            terms.append(self._conjunction())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _conjunction(self) -> Expression:
        terms = [self._negation()]
        while self._take("and"):
            terms.append(self._negation())
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _negation(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH}")
        term = Not(self._negation()) if self._take("not") else self._test()
        self._depth -= 1
        return term

    def _test(self) -> Expression:
        if self._take("("):
            inner = self._condition()
            self._expect(")", "to close a parenthesis")
            return inner
        start = self._token
        left = self._operand()
        if isinstance(left, Column):
            if self._take("in"):
                return Membership(left, self._list())
            if self._token.text == "not" and self._tokens[self._next + 1].text == "in":
                self._next += 2
                return Membership(left, self._list(), negated=True)
        operator = next((symbol for symbol in OPERATORS if self._take(symbol)), None)
        if operator is None:
            self._refuse_rest(after=left)
        right = self._operand()
        if isinstance(left, Literal) and isinstance(right, Literal):
            raise WhereError(
                "a comparison of two literals: one side must be a column", start.offset
            )
        if self._token.kind == "symbol" and self._token.text in OPERATORS:
            self._refuse("a comparison has two sides: join two comparisons with and")
        return Comparison(left, operator, right)

    def _list(self) -> tuple[Literal, ...]:
        self._expect("[", "after in")
        values = [self._literal()]
        while self._take(","):
            values.append(self._literal())
        self._expect("]", "to close a list")
        return tuple(values)

    def _literal(self) -> Literal:
        start = self._token
        operand = self._operand()
        if isinstance(operand, Column):
            raise WhereError("a list holds literals; quote a text", start.offset)
        return operand

    def _operand(self) -> Column | Literal:
        token = self._token
        if token.kind not in ("number", "text", "quoted", "word"):
            self._refuse(f"expected a column or a literal, found {token}; {ALLOWED}")
        if token.kind == "word":
            if token.text in _FOREIGN:
                self._refuse(f"{token} is not part of the grammar: {_FOREIGN[token.text]}")
            if token.text in KEYWORDS - {"true", "false"}:
                self._refuse(f"expected a column or a literal, found the word {token}")
        self._next += 1
        match token.kind:
            case "number":
                return Literal(_number(token))
            case "text":
                return Literal(token.text[1:-1])
            case "quoted":
                return Column(token.text[1:-1])
        return Literal(token.text == "true") if token.text in KEYWORDS else Column(token.text)

    def _take(self, text: str) -> bool:
        """Step over a keyword or symbol if it stands here."""
        taken = self._token.kind in ("word", "symbol") and self._token.text == text
        self._next += taken
        return taken

    def _expect(self, text: str, purpose: str) -> None:
        if not self._take(text):
            self._refuse(f"expected {text!r} {purpose}, found {self._token}")

    def _refuse_rest(self, after: Column | Literal | None = None) -> NoReturn:
        token = self._token
        if token.kind == "symbol" and token.text == "(":
            self._refuse(f"calls are not allowed; {ALLOWED}")
        if token.kind == "symbol" and token.text == "[":
            self._refuse(f"indexing is not allowed; {ALLOWED}")
        if isinstance(after, Column):
            self._refuse(
                f"expected a comparison after the column, found {token}; "
                f"for example {after} == true"
            )
        if after is not None:
            self._refuse(f"expected a comparison after the literal, found {token}")
        self._refuse(f"expected and, or, or the end, found {token}")

    def _refuse(self, message: str) -> NoReturn:
        raise WhereError(message, self._token.offset)


def _number(token: _Token) -> int | float:
    if _LEADING_ZERO.match(token.text):
        raise WhereError(f"{token.text} has a leading zero; quote it if it is text", token.offset)
    value = float(token.text)
    if not math.isfinite(value) or (token.text.lstrip("-").isdigit() and abs(value) >= 2**63):
        raise WhereError(f"{token.text} is out of range", token.offset)
    return int(token.text) if token.text.lstrip("-").isdigit() else value
