"""Words of plug-ins: those that are used travel in the results, and what is wrong with them is said at once."""

from __future__ import annotations

from typing import Any

import pytest
from sample_results import sample_result

from auditspec.errors import UsageError
from auditspec.messages import message
from auditspec.report.exports.html_page import render_html
from auditspec.report.words.vocabulary import messages_in, vocabulary_of
from auditspec.results import AuditResult, Limitation

OWN = message("tides:moon-was-full", count=3)
TEMPLATE = "The moon was full {count:count time|times} during training."


def plugin(**words: Any) -> list[tuple[str, type]]:
    sentences = {f"tides:{name}": template for name, template in words.items()}
    return [("tides", type("Tides", (), {"sentences": sentences}))]


def spoken() -> AuditResult:
    quoted = message("check-not-run", check="tides", reasons=[OWN])
    return sample_result(limitations=(Limitation(id="L-1", message=quoted),))


def test_only_what_is_used_travels() -> None:
    offered = plugin(**{"moon-was-full": TEMPLATE, "moon-was-new": "The moon was new."})
    assert vocabulary_of(spoken(), offered) == {"tides:moon-was-full": TEMPLATE}
    assert vocabulary_of(sample_result(), offered) == {}


def test_it_is_read_where_the_plug_in_is_not_installed() -> None:
    words = vocabulary_of(spoken(), plugin(**{"moon-was-full": TEMPLATE}))
    stored = spoken().model_copy(update={"vocabulary": words}).model_dump_json()
    html = render_html(AuditResult.model_validate_json(stored))
    at = html.index("The moon was full")
    assert 'data-ref="/limitations/0/message/values/reasons/0/values/count">3<' in html[at:][:200]


def test_messages_within_messages_are_seen() -> None:
    assert OWN in set(messages_in(spoken()))
    assert {m.code for m in messages_in({"a": [OWN, 1, "x"], "b": None})} == {OWN.code}


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        ([], "has no words for it"),
        (plugin(), "has no words for it"),
        (plugin(**{"moon-was-full": "The moon was full."}), "differ by count"),
        (plugin(**{"moon-was-full": "{count:often}"}), "no place for a value"),
        (plugin(**{"moon-was-full": 3}), "are no template"),
        (
            [("tides", type("Tides", (), {"sentences": {"states-re-run": "x"}}))],
            "which is not its own",
        ),
    ],
)
def test_what_is_wrong_is_said(offered: list[tuple[str, type]], said: str) -> None:
    with pytest.raises(UsageError, match="plug-in 'tides'") as caught:
        vocabulary_of(spoken(), offered)
    assert said in caught.value.message
    assert caught.value.remedy
