"""The wheel's bill of materials (PEP 770): what it ships of others, and what it was tested with. `make lock` writes it.

python tests/support/wheel_bill.py > auditspec.cdx.json
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FONTS = {"DejaVu": "LICENSE-DejaVu.txt", "Liberation": "LICENSE-Liberation.txt"}
"""Families of fonts that stand in the wheel, with their licences."""


def locked() -> dict[str, str]:
    """Versions by name."""
    text = "".join((ROOT / f"constraints{more}.txt").read_text() for more in ("", "-torch"))
    pairs = re.findall(r"^([^\s#=]+)==([^\s;]+)", text, re.MULTILINE)
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(wanted: list[str]) -> dict[str, list[str]]:
    """Whatever these requirements need, by name, each with what it needs itself (on Linux, without extras of extras)."""
    needs: dict[str, list[str]] = {}
    left = [Requirement(text) for text in wanted]
    while left:
        requirement = left.pop()
        name = normal(requirement.name)
        extras = requirement.extras or {""}
        own = [Requirement(text) for text in requires(name) or ()]
        own = [
            r for r in own if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)
        ]
        known = needs.setdefault(name, [])
        new = [r for r in own if normal(r.name) not in known]
        known += sorted({normal(r.name) for r in new})
        left += new
    return needs


def library(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def font(path: Path) -> dict[str, Any]:
    licence = next(text for family, text in FONTS.items() if path.name.startswith(family))
    return {
        "type": "file",
        "bom-ref": f"fonts/{path.name}",
        "name": path.name,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
        "licenses": [{"license": {"name": f"templates/fonts/{licence}"}}],
    }


def bill() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions, needs = locked(), needed(project["dependencies"])
    refs = {name: f"pkg:pypi/{name}@{versions[name]}" for name in needs}
    own = library(project["name"], project["version"])
    own |= {"type": "application", "licenses": [{"expression": project["license"]}]}
    direct = sorted({normal(Requirement(text).name) for text in project["dependencies"]})
    graph = {own["bom-ref"]: direct} | {refs[name]: needs[name] for name in sorted(needs)}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own},
        "components": [
            *(font(path) for path in sorted((ROOT / "templates" / "fonts").glob("*.ttf"))),
            *(library(name, versions[name]) for name in sorted(needs)),
        ],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(refs[name] for name in names)}
            for ref, names in graph.items()
        ],
    }
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(bill())
