"""No spec with something wrong is called valid, each is told where, and no sound one is refused."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import package_audit
import pytest
from mutations import Mutation, mutations
from small_audit import lock

from auditspec.consistency.check import check
from auditspec.errors import Problem, SpecError
from auditspec.sign import keys
from auditspec.sign.certificates import self_signed
from auditspec.spec.source import parse

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
RIGHT_LINE = 0.98


def digits(folder: Path) -> Path:
    pytest.importorskip("sklearn")
    folder = folder / "digits"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("build*", "*.lock.json"))
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True, capture_output=True)
    keys.write_private(folder / "build/auditor.key", key := keys.generate("ecdsa-p256-sha256"))
    certificate = self_signed(key, "auditor", dt.datetime.now(dt.UTC))
    (folder / "build/auditor.pem").write_bytes(certificate)
    lock(folder / "audit.yaml")
    return folder / "audit.yaml"


def judged(spec: Path, mutation: Mutation) -> tuple[list[Problem], list[Problem]]:
    """Faults of the spec, and of the evidence, that `validate` would tell."""
    try:
        found = check(parse(mutation.text.encode(), spec))
    except SpecError as error:
        return list(error.problems), []
    return list(found.spec_problems), list(found.evidence_problems)


@pytest.mark.parametrize(
    ("make", "functions", "columns"),
    [
        pytest.param(
            digits,
            ("train:build_model", "train:load_batch", "train:predict", "train:cross_entropy",
             "train:cosine", "train:BATCH", "train:nn"),
            ("p00", "p33", "digits"),
            id="digits",
        ),
        pytest.param(
            package_audit.make,
            ("reader.model:build_model", "reader.train:load_batch", "reader.train:cross_entropy",
             "reader.model:add_head", "reader:train", "train:predict"),
            ("x0", "source", "kinds"),
            id="package",
        ),
    ],
)  # fmt: skip
def test_no_harmful_change_is_called_valid(
    tmp_path: Path,
    make: Callable[[Path], Path],
    functions: tuple[str, ...],
    columns: tuple[str, ...],
) -> None:
    spec = make(tmp_path)
    made = mutations(spec.read_text(), functions, columns)
    harmful = [m for m in made if m.harmful]
    assert len(harmful) >= 200
    assert judged(spec, Mutation("as it is", spec.read_text(), 1)) == ([], [])
    valid, blamed, elsewhere, refused = [], [], [], []
    for mutation in made:
        faults, defects = judged(spec, mutation)
        if not mutation.harmful:
            refused += [mutation.name] if faults or defects else []
        elif not faults and not defects:
            valid.append(mutation.name)
        else:
            blamed += [mutation.name] if not faults else []
            if mutation.line not in {p.line for p in (*faults, *defects)}:
                elsewhere.append((mutation.name, mutation.line, str(faults or defects)))
    print(
        f"{len(harmful)} harmful: {len(valid)} called valid, {len(blamed)} blamed on the evidence, "
        f"{len(elsewhere)} told elsewhere; {len(made) - len(harmful)} harmless: {len(refused)} refused"
    )
    assert valid == []
    assert blamed == []
    assert refused == []
    assert len(elsewhere) <= (1 - RIGHT_LINE) * len(harmful), elsewhere
