"""Sections: one list, one interface; what has nothing to say is left out, and a plug-in adds one."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugged import install
from reading import by_id, parse, text
from sample_results import sample_result

from auditspec.report import sections
from auditspec.report.exports.html_page import render_html
from auditspec.report.lookup import Lookup
from auditspec.report.sections.interface import Section
from auditspec.report.view import build
from auditspec.resources import folder
from auditspec.results import AuditResult
from auditspec.withheld import Withheld


@pytest.mark.parametrize("section", sections.SECTIONS, ids=lambda section: section.id)
def test_a_section_keeps_the_interface(section: type[Section]) -> None:
    assert section.__doc__ and section.title
    assert set(section.shows) <= set(AuditResult.model_fields)
    assert (folder("templates") / "report" / "sections" / f"{section.id}.html").is_file()
    assert section().view(Lookup(sample_result())) == section().view(Lookup(sample_result()))


def test_no_field_is_shown_twice() -> None:
    fields = [field for section in sections.SECTIONS for field in section.shows]
    assert len(set(fields)) == len(fields)


def test_every_template_has_its_section() -> None:
    names = {path.stem for path in (folder("templates") / "report" / "sections").iterdir()}
    assert names == {section.id for section in sections.SECTIONS}


class Silent(Section):
    """Says something of withheld contributions only."""

    id = "silent"
    title = "Silent"
    shows = ("contributions",)

    def view(self, known: Lookup) -> None:
        return None


def test_what_has_nothing_to_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [(s.number, s.id) for s in build(sample_result()).sections]
    monkeypatch.setattr(sections, "SECTIONS", (Silent, *sections.SECTIONS))
    assert [(s.number, s.id) for s in build(sample_result()).sections] == before
    secret = Withheld("/contributions/0/total", "0" * 64, "a secret")
    page = parse(render_html(sample_result().less([secret])))
    assert "a secret" in text(by_id(page, "silent"))


PLUGGED = """
from auditspec.report.sections.interface import Section

class Carbon(Section):
    id = "carbon"
    title = "Carbon"
    template = '{% from "macros.html" import more %}<p>{{ view }} kg, </p>{{ more(3) }}'

    def view(self, known):
        return f"<{known.result.run.seconds}>"
"""


def test_a_plug_in_adds_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, {"carbon": PLUGGED}, {"sections": {"carbon": "carbon:Carbon"}})
    result = sample_result()
    shown = [(s.number, s.id) for s in build(result).sections]
    assert shown[9:12] == [("10", "signoff"), ("11", "carbon"), ("A", "effects")]
    words = text(by_id(parse(render_html(result)), "carbon"))
    assert words == f"11 Carbon <{result.run.seconds}> kg, and 3 more in results.json"
