"""The published JSON Schemas, generated from the types that read and write each format.

`python -m auditspec.spec.schema` writes them again into `schemas/`; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import json
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import ModelSchema

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
    schema = model.model_json_schema(by_alias=True, schema_generator=_Described)
    return {"$schema": DIALECT, "$id": f"urn:auditspec:schema:{name}", **schema}


class _Described(GenerateJsonSchema):
    """Describes a field by the text below it in the source: read here, for that takes a tenth of a second."""

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        written, model = super().model_schema(schema), schema["cls"]
        texts: dict[str, str] = {}
        for kind in reversed(model.__mro__):
            texts |= _attribute_texts(kind) if issubclass(kind, BaseModel) else {}
        for name, field in model.model_fields.items():
            described = written.get("properties", {}).get(field.alias or name)
            if described is not None and name in texts:
                described.setdefault("description", texts[name])
        return written


def _attribute_texts(kind: type) -> dict[str, str]:
    """The text below each attribute of a class."""
    (definition,) = ast.parse(dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101 - its source
    return {
        attribute.target.id: inspect.cleandoc(text.value.value)
        for attribute, text in pairwise(definition.body)
        if isinstance(attribute, ast.AnnAssign)
        and isinstance(attribute.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


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
