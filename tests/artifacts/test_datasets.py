import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import auditspec
from auditspec.artifacts.datasets import Dataset
from auditspec.artifacts.digest import digest_bytes
from auditspec.errors import EvidenceError

ROWS = pd.DataFrame({"x": [0.1, 1 / 3, 1e-300], "digit": [3, 8, 3], "text": ["a", "b", "ü"]})


@pytest.fixture(params=["parquet", "csv"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"holdout.{request.param}"
    if request.param == "csv":
        ROWS.to_csv(path, index=False)
    else:
        ROWS.to_parquet(path)
    return path


def test_reads_a_table_exactly(table: Path) -> None:
    digest = digest_bytes(table.read_bytes())
    dataset = Dataset.open(str(table), expected=digest)
    assert (dataset.name, dataset.path, dataset.digest) == ("holdout", table, digest)
    assert len(dataset) == 3
    pd.testing.assert_frame_equal(dataset.frame, ROWS, check_exact=True)
    assert dataset.frame is dataset.frame
    assert auditspec.Dataset is Dataset


def test_the_frame_comes_from_the_hashed_bytes(table: Path) -> None:
    dataset = Dataset.open(table, name="other")
    table.write_bytes(b"swapped")
    np.testing.assert_array_equal(dataset.frame["digit"], [3, 8, 3])
    assert dataset.name == "other"


def test_refuses_other_bytes(table: Path) -> None:
    with pytest.raises(EvidenceError, match="pinned is"):
        Dataset.open(table, expected=digest_bytes(b""))


def test_damaged_tables(tmp_path: Path) -> None:
    for name, data in [
        ("a.parquet", b"PAR1 not really PAR1"),
        ("b.csv", b""),
        ("c.csv", b"a,b\n1,2,3\n4\xff,5\n"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EvidenceError, match=f"'{name[0]}' .* cannot be read"):
            Dataset.open(tmp_path / name).frame  # noqa: B018


def test_other_formats_are_left_to_their_reader(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    dataset = Dataset.open(tmp_path / "x.npy")
    assert dataset.digest == digest_bytes((tmp_path / "x.npy").read_bytes())
    assert len(np.load(dataset.path)) == 3
    with pytest.raises(EvidenceError, match="not a table"):
        len(dataset)
    with pytest.raises(EvidenceError, match="pinned is"):
        Dataset.open(tmp_path / "x.npy", expected=digest_bytes(b""))


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"png")
    before = Dataset.open(folder).digest
    (folder / "0.png").write_bytes(b"PNG")
    with pytest.raises(EvidenceError, match="pinned is"):
        Dataset.open(folder, expected=before)


def test_links_are_refused(table: Path, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(table)
    with pytest.raises(EvidenceError, match="symbolic link"):
        Dataset.open(tmp_path / "link.csv")


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_reading_a_table_leaves_no_thread_behind(tmp_path: Path) -> None:
    """Arrow's own threads abort some exits, after all work is done."""
    ROWS.to_parquet(tmp_path / "rows.parquet")
    script = (
        "import os, pandas, pyarrow.parquet;"
        "from auditspec.artifacts.datasets import Dataset;"
        "before = os.listdir('/proc/self/task');"
        "Dataset.open('rows.parquet').frame;"
        "assert os.listdir('/proc/self/task') == before"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
