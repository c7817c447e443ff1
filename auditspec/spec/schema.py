"""The published JSON Schemas, generated from the types that read and write each format.

`python -m auditspec.spec.schema` writes them again into `schemas/`; a test compares.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from auditspec.resources import folder

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SUFFIX = ".schema.json"
MODELS: dict[str, str] = {
    "auditspec-1": "auditspec.spec.models:Spec",
    "auditspec-lock-1": "auditspec.spec.lock:Lock",
    "auditspec-record-1": "auditspec.record.format:RecordHeader",
    "auditspec-results-2": "auditspec.results:AuditResult",
}
"""Each format with its type, as `module:name`, since some types live in higher layers."""


def document(name: str) -> dict[str, Any]:
    """The schema of one format of `MODELS`.

    Raises:
        KeyError: for a format that does not exist.
    """
    module, _, type_name = MODELS[name].partition(":")
    model: type[BaseModel] = getattr(import_module(module), type_name)
    schema = model.model_json_schema(by_alias=True)
    return {"$schema": DIALECT, "$id": f"urn:auditspec:schema:{name}", **schema}


def documents() -> dict[str, dict[str, Any]]:
    """Every published schema by its file name."""
    return {name + SUFFIX: document(name) for name in MODELS}


def encode(schema: dict[str, Any]) -> str:
    """The text of a schema's file, the same for the same types."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write(target: Path) -> list[Path]:
    """Write every schema into a folder, and return the paths.

    Raises:
        OSError: if the folder cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for file_name, schema in documents().items():
        path = target / file_name
        path.write_text(encode(schema), encoding="utf-8")
        paths.append(path)
    return paths


if __name__ == "__main__":
    write(folder("schemas"))
