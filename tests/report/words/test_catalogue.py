"""The catalogue: every code that is made has a sentence, and every sentence is of a code that is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from codes import made, page

from auditspec.report.words import LANGUAGES
from auditspec.report.words.language import Language
from auditspec.report.words.template import names, parse

MADE = tuple(made())
EVERY = list(LANGUAGES.values())


@pytest.mark.parametrize("language", EVERY, ids=lambda language: language.name)
def test_codes_and_sentences_are_the_same_everywhere(language: Language) -> None:
    assert {item.code for item in MADE} == set(language.templates)


@pytest.mark.parametrize("language", EVERY, ids=lambda language: language.name)
def test_values_are_those_of_the_sentence(language: Language) -> None:
    for item in MADE:
        assert item.values == names(language.templates[item.code]), f"{item.code} in {item.place}"


@pytest.mark.parametrize("language", EVERY, ids=lambda language: language.name)
def test_every_form_of_a_word_is_there(language: Language) -> None:
    forms = 1 + max(language.plural(count) for count in range(200))
    for code, template in language.templates.items():
        for part in parse(template):
            if not isinstance(part, str) and part.kind == "plural":
                assert len(part.forms) == forms, code
            if not isinstance(part, str) and part.kind == "count" and part.argument:
                assert len(part.forms) == forms, code


def test_the_documented_codes_are_those_of_the_catalogue() -> None:
    document = Path(__file__).parents[3] / "docs" / "codes.md"
    assert document.read_text(encoding="utf-8") == page(), "make codes"
