"""Sentences from templates: each kind of value, the numbers' places, and what cannot be said."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from view_texts import flat

from auditspec.estimator.interventions import INITIAL
from auditspec.messages import DEEPEST, Message, message
from auditspec.report.exports.readback import Shown, check_numbers
from auditspec.report.parts import Number
from auditspec.report.words import UnspeakableError, Words
from auditspec.report.words.en import ENGLISH
from auditspec.report.words.language import Language
from auditspec.report.words.template import Filler, names, parse


def fill(template: str, **values: Any) -> tuple[str, tuple[Number, ...]]:
    filler = Filler(ENGLISH, {"x:y": template})
    phrase = filler.sentence(Message.model_validate({"code": "x:y", "values": values}), "/m")
    return flat(phrase), tuple(part for part in phrase if isinstance(part, Number))


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("a {b} c", {"b": "x"}, "a x c"),
        ("{{b}}", {}, "{b}"),
        ("{b}", {"b": 1234}, "1,234"),
        ("{b}", {"b": 0.123456}, "0.123"),
        ("{b}", {"b": 3.1e-7}, "3.1 × 10⁻⁷"),
        ("{b}", {"b": ("x", "y")}, "x, y"),
        ("{b:list 2}", {"b": ("x", "y", "z")}, "x, y and 1 more"),
        ("{b:list 2}", {"b": "x"}, "x"),
        ("{b:joined  or }", {"b": ("x", "y", "z")}, "x or y or z"),
        ("{b:percent}", {"b": 0.95}, "95 %"),
        ("{b:percent 1}", {"b": 0.985}, "98.5 %"),
        ("{b:number 4}", {"b": -1.23456}, "−1.235"),
        ("{b:signed}", {"b": 1.5}, "+1.5"),
        ("{b:signed}", {"b": -1.5}, "−1.5"),
        ("{b:signed}", {"b": 0.0}, "0"),
        ("{b:declared}", {"b": 0.97}, "0.97"),
        ("{b:level u}", {"b": 0.7, "u": "share"}, "70 %"),
        ("{b:level u}", {"b": -7.681, "u": "logits"}, "−7.68 logits"),
        ("{b:stated u}", {"b": 0.20123, "u": "share"}, "20.123 %"),
        ("{b:count row|rows}", {"b": 1}, "1 row"),
        ("{b:count row|rows}", {"b": 0}, "0 rows"),
        ("{b:count}", {"b": 12345}, "12,345"),
        ("{b:plural is|are}", {"b": 2}, "are"),
        ("{b:plural is|are}", {"b": ("x",)}, "is"),
        ("{b:case up=above|down=below}", {"b": "down"}, "below"),
        ("{b:case true=yes|false=no}", {"b": True}, "yes"),
        ("{b:party}", {"b": INITIAL}, "the initial weights"),
        ("{b!c:party}", {"b": INITIAL}, "The initial weights"),
        ("{b:party}", {"b": ("a", "b")}, "stage 'a' and stage 'b'"),
        (
            "{b:party}",
            {"b": ("a", "change:b", "c")},
            "stage 'a', the change of the model before 'b', and stage 'c'",
        ),
        ("{b:arm}", {"b": ("omit a",)}, "without stage 'a'"),
        ("{b:arm}", {"b": ()}, "as recorded"),
        ("{b}", {"b": "\u202eevil"}, "‹U+202E›evil"),
        ("{b}", {"b": {"code": "states-re-run"}}, "States between the recorded ones were re-run, not read."),
        (
            "{b}",
            {"b": [{"code": "settle-examples"}, {"code": "settle-replay"}]},
            "more evaluation examples; exact replay (estimator.method: replay), or a larger budget",
        ),
        (
            "{b}",
            {"b": [{"code": "states-re-run"}, {"code": "record-unsigned"}]},
            "States between the recorded ones were re-run, not read. "
            "The training record carries no signature of the trainer.",
        ),
    ],
)  # fmt: skip
def test_each_kind(template: str, values: dict[str, Any], expected: str) -> None:
    assert fill(template, **values)[0] == expected


def test_numbers_point_at_the_values() -> None:
    values = {"a": 0.123456, "b": [1, 2.5], "c": {"code": "check-covers", "values": {"check": "x", "coverage": 0.5, "reasons": "r"}}, "u": "share", "l": 1e-12}  # fmt: skip
    _, numbers = fill("{a:level u} {b} {c} {l:signed}", **values)
    assert [number.ref for number in numbers] == [
        "/m/values/a",
        "/m/values/b/0",
        "/m/values/b/1",
        "/m/values/c/values/coverage",
        "/m/values/l",
    ]
    document = {"m": {"values": values}}
    check_numbers([Shown(n.text, n.ref, n.value, n.scale) for n in numbers], document)


@pytest.mark.parametrize(
    ("template", "values", "said"),
    [
        ("{b}", {}, "missing or superfluous: b"),
        ("{b}", {"b": 1, "c": 2}, "missing or superfluous: c"),
        ("{b:level u}", {"b": 1.0}, "missing or superfluous: u"),
        ("{b:percent}", {"b": "x"}, "not a number"),
        ("{b:percent}", {"b": True}, "not a number"),
        ("{b}", {"b": True}, "truth value"),
        ("{b:party}", {"b": 3}, "not a text"),
        ("{b:arm}", {"b": ("polish",)}, "is no intervention"),
        ("{b:case x=y}", {"b": "z"}, "none of x"),
        ("{b", {}, "expected '}'"),
        ("{b:shout}", {"b": 1}, "no place for a value"),
        ("{b!r}", {"b": 1}, "no place for a value"),
        ("{b.__class__}", {"b": 1}, "no place for a value"),
        ("{}", {}, "no place for a value"),
        ("{b:level}", {"b": 1}, "names no unit"),
        ("{b:number many}", {"b": 1}, "is no number"),
        ("{b:count row}", {"b": 2}, "forms"),
        ("{b:percent 99999999}", {"b": 1}, "no number up to"),
        ("\u202e{b}", {"b": 1}, "cannot be seen"),
    ],
)
def test_what_cannot_be_said(template: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UnspeakableError, match="'x:y'") as caught:
        fill(template, **values)
    assert said in caught.value.message


def test_a_code_without_words_is_named() -> None:
    with pytest.raises(UnspeakableError, match="'no-such-code' in 'en'"):
        Words().text(message("no-such-code"))
    with pytest.raises(UnspeakableError, match="'mine:code'"):
        Words().text(message("mine:code"))
    assert Words(vocabulary={"mine:code": "{a} of mine"}).text(message("mine:code", a=3)) == "3 of mine"  # fmt: skip


def test_a_plug_in_cannot_change_the_words_of_others() -> None:
    words = Words(vocabulary={"states-re-run": "All is well."})
    assert "re-run" in words.text(message("states-re-run"))


def test_messages_are_not_nested_for_ever() -> None:
    deep = message("states-re-run")
    for _ in range(DEEPEST - 1):
        deep = message("gate-reason", gate="g", reasons=[deep])
    assert Words().text(deep).startswith("g: g: ")
    with pytest.raises(ValidationError, match="messages within messages"):
        message("gate-reason", gate="g", reasons=deep)
    hostile: dict[str, Any] = {"code": "x"}
    for _ in range(10_000):
        hostile = {"code": "x", "values": {"y": hostile}}
    with pytest.raises(ValidationError):
        Message.model_validate(hostile)


def test_names_are_those_of_values_and_units() -> None:
    assert names("{a} {b:level c} {d:count x|y}") == {"a", "b", "c", "d"}
    assert [part for part in parse("a {b} c") if isinstance(part, str)] == ["a ", " c"]


def test_another_language_has_its_own_plurals_lists_and_parties() -> None:
    def plural(count: float) -> int:  # Polish: 1 etap, 2 etapy, 5 etapów
        few = count % 10 in (2, 3, 4) and count % 100 not in (12, 13, 14)
        return 0 if count == 1 else 1 if few else 2

    polish = Language(
        name="pl",
        templates={
            "counted": "{n:count etap|etapy|etapów}: {who:party}",
            "long": "{names:list 1}",
            "arm": "{arm:arm}",
        },
        plural=plural,
        party=lambda party: f"etap „{party}”",
        arm=lambda arm: f"bez {len(arm)}",
        conjunction=lambda items: " i ",
        more=lambda items: f" i {items} więcej",
    )
    filler = Filler(polish, {})

    def shown(code: str, **values: Any) -> str:
        return flat(filler.sentence(Message.model_validate({"code": code, "values": values}), ""))

    assert shown("counted", n=2, who=["a", "b"]) == "2 etapy: etap „a” i etap „b”"
    assert shown("counted", n=12, who="a") == "12 etapów: etap „a”"
    assert shown("long", names=["x", "y", "z"]) == "x i 2 więcej"
    assert shown("arm", arm=["omit a"]) == "bez 1"
