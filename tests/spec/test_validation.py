from typing import Annotated

from pydantic import Field

from auditspec.errors import Problem
from auditspec.frozen import Frozen
from auditspec.spec.tree import read
from auditspec.spec.validation import shown, validate


class Inner(Frozen):
    path: str
    number: Annotated[int, Field(multiple_of=2)] = 0


class Outer(Frozen):
    items: tuple[Annotated[Inner, Field(title="An item")], ...] = ()
    named: dict[str, Inner | None] = Field(default_factory=dict)


def check(text: str) -> tuple[Outer | None, list[Problem]]:
    root, problems = read(text.encode(), "f")
    assert root is not None
    assert not problems
    return validate(root, Outer, "f")


def test_a_valid_document() -> None:
    assert check("items: [{path: a}]\nnamed: {x: null}\n") == (
        Outer(items=(Inner(path="a"),), named={"x": None}),
        [],
    )


def test_suggestions_see_through_lists_mappings_and_unions() -> None:
    model, problems = check(
        "items: [{pth: a, path: b}]\nnamed: {path: {path: c, nmber: 2}}\nitem: 1\n"
    )
    assert model is None
    assert sorted(map(str, problems)) == [
        "f:1:10: error[AS012] unknown key 'pth'; did you mean 'path'?",
        "f:2:25: error[AS012] unknown key 'nmber'; did you mean 'number'?",
        "f:3:1: error[AS012] unknown key 'item'; did you mean 'items'?",
    ]


def test_an_error_without_own_words_keeps_those_of_its_type() -> None:
    assert [str(problem) for problem in check("items: [{path: a, number: 3}]")[1]] == [
        "f:1:27: error[AS015] items[0].number: expected a multiple of 2, found the number 3"
    ]


def test_locations_in_words() -> None:
    assert shown(("stages", 1, "optimizer", "betas", 0)) == "stages[1].optimizer.betas[0]"
    assert shown(()) == "the document"
