"""What an audit ran with, as a bill of materials that other tools read: CycloneDX 1.6, JSON.

Every distribution that is installed is listed, for audited code may import any: name, version, and a digest of the files that
its installation recorded. Neither paths nor the machine nor the time stand in it: the same installation gives the same bytes.

Source: ECMA-424 (CycloneDX 1.6); names of distributions as purl's type `pypi` writes them.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from typing import Any
from urllib.parse import quote

from auditspec import plugins

FILE = "environment.cdx.json"
"""In the packet."""
_OF_THE_INSTALLER = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")
"""Files beside the metadata that say how something was installed, rather than what."""


@functools.cache
def environment() -> bytes:
    """The bill of what is installed here, when it is first asked for."""
    return bill(distributions(), plugins.installed())


def bill(installed: Iterable[Distribution], plugged: Iterable[plugins.Plugin] = ()) -> bytes:
    """The bill of distributions; of two of one name the first counts, as it does for imports.

    Args:
        installed: in the order of the search path.
        plugged: the plug-ins among what they offer.

    Returns:
        CycloneDX 1.6 as JSON. A component's property `auditspec:files` is the sha256 of `PATH,HASH` lines of its RECORD, sorted,
        without files outside the folder of packages, byte code, and what the installer notes about itself.
    """
    offered: dict[str, list[dict[str, str]]] = {}
    for plugin in plugged:
        entry = {"name": f"auditspec:plugin:{plugin.kind}/{plugin.name}", "value": plugin.digest}
        offered.setdefault(_normal(plugin.distribution), []).append(entry)
    components: dict[str, dict[str, Any]] = {}
    for distribution in installed:
        metadata = distribution.metadata  # read anew whenever it is asked for
        name = _normal(metadata["Name"])
        if name not in components:
            described = _described(name, metadata["Version"])
            components[name] = described | _properties(distribution, offered.get(name, []))
    own = components.pop("auditspec", _described("auditspec", "unknown"))
    digest = {"name": "auditspec:code", "value": plugins.digest_of_package(__package__)}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own | {"type": "application", "properties": [digest]}},
        "components": [
            {
                "type": "platform",
                "bom-ref": "python",
                "name": platform.python_implementation(),
                "version": platform.python_version(),
            },
            *(components[name] for name in sorted(components)),
        ],
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _properties(distribution: Distribution, offered: list[dict[str, str]]) -> dict[str, Any]:
    properties = [*offered]
    if rows := sorted(_recorded(distribution)):
        digest = hashlib.sha256("".join(f"{row}\n" for row in rows).encode()).hexdigest()
        properties.insert(0, {"name": "auditspec:files", "value": f"sha256:{digest}"})
    return {"properties": properties} if properties else {}


def _described(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{quote(version, safe='')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _recorded(distribution: Distribution) -> Iterator[str]:
    """Lines of RECORD about what was installed."""
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        path, digest = (*row, "", "")[:2]
        folder, _, file = path.rpartition("/")
        beside = folder.endswith(".dist-info") and file in _OF_THE_INSTALLER
        if digest and not path.startswith(("/", "..")) and not path.endswith(".pyc") and not beside:
            yield f"{path},{digest}"


def _normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
