import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auditspec.artifacts.checkpoints import (
    check_finite,
    encode_tensors,
    map_checkpoint,
    read_metadata,
    read_tensors,
    write_tensors,
)
from auditspec.artifacts.digest import digest_bytes, digest_file
from auditspec.errors import EvidenceError


def container(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    weight = torch.arange(12.0).reshape(3, 4)
    return {
        "weight": weight,
        "tied": weight,
        "transposed": weight.t(),
        "slice": weight[:, 1:3],
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "half": torch.tensor([0.1, 2.0], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "ids": torch.tensor([2**60 + 1, -1]),
        "empty": torch.empty(0, 3),
        "trained": torch.ones(2, requires_grad=True),
    }


def test_round_trip(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors, {"step": "7", "stage": "ü"})
    digest, _ = digest_file(path)
    for source in (path, path.read_bytes()):
        read = read_tensors(source, digest)
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)
            assert not read[name].requires_grad
    assert read_metadata(path) == {"step": "7", "stage": "ü"}
    read["weight"][0, 0] = 9.0
    assert read["tied"][0, 0] == 0.0


def test_equal_contents_give_equal_bytes(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    metadata = {letter: letter for letter in "qwertyuiop"}
    write_tensors(tmp_path / "a.safetensors", tensors, metadata)
    backwards = dict(reversed(tensors.items()))
    write_tensors(tmp_path / "b.safetensors", backwards, dict(reversed(metadata.items())))
    assert digest_file(tmp_path / "a.safetensors") == digest_file(tmp_path / "b.safetensors")


def test_tensors_lie_as_the_library_lays_them() -> None:
    """Of every type, in its order of types and then by name."""
    types = [
        *(torch.uint64, torch.int64, torch.float64, torch.complex64, torch.float32, torch.uint32),
        *(torch.int32, torch.bfloat16, torch.float16, torch.uint16, torch.int16, torch.int8),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.bool),
    ]
    tensors = {
        f"{name}{i}": torch.tensor([[0.0, 1.0], [1.0, 3.0]]).to(dtype).t()
        for name in "ba"
        for i, dtype in enumerate(types)
    }
    ours = encode_tensors(tensors)
    theirs = safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    headers, bodies = [], []
    for data in (ours, theirs):
        end = 8 + int.from_bytes(data[:8], "little")
        headers.append(json.loads(data[8:end]))
        bodies.append(data[end:])
    assert headers[0] == headers[1]
    assert bodies[0] == bodies[1]
    with pytest.raises(EvidenceError, match="type cannot be stored"):
        encode_tensors({"x": torch.zeros(1, dtype=torch.complex128)})


def test_no_metadata_and_no_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "none.safetensors", {})
    assert read_tensors(tmp_path / "none.safetensors") == {}
    assert read_metadata(tmp_path / "none.safetensors") == {}


def test_other_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"w": torch.ones(1)}, path)
    for read in (read_tensors, read_metadata):
        with pytest.raises(EvidenceError, match="safetensors") as caught:
            read(path)
        assert "save_file" in caught.value.remedy
    with pytest.raises(EvidenceError):
        write_tensors(path, {})
    path.rename(tmp_path / "model.safetensors")  # a pickle under a safe name
    with pytest.raises(EvidenceError, match="not a sound"):
        read_tensors(tmp_path / "model.safetensors")


def test_every_truncation_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"w": torch.arange(3.0), "v": torch.ones(2)}, {"k": "v"})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(EvidenceError):
            read_tensors(path)
        with pytest.raises(EvidenceError):
            read_metadata(path)


def test_every_flipped_bit_is_caught_by_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"w": torch.arange(3.0)})
    data = path.read_bytes()
    digest = digest_bytes(data)
    for position in range(len(data)):
        spoiled = bytearray(data)
        spoiled[position] ^= 1 << position % 8
        with pytest.raises(EvidenceError):
            read_tensors(bytes(spoiled), digest)
        with suppress(EvidenceError):  # it may read as other tensors, and must not crash
            read_tensors(bytes(spoiled))


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b'{"w":' + json.dumps(entry([1], 0, 4)).encode() + b',"w":' + json.dumps(entry([1], 0, 4)).encode() + b"}", bytes(4), "'w' stands twice"),
        (b'{"w":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4), "stands twice"),
        (b"[]", b"", "not a JSON object"),
        (b" {}", b"", "not a JSON object"),
        ({"w": 1}, b"", "not an object"),
        ({"w": {"dtype": "F32", "shape": [1]}}, bytes(4), "has the fields"),
        ({"w": {**entry([1], 0, 4), "more": 1}}, bytes(4), "has the fields"),
        ({"w": entry([1], 0, 4, "F33")}, bytes(4), "unknown type"),
        ({"w": entry([1], 0, 4, ["F32"])}, bytes(4), "unknown type"),
        ({"w": entry([-1], 0, 4)}, bytes(4), "no valid shape"),
        ({"w": entry([True], 0, 4)}, bytes(4), "no valid shape"),
        ({"w": entry([1.0], 0, 4)}, bytes(4), "no valid shape"),
        ({"w": entry([1] * 65, 0, 4)}, bytes(4), "no valid shape"),
        ({"w": entry([0, 2**63], 0, 0)}, b"", "no valid shape"),
        ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, bytes(4), "no valid offsets"),
        ({"w": entry([1], 0, "4")}, bytes(4), "no valid offsets"),
        ({"w": entry([10**12], 0, 4)}, bytes(4), "needs 4000000000000 bytes"),
        ({"w": entry([2**40, 2**40], 0, 4)}, bytes(4), "needs"),
        ({"w": entry([1], 0, 4)}, bytes(3), "the file has 3"),
        ({"w": entry([1], 0, 4)}, bytes(5), "1 bytes belong to no tensor"),
        ({"w": entry([1], 4, 8)}, bytes(8), "from 0"),
        ({"v": entry([1], 0, 4), "w": entry([1], 2, 6)}, bytes(6), "from 4"),
        ({"v": entry([1], 0, 4), "w": entry([1], 0, 4)}, bytes(4), "from 4"),
        ({"v": entry([1], 0, 4), "w": entry([1], 8, 12)}, bytes(12), "from 4"),
        ({"w": entry([1], 4, 0)}, bytes(4), "from 0"),
        ({"__metadata__": {"a": 1}}, b"", "something other than text"),
        ({"__metadata__": []}, b"", "not an object"),
        (b"{" + b" " * 5, b"", "not strict JSON"),
    ],
)  # fmt: skip
def test_hostile_headers(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        read_tensors(container(header, data))
    (tmp_path / "x.safetensors").write_bytes(container(header, data))
    with pytest.raises(EvidenceError, match=said):
        read_metadata(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0, 3, 2**31, 2**63, 2**64 - 1])
def test_header_length_is_bounded(length: int) -> None:
    with pytest.raises(EvidenceError, match="header"):
        read_tensors(length.to_bytes(8, "little") + b"{}")


headers = st.dictionaries(
    st.sampled_from(["w", "v", "__metadata__"]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "BOOL", "C64", "F4", ""]) | st.integers(),
            "shape": st.lists(st.integers(-1, 4), max_size=3) | st.none(),
            "data_offsets": st.lists(st.integers(-1, 20), max_size=3),
        }
    )
    | st.dictionaries(st.text(max_size=2), st.text(max_size=2) | st.integers()),
)


@settings(max_examples=300)
@given(
    st.binary(max_size=60)
    | st.builds(container, headers, st.binary(max_size=20))
    | st.binary(max_size=40).map(container)
)
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        tensors = read_tensors(data)
    except EvidenceError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_not_finite(bad: float, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(3, dtype=dtype), "c": torch.full((2, 2), bad, dtype=dtype)}
    tensors["b"] = torch.tensor([1.0, bad, bad]).to(dtype)
    with pytest.raises(EvidenceError, match=r"final: tensor 'b' holds 2 values .* of 3"):
        check_finite(tensors, "final")


def test_finite() -> None:
    tensors = {
        "a": torch.ones(2),
        "n": torch.tensor([2**60]),
        "b": torch.tensor([True]),
        "f8": torch.ones(2).to(torch.float8_e4m3fn),
        "e": torch.empty(0),
    }
    check_finite(tensors, "final")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"w": torch.ones(1)})
    before = path.read_bytes()
    with pytest.raises(EvidenceError, match="metadata holds something other than text"):
        write_tensors(path, {"w": torch.ones(1)}, {"k": 1})  # type: ignore[dict-item]
    with pytest.raises(EvidenceError, match="type cannot be stored"):
        write_tensors(path, {"w": torch.ones(1, dtype=torch.complex128)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o646])
def test_a_mapped_file_is_what_was_hashed_whoever_may_write_to_it(
    tmp_path: Path, mode: int
) -> None:
    path, values = tmp_path / "state.safetensors", torch.arange(4096.0)
    write_tensors(path, {"w": values, "none": torch.zeros(0, 3)}, {"k": "v"})
    path.chmod(mode)
    digest, before = digest_file(path)[0], path.read_bytes()
    tensors, text = map_checkpoint(path, digest)
    assert torch.equal(tensors["w"], values) and tensors["none"].shape == (0, 3)
    assert text == {"k": "v"}
    tensors["w"][0] = 7.0  # its holder's own
    assert path.read_bytes() == before
    if mode & 0o022:
        with path.open("r+b") as file:  # in place, as whoever else has the right may do
            file.seek(-4, 2)
            file.write(b"\xff\xff\xff\xff")
        with pytest.raises(EvidenceError, match="pinned is"):
            map_checkpoint(path, digest)
    else:
        write_tensors(path, {"w": torch.zeros(4096)})  # another file under its name
    assert torch.equal(tensors["w"][1:], values[1:])
