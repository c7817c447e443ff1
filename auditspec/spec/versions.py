"""The versions of the spec that this release reads."""

from __future__ import annotations

from auditspec.spec.models import Spec

VERSION_KEY = "auditspec"
LATEST = "1"
VERSIONS: dict[str, type[Spec]] = {"1": Spec}
