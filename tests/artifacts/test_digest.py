import hashlib
import os
from pathlib import Path

import pytest

from auditspec.artifacts.digest import canonical_json, digest_bytes, digest_file, read_verified
from auditspec.artifacts.files import open_regular, write_atomically
from auditspec.errors import EvidenceError


def test_digest_of_bytes_and_file_agree(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(data)
    expected = "sha256:" + hashlib.sha256(data).hexdigest()
    assert digest_bytes(data) == expected
    assert digest_file(tmp_path / "x") == (expected, len(data))


def test_read_verified_returns_what_it_hashed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"good")
    assert read_verified(path, digest_bytes(b"good")) == b"good"
    assert read_verified(path, None) == b"good"
    path.write_bytes(b"evil")
    with pytest.raises(EvidenceError, match=r"digest is sha256:.*, pinned is sha256:") as caught:
        read_verified(path, digest_bytes(b"good"))
    assert caught.value.exit_code == 3
    assert "restore" in caught.value.remedy


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(EvidenceError, match="symbolic link"):
        digest_file(tmp_path / "link")
    with pytest.raises(EvidenceError, match="not a regular file"):
        digest_file(tmp_path / "fifo")
    with pytest.raises(EvidenceError, match="not a regular file"):
        read_verified(tmp_path, None)
    with pytest.raises(EvidenceError, match="no such file"):
        digest_file(tmp_path / "none")
    with pytest.raises(EvidenceError, match="null"):
        digest_file(tmp_path / "nul\0byte")


def test_what_was_opened_stays_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"first")
    with open_regular(path) as file:
        (tmp_path / "other").write_bytes(b"second")
        (tmp_path / "other").replace(path)
        assert file.read() == b"first"


def test_write_atomically(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(FileExistsError):
        write_atomically(path, b"three", overwrite=False)
    assert path.read_bytes() == b"two"
    write_atomically(tmp_path / "secret", b"s", mode=0o600, overwrite=False)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret", "x"]


def test_canonical_json_follows_rfc_8785() -> None:
    # Section 3.2.3: keys sort by UTF-16 code units; section 3.2.2.3: numbers as ECMAScript writes them.
    value = {"\ufb33": 1.0, "\U0001f600": 1e21, "a": [0.000001, 1e-7, "\u20ac\n"], "A": None}
    expected = '{"A":null,"a":[0.000001,1e-7,"€\\n"],"\U0001f600":1e+21,"\ufb33":1}'
    assert canonical_json(value) == expected.encode()
