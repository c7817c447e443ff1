"""Threats in the spec (T22 to T25, T31): exit code 2 with a place, or shown as harmless text."""

from html import unescape
from pathlib import Path

import pytest
from factories import SPEC_TEXT
from sample_variants import HOSTILE, hostile_result

from auditspec.errors import Exit, SpecError
from auditspec.report.exports.html_page import render_html
from auditspec.spec.source import load

pytestmark = pytest.mark.threat


def refused(folder: Path, text: str, code: str) -> None:
    path = folder / "audit.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load(path)
    assert caught.value.exit_code == Exit.USAGE == 2
    found = {problem.code for problem in caught.value.problems}
    assert code in found, caught.value
    assert all(problem.line for problem in caught.value.problems)


def changed(old: str, new: str) -> str:
    assert SPEC_TEXT.count(old) >= 1
    return SPEC_TEXT.replace(old, new, 1)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (SPEC_TEXT + BOMB, "AS006"),
        (SPEC_TEXT + "audit: {id: other, title: Twice}\n", "AS005"),
        (changed("A demonstration", "!!python/object/apply:os.system [id]"), "AS007"),
        (SPEC_TEXT + "<<: {report: {formats: [html]}}\n", "AS008"),
        (SPEC_TEXT + "---\n" + SPEC_TEXT, "AS009"),
        (SPEC_TEXT + "review: " + "[" * 500 + "]" * 500 + "\n", "AS010"),
    ],
    ids=["alias-bomb", "duplicate-key", "tag", "merge-key", "documents", "nesting"],
)
def test_t22_yaml_that_two_readers_see_differently(tmp_path: Path, text: str, code: str) -> None:
    refused(tmp_path, text, code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (changed('"1.0"', "1.10"), "AS014"),
        (changed("lr: 0.1", "lr: .nan"), "AS011"),
        (changed("tolerance: 0.1", "tolerance: .inf"), "AS011"),
        (changed("positive: 8", "positive: 010"), "AS011"),
    ],
    ids=["version", "nan", "inf", "leading-zero"],
)
def test_t23_numbers_that_are_not_what_they_seem(tmp_path: Path, text: str, code: str) -> None:
    refused(tmp_path, text, code)


@pytest.mark.parametrize("hidden", ["\u202e", "\u2066", "\u200b", "\u00ad"])
def test_t24_hidden_characters(tmp_path: Path, hidden: str) -> None:
    refused(tmp_path, changed("A. Auditor", f"A.{hidden}Auditor"), "AS004")


def test_t25_markup_and_templates_stay_text() -> None:
    html = render_html(hostile_result())
    assert any("<script>" in text for text in HOSTILE) and any("{{" in text for text in HOSTILE)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "{{7*7}}" in html
    assert "default-src 'none'" in unescape(html)
    for loads in (
        'src="',
        "<iframe",
        "<object",
        "<link",
        "<image",
        'href="file',
        'href="http',
    ):
        assert loads not in html, loads


@pytest.mark.parametrize(
    "where",
    [
        "@os.system('id')",
        "digit.to_pickle('x')",
        "__import__('os').system('id') == 0",
        "digit.values",
        "[x for x in digit]",
        "digit == (lambda: 3)()",
        "digit ** 999999999",
    ],
)
def test_t31_code_in_a_where_expression(tmp_path: Path, where: str) -> None:
    line = 'where: digit == 3 and source != "synthetic"'
    refused(tmp_path, changed(line, f'where: "{where}"'), "AS030")
