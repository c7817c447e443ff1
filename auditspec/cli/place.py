"""Arguments that name a path, or a place in a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditspec.urls import is_url

if TYPE_CHECKING:
    PathOrUrl = click.ParamType[Path | str]
else:
    PathOrUrl = click.ParamType


class Place(PathOrUrl):
    """A path; or a URL as it stands, which a path would take apart."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The URL as text, or the path."""
        return value if is_url(value) else Path(value)


PLACE = Place()
