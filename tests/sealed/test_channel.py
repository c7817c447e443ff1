"""A message comes over whole; one that lies about itself breaks the line, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from auditspec.sealed.channel import BrokenError, Channel
from auditspec.sealed.process import ARENA, new_arena


@pytest.fixture
def line() -> Iterator[tuple[Channel, Channel, socket.socket]]:
    left, right = socket.socketpair()
    arenas = [new_arena("left"), new_arena("right")]
    yield Channel(left.fileno(), *arenas), Channel(right.fileno(), *arenas[::-1]), right
    left.close()
    right.close()
    for arena in arenas:
        os.close(arena)


def test_messages_and_tensors(line: Any) -> None:
    left, right, _ = line
    block = [torch.ones(3), torch.zeros(2, 2)]
    for turn in range(3):
        left.send({"n": turn}, [torch.arange(5), torch.empty(0)], [block, block])
        message, tensors, blocks = right.receive(5)
        assert message == {"n": turn}
        assert torch.equal(tensors[0], torch.arange(5))
        assert [torch.equal(a, b) for b_ in blocks for a, b in zip(b_, block, strict=True)] == [
            True
        ] * 4


@pytest.mark.parametrize(
    "described",
    [
        [["float32", ARENA, [4]]],
        [["float32", 0, [2**40]]],
        [["float32", 0, [2**33, 2**33]]],
        [["float32", -64, [4]]],
        [["float32", 1, [4]]],
        [["float32", 0, [-1, -1]]],
        [["float99", 0, [1]]],
        [["float32", 0.5, [1]]],
        [[]],
        "x",
    ],
)
def test_tensors_elsewhere_are_refused(line: Any, described: Any) -> None:
    left, _, raw = line
    for whole in ([None, described, [], []], [None, [], [0], [[0, described]]]):
        text = json.dumps(whole).encode()
        raw.sendall(struct.pack("<Q", len(text)) + text)
        with pytest.raises(BrokenError):
            left.receive(5)


@pytest.mark.parametrize(
    "sent",
    [struct.pack("<Q", 2**60), struct.pack("<Q", 3) + b"{{{", struct.pack("<Q", 4) + b"[1]\n"],
)
def test_no_message_is_refused(line: Any, sent: bytes) -> None:
    left, _, raw = line
    raw.sendall(sent)
    with pytest.raises(BrokenError):
        left.receive(5)


def test_silence_and_absence(line: Any) -> None:
    left, _, raw = line
    with pytest.raises(BrokenError, match="in time"):
        left.receive(0.05)
    raw.sendall(b"\x01")
    with pytest.raises(BrokenError, match="in time"):
        left.receive(0.05)
    raw.close()
    with pytest.raises(BrokenError, match="gone"):
        left.receive(5)


def test_an_arena_keeps_its_size() -> None:
    arena = new_arena("fixed")
    with pytest.raises(PermissionError):
        os.ftruncate(arena, 4096)
    os.close(arena)
