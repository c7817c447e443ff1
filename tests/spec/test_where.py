import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditspec.spec.where import (
    KEYWORDS,
    MAX_DEPTH,
    MAX_LENGTH,
    OPERATORS,
    And,
    Column,
    Comparison,
    Expression,
    Literal,
    Membership,
    Not,
    Or,
    WhereError,
    columns,
    parse,
)

A, B = Column("a"), Column("b")
A1, B2 = Comparison(A, "==", Literal(1)), Comparison(B, "!=", Literal(2))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a == 1", A1),
        ("1 <= a", Comparison(Literal(1), "<=", A)),
        ("a<b", Comparison(A, "<", B)),
        ("a == -1.5e3", Comparison(A, "==", Literal(-1500.0))),
        ("a == 'it'", Comparison(A, "==", Literal("it"))),
        ('a == "it\'s"', Comparison(A, "==", Literal("it's"))),
        ("a == true", Comparison(A, "==", Literal(True))),
        ("`odd name, é` > 0", Comparison(Column("odd name, é"), ">", Literal(0))),
        ("a in [1, 'x', false]", Membership(A, (Literal(1), Literal("x"), Literal(False)))),
        ("a not in [1]", Membership(A, (Literal(1),), negated=True)),
        ("not a == 1", Not(A1)),
        ("a == 1 or b != 2 and a == 1", Or((A1, And((B2, A1))))),
        ("(a == 1 or b != 2) and a == 1", And((Or((A1, B2)), A1))),
        ("not a == 1 and b != 2", And((Not(A1), B2))),
        ("not (a == 1 and b != 2)", Not(And((A1, B2)))),
        ("a == 1\n  and b != 2", And((A1, B2))),
    ],
)
def test_each_rule_of_the_grammar(text: str, tree: Expression) -> None:
    assert repr(parse(text)) == repr(tree)  # unlike ==, tells 1 from 1.0 and True


@pytest.mark.parametrize(
    ("text", "offset", "words"),
    [
        ("@os.system('x')", 0, "'@' is not allowed; allowed are columns"),
        ("a == 1 and @os.system('x')", 11, "'@' is not allowed; allowed are columns"),
        ("a.str.len() > 3", 1, "attributes are not allowed"),
        ("a.to_pickle('x')", 1, "attributes are not allowed"),
        ("__import__('os')", 10, "calls are not allowed; allowed are columns"),
        ("f(a) == 1", 1, "calls are not allowed"),
        ("a[0] == 1", 1, "indexing is not allowed"),
        ("(lambda: 1)() == a", 7, "':' is not allowed"),
        ("a == f'{b}'", 6, "expected and, or, or the end, found \"'{b}'\""),
        ("a == 'x\\n'", 5, "no backslash"),
        ("a == 'x\n'", 5, "on the same line"),
        ("a \\", 2, "backslashes are not allowed"),
        ("a = 1", 2, "write =="),
        ("a == 1 & b == 2", 7, "write and"),
        ("a == 1 | b == 2", 7, "write or"),
        ("~a == 1", 0, "write not"),
        ("a + 1 == 2", 2, "'+' is not allowed"),
        ("a == 1; b", 6, "';' is not allowed"),
        ("1 < a < 3", 6, "join two comparisons with and"),
        ("1 == 1", 0, "one side must be a column"),
        ("a", 1, "for example a == true"),
        ("1", 1, "expected a comparison after the literal"),
        ("", 0, "found the end"),
        ("a == 1 and", 10, "found the end"),
        ("(a == 1", 7, "expected ')'"),
        ("a == 1)", 6, "expected and, or, or the end"),
        ("a in 1", 5, "expected '['"),
        ("a in []", 6, "expected a column or a literal"),
        ("a in [b]", 6, "a list holds literals"),
        ("1 in [1]", 2, "expected a comparison after the literal"),
        ("a == None", 5, "missing values match no comparison"),
        ("a == True", 5, "write true"),
        ("a == 007", 5, "leading zero"),
        ("a == 3x", 5, "neither a number nor a column"),
        ("a == 1e999", 5, "out of range"),
        ("a == 9223372036854775808", 5, "out of range"),
        ("a == .5", 5, "a number starts with a digit"),
        ("é == 1", 0, "backticks"),
        ("in == 1", 0, "found the word 'in'"),
        ("``  == 1", 0, "a quoted column name"),
    ],
)
def test_everything_else_is_refused_with_its_place(text: str, offset: int, words: str) -> None:
    with pytest.raises(WhereError) as caught:
        parse(text)
    assert words in caught.value.message
    assert caught.value.offset == offset
    assert str(caught.value).endswith(f"(at character {offset + 1})")


def test_bounds() -> None:
    assert parse("not " * (MAX_DEPTH - 1) + "a == 1")
    with pytest.raises(WhereError, match="nested deeper"):
        parse("not " * MAX_DEPTH + "a == 1")
    with pytest.raises(WhereError, match="nested deeper"):
        parse("(" * 900 + "a == 1" + ")" * 900)
    with pytest.raises(WhereError, match="longer than"):
        parse("a == 1" + " " * MAX_LENGTH)


def test_columns() -> None:
    assert columns(parse("a == 1 and (`b c` in [2] or not 3 < d) and a < e")) == {
        "a",
        "b c",
        "d",
        "e",
    }


names = st.one_of(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
    st.sampled_from([*KEYWORDS, "None", "odd name", "3d", "x-y"]),
    st.text(st.characters(exclude_characters="`\\\n"), min_size=1, max_size=8),
)
texts = st.text(st.characters(exclude_characters="'\\\n"), max_size=8) | st.text(
    st.characters(exclude_characters='"\\\n'), max_size=8
)
literals = st.builds(
    Literal,
    st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
)
column_nodes = st.builds(Column, names)
leaves = st.one_of(
    st.builds(Comparison, column_nodes, st.sampled_from(OPERATORS), column_nodes | literals),
    st.builds(Comparison, literals, st.sampled_from(OPERATORS), column_nodes),
    st.builds(
        Membership,
        column_nodes,
        st.lists(literals, min_size=1, max_size=3).map(tuple),
        st.booleans(),
    ),
)


def _branches(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    terms = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(And, terms), st.builds(Or, terms))


@given(st.recursive(leaves, _branches, max_leaves=8))
def test_a_tree_survives_writing_and_parsing(tree: Expression) -> None:
    assert repr(parse(str(tree))) == repr(tree)


@given(st.text(max_size=60) | st.text("ab01 .'\"`()[]<>=!-and or not in,", max_size=40))
def test_any_text_parses_or_raises_where_error(text: str) -> None:
    try:
        tree = parse(text)
    except WhereError as error:
        assert 0 <= error.offset <= len(text)
    else:
        assert parse(str(tree)) == tree
