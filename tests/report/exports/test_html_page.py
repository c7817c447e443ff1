"""The HTML report: true to results.json, inert, accessible, small."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from reading import SVG, XHTML, by_id, every, parse, text
from sample_results import sample_result, signed_result
from sample_roles import roles_result
from sample_variants import HOSTILE, failed_result, hostile_result, shared_result

from auditspec.report.exports.html_page import render_html
from auditspec.report.numbers import read
from auditspec.report.palette import DARK, LIGHT, colours, contrast, stylesheet
from auditspec.report.sections import SECTIONS
from auditspec.results import AuditResult, RoleResult

VARIANTS: dict[str, Callable[[], AuditResult]] = {
    "sample": sample_result,
    "signed": signed_result,
    "shared": shared_result,
    "failed": failed_result,
    "hostile": hostile_result,
    "roles": roles_result,
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render_html(make()) for name, make in VARIANTS.items()}


@pytest.fixture(scope="module")
def trees(pages: dict[str, str]) -> dict[str, Element]:
    return {name: parse(page) for name, page in pages.items()}


def resolve(document: Any, pointer: str) -> Any:
    for token in pointer.split("/")[1:]:
        document = document[int(token) if isinstance(document, list) else token]
    return document


@pytest.mark.parametrize("name", VARIANTS)
def test_every_number_is_the_one_in_results_json(trees: dict[str, Element], name: str) -> None:
    results = json.loads(VARIANTS[name]().model_dump_json())
    numbers = list(every(trees[name], "data"))
    assert len(numbers) > 10
    for number in numbers:
        value = resolve(results, number.attrib["data-ref"])
        assert float(number.attrib["value"]) == value
        shown, scale = text(number), float(number.get("data-scale", 1))
        digits = re.sub(r"\D", "", re.split(r"\s×", shown)[0]).lstrip("0")
        unit = 10.0 ** -len(shown.partition(".")[2]) if "×" not in shown else 0.0
        error = abs(abs(read("".join(number.itertext()))) - abs(value * scale))
        assert error <= 0.5 * unit + 0.5 * 10.0 ** (1 - max(1, len(digits))) * abs(value * scale)


def test_every_effect_is_displayed(trees: dict[str, Element]) -> None:
    refs = {number.attrib["data-ref"] for number in every(trees["sample"], "data")}
    for index in range(len(sample_result().effects)):
        for field in ("value", "low", "high", "counterfactual", "leads"):
            assert f"/effects/{index}/{field}" in refs


@pytest.mark.parametrize("name", VARIANTS)
def test_structure(trees: dict[str, Element], name: str) -> None:
    tree = trees[name]
    assert tree.get("lang") == "en"
    levels = [int(e.tag[-1]) for e in tree.iter() if re.fullmatch(XHTML + r"h[1-6]", str(e.tag))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    ids = [i for e in tree.iter() if (i := e.get("id"))]
    assert len(ids) == len(set(ids))
    targets = [e.attrib["href"] for e in every(tree, "a")]
    assert targets and all(target[0] == "#" and target[1:] in ids for target in targets)
    assert [s.id for s in SECTIONS if s.id not in ids] == []
    for table in every(tree, "table"):
        assert all(th.get("scope") in ("row", "col") for th in every(table, "th"))


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_runs_and_nothing_is_loaded(trees: dict[str, Element], name: str) -> None:
    for element in trees[name].iter():
        tag = str(element.tag).rpartition("}")[2]
        assert tag not in {"script", "iframe", "object", "embed", "link", "form", "img", "base"}
        for attribute, value in element.attrib.items():
            assert not attribute.startswith("on") and attribute != "style"
            if attribute in ("src", "href") or attribute.endswith("}href"):
                assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import|@font-face", stylesheet())


def test_the_policy_allows_the_one_style_sheet_and_nothing_else(trees: dict[str, Element]) -> None:
    (policy,) = (
        meta.attrib["content"]
        for meta in every(trees["sample"], "meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    (style,) = every(trees["sample"], "style")
    digest = base64.b64encode(hashlib.sha256((style.text or "").encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", VARIANTS)
def test_pictures_have_names(trees: dict[str, Element], name: str) -> None:
    pictures = list(trees[name].iter(f"{SVG}svg"))
    assert len(pictures) == {"failed": 0, "roles": 20}.get(name, 8)
    assert all(picture.find(f"{SVG}title") is not None for picture in pictures)
    figures = [f for e in every(trees[name], "figure") for f in every(e, "div") if f.get("role")]
    labels = [figure.get("aria-label") for figure in figures]
    assert len(set(labels)) == len(labels) == len(pictures)


def test_hostile_strings_are_text(pages: dict[str, str], trees: dict[str, Element]) -> None:
    shown = text(next(every(trees["hostile"], "h1")))
    assert "<script>alert(1)</script>" in shown
    assert "{{7*7}}" in shown
    assert "file:///etc/passwd" in text(by_id(trees["hostile"], "limitations"))
    for evil in HOSTILE[:1] + HOSTILE[2:4]:
        assert evil not in pages["hostile"]
    assert not set("\u202e\u2066\x00\x1b") & set(pages["hostile"])
    assert "‹U+202E›" in pages["hostile"]


def test_unsigned_is_marked_and_signed_is_explained(trees: dict[str, Element]) -> None:
    unsigned, signed = trees["sample"], trees["signed"]
    assert any(e.get("class") == "unsigned" for e in unsigned.iter())
    assert "UNSIGNED" in text(by_id(unsigned, "signoff"))
    assert "UNSIGNED" not in text(next(every(signed, "body")))
    section = text(by_id(signed, "signoff"))
    assert "auditspec verify PACKET --trust trust.yaml" in section
    signer = signed_result().signer
    assert signer is not None and signer.keyid in section and signer.algorithm in section


def test_words_of_blame_appear_where_somebody_is_named_only(trees: dict[str, Element]) -> None:
    blame = re.compile("answerable|responsible|blame|inherited|introduced", re.IGNORECASE)
    assert blame.search(text(by_id(trees["sample"], "opinion")))
    assert not blame.search(text(by_id(trees["failed"], "opinion")))
    for name in ("sample", "shared", "failed", "roles"):
        result = VARIANTS[name]()
        for number, verdict in enumerate(result.verdicts, 1):
            article = text(by_id(trees[name], f"behaviour-{number}"))
            assert bool(blame.search(article)) is bool(verdict.parties)
            assert ("Answerable is not guilty" in article) is bool(verdict.parties)


def test_green_is_for_what_is_within_a_stated_limit(trees: dict[str, Element]) -> None:
    for name in ("sample", "roles"):
        opinion = by_id(trees[name], "opinion")
        green = [e for e in opinion.iter() if "tone-good" in e.get("class", "").split()]
        assert {text(e) for e in green if e.tag == f"{XHTML}span"} == {"✓ Within the limit"}


def test_the_opinion_holds_all_that_a_reader_needs(trees: dict[str, Element]) -> None:
    opinion = text(by_id(trees["sample"], "opinion"))
    for words in (
        "Not passed",
        "exit code 1",
        "Answerable",
        "stage 'relabel' (Data operations)",
        "raised by 1.27 logits (1.11 to 1.44)",
        "−1.874 logits on 61 examples, above the limit of −3 logits",
        "the model would end at −3.147 logits",
        "Not cleared",
        "severity ▪▪▪ High",
        "Within the limit",
        "Inconclusive",
        "Main limitation.",
    ):
        assert words in opinion


def test_failed_evidence_is_said_plainly(trees: dict[str, Element]) -> None:
    tree = trees["failed"]
    assert "Mismatched" in text(by_id(tree, "evidence"))
    assert "Missing" in text(by_id(tree, "evidence"))
    assert "Nothing was estimated." in text(by_id(tree, "method"))
    assert "No effect was estimated" in text(by_id(tree, "opinion"))
    assert text(by_id(tree, "checks")).count("Not run") == 5  # the tally, and four checks


def test_a_suppressed_finding_is_shown_as_such(trees: dict[str, Element]) -> None:
    assert "Suppressed. Accepted by" in text(by_id(trees["shared"], "behaviour-1"))


@pytest.mark.parametrize("name", VARIANTS)
def test_size(pages: dict[str, str], name: str) -> None:
    assert len(pages[name].encode()) < 350_000


def test_a_huge_audit_stays_below_a_megabyte() -> None:
    sample = sample_result()
    stages = tuple(sample.stages[i % 5].model_copy(update={"id": f"stage-{i}"}) for i in range(40))
    behaviors = tuple(
        sample.behaviors[i % 3].model_copy(update={"id": f"behaviour-{i}"}) for i in range(70)
    )
    effects = tuple(
        sample.effects[j % 15].model_copy(update={"behavior": b.id, "stage": s.id})
        for b in behaviors
        for j, s in enumerate(stages)
    )
    paths = tuple(
        sample.paths[j % 18].model_copy(
            update={"behavior": b.id, "arm": () if j == 0 else (f"omit stage-{j}",)}
        )
        for b in behaviors
        for j in range(41)
    )
    roles = tuple(
        RoleResult(party=s.id, role="none" if j % 16 else "masks", rise=0.123456789, effect=-0.2)
        for j, s in enumerate(stages)
    )
    verdicts = tuple(
        sample.verdicts[0].model_copy(update={"behavior": b.id, "roles": roles}) for b in behaviors
    )
    page = render_html(
        sample_result(
            stages=stages, behaviors=behaviors, effects=effects, paths=paths, verdicts=verdicts
        )
    )
    assert len(page.encode()) < 1_000_000
    shown = text(next(every(parse(page), "main")))
    assert shown.count("and 20 more in results.json") == 3  # opinion, scope, findings
    assert "and 2440 more in results.json" in shown


def test_the_same_result_gives_the_same_text(pages: dict[str, str]) -> None:
    assert render_html(sample_result()) == pages["sample"]


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_contrast(scheme: str) -> None:
    """WCAG 2.2 AA: 4.5 for text."""
    ink = colours(scheme)
    pairs = [(name, "paper") for name in ("ink", "muted", "accent", "concern", "mark")]
    for tone in ("attributed", "shared", "good", "bad", "open", "none"):
        pairs += [(tone, f"{tone}-tint"), (tone, "paper"), ("ink", f"{tone}-tint")]
    pairs += [("muted", "bad-tint"), ("muted", "good-tint"), ("muted", "band"), ("ink", "band")]
    pairs += [("on-light", n) for n in ("neutral", "towards-1", "towards-2", "away-1", "away-2")]
    pairs += [("on-strong", "towards-3"), ("on-strong", "away-3")]
    weak = {pair: contrast(ink[pair[0]], ink[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}


def test_both_schemes_name_the_same_colours() -> None:
    assert colours(LIGHT).keys() == colours(DARK).keys()
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    with pytest.raises(ValueError, match="no scheme"):
        colours("sepia")


def test_charts_are_recoloured_by_rules_that_exist(pages: dict[str, str]) -> None:
    used = {
        name
        for svg in re.findall(r"<svg.*?</svg>", pages["sample"], re.DOTALL)
        for names in re.findall(r'class="([^"]*)"', svg)
        for name in names.split()
    }
    for name in used - {"chart"}:
        kind, colour = name.split("-", 1)
        assert (
            f".{name} {{ {'fill' if kind == 'f' else 'stroke'}: var(--{colour}); }}" in stylesheet()
        )
