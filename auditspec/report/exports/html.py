"""The HTML report: one file, no script, nothing loaded, readable in print and in the dark."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from auditspec.report.palette import stylesheet
from auditspec.report.view import build
from auditspec.resources import folder
from auditspec.results import AuditResult

SECTIONS = (
    ("opinion", "Opinion"),
    ("scope", "Scope and independence"),
    ("system", "System and stages"),
    ("evidence", "Evidence"),
    ("method", "Method"),
    ("checks", "Confidence checks"),
    ("findings", "Findings"),
    ("limitations", "Limitations"),
    ("reproducibility", "Reproducibility"),
    ("signoff", "Sign-off"),
    ("effects", "All effects and levels"),
    ("reading", "How to read this report"),
    ("glossary", "Glossary"),
)
"""Anchor and title of each section; the last three are appendices A to C."""
APPENDICES = 3


def render_html(result: AuditResult) -> str:
    """The whole report as one HTML document, the same text for the same result.

    Raises:
        jinja2.TemplateError: if a template of this installation is damaged.
    """
    css = stylesheet()
    numbers = [*range(1, len(SECTIONS) - APPENDICES + 1), *"ABC"]
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=build(result),
            css=Markup(css),  # noqa: S704 - our own file
            policy=_content_security_policy(css),
            sections=[
                {"number": str(n), "id": anchor, "title": title, "file": f"sections/{anchor}.html"}
                for n, (anchor, title) in zip(numbers, SECTIONS, strict=True)
            ],
        )
    )


def _content_security_policy(css: str) -> str:
    """Nothing may be loaded or run; the one style sheet is allowed by its digest."""
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder("templates") / "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawing"] = Markup  # SVG that svg.draw built from an allowlist
    return environment
