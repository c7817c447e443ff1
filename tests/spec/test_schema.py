import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from factories import minimal_spec
from sample_results import sample_result

from auditspec.resources import folder
from auditspec.spec import schema
from auditspec.spec.models import Spec

FILES = [name + schema.SUFFIX for name in schema.MODELS]


def errors(name: str, data: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema.document(name))
    return [error.json_path for error in validator.iter_errors(data)]


@pytest.mark.parametrize("file", FILES)
def test_the_published_schema_is_the_generated_one(file: str) -> None:
    published = (folder("schemas") / file).read_text(encoding="utf-8")
    assert published == schema.encode(schema.documents()[file]), (
        "run python -m auditspec.spec.schema"
    )


@pytest.mark.parametrize("name", schema.MODELS)
def test_schemas_are_schemas(name: str) -> None:
    document = schema.document(name)
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["$schema"] == schema.DIALECT
    assert document["$id"].endswith(name)
    assert document["additionalProperties"] is False


def test_a_valid_spec_fits_its_schema() -> None:
    assert errors("auditspec-1", minimal_spec()) == []
    written = Spec.model_validate(minimal_spec()).model_dump(mode="json", by_alias=True)
    assert errors("auditspec-1", written) == []


def test_a_broken_spec_does_not() -> None:
    broken = minimal_spec()
    broken["stages"][0]["optimizer"]["lr"] = -1
    broken["auditor"]["nmae"] = "x"
    broken["behaviors"][0]["metric"] = {"name": "nil"}
    assert sorted(errors("auditspec-1", broken)) == [
        "$.auditor",
        "$.behaviors[0].metric",
        "$.stages[0].optimizer.lr",
    ]


def test_results_and_locks_fit_their_schemas() -> None:
    assert errors("auditspec-results-2", sample_result().model_dump(mode="json")) == []
    assert errors("auditspec-results-2", {}) == ["$"] * len(
        schema.document("auditspec-results-2")["required"]
    )
    digest = "sha256:" + "0" * 64
    assert errors("auditspec-lock-1", {"auditspec_lock": "1", "digests": {"a": digest}}) == []
    assert errors("auditspec-lock-1", {"auditspec_lock": "1", "digests": {"a": "x"}}) == [
        "$.digests.a"
    ]


def test_editors_find_descriptions() -> None:
    properties = schema.document("auditspec-1")["$defs"]["Model"]["properties"]
    assert properties["load_batch"]["description"].startswith("(dataset, ids) -> batch")


def test_write(tmp_path: Path) -> None:
    written = schema.write(tmp_path / "new")
    assert [path.name for path in written] == FILES
    for path in written:
        assert json.loads(path.read_text()) == schema.documents()[path.name]
