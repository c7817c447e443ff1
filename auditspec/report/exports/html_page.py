"""The HTML report: one file, no script, nothing loaded, readable in print and in the dark."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from auditspec.report.palette import stylesheet
from auditspec.report.view import SectionView, build
from auditspec.resources import folder
from auditspec.results import AuditResult


def render_html(result: AuditResult, digest: str = "") -> str:
    """The whole report as one HTML document, the same text for the same result.

    Args:
        result: what was found.
        digest: of the bytes of results.json; the report names it, so that it is of these results and no others.

    Raises:
        UsageError: if a plug-in's section cannot be used.
        jinja2.TemplateError: if a template of this installation is damaged.
    """
    css, report = stylesheet(), build(result, digest)
    return (
        _environment()
        .get_template("report.html")
        .render(
            cover=report.cover,
            sections=report.sections,
            template=_template,
            css=Markup(css),  # noqa: S704 - our own file
            policy=_content_security_policy(css),
        )
    )


def _template(section: SectionView) -> Template:
    if section.source:
        return _environment().from_string(section.source)
    return _environment().get_template(f"sections/{section.id}.html")


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
