"""lm-evaluation-harness: `samples_TASK_DATE.jsonl`, which `--log_samples` writes; one line an example and filter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from auditspec.artifacts.files import open_regular
from auditspec.errors import EvidenceError
from auditspec.score_logs.rows import (
    MAX_FILE,
    MAX_SAMPLE,
    Scored,
    Wanted,
    number,
    only,
    parsed,
    row_of,
)


def read(path: Path, wanted: Wanted) -> Iterator[Scored]:
    """The scores of a file, in its order.

    Raises:
        EvidenceError: if it is missing, unsafe to read, or no such file, or a line lacks the score.
    """
    filters: set[str] = set()
    with open_regular(path) as file:
        if file.seek(0, 2) > MAX_FILE:
            raise EvidenceError(f"{path}: larger than {MAX_FILE} bytes", "split it")
        file.seek(0)
        for index, line in enumerate(iter(lambda: file.readline(MAX_SAMPLE + 1), b""), 1):
            what = f"{path}: line {index}"
            if len(line) > MAX_SAMPLE:
                raise EvidenceError(f"{what}: longer than {MAX_SAMPLE} bytes")
            if not line.strip():
                continue
            sample = parsed(line, what)
            chosen, metrics = str(sample.get("filter", "none")), sample.get("metrics")
            if wanted.filter is not None and chosen != wanted.filter:
                continue
            filters.add(chosen)
            if len(filters) > 1:
                only(dict.fromkeys(sorted(filters)), None, "filter", what)
            if not isinstance(metrics, list) or not all(isinstance(m, str) for m in metrics):
                raise EvidenceError(f"{what}: no sample of lm-eval: `metrics` is missing")
            score = only({m: sample.get(m) for m in metrics}, wanted.score, "score", what)
            yield Scored(row_of(sample.get("doc_id"), wanted, what), 0, number(score, what))
