"""A line between two processes: messages over a socket, their tensors in memory that one writes and the other reads.

Messages go to and fro in turn. The tensors of one lie in the sender's arena until it sends the next; its reader
copies what it wants to keep. Neither side can shrink or grow an arena, so that reading one cannot fail.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import struct
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from auditspec.sealed.codec import DTYPES
from auditspec.sealed.process import ARENA

MOST_TEXT = 2**27
"""Bytes of a message without its tensors."""
_ALIGNED = 64
_MOST_BLOCKS = 10_000
_NAMES = {kind: name for name, kind in DTYPES.items()}


class BrokenError(Exception):
    """The other side is gone, too late, or says what makes no message."""


class Channel:
    """One end of the line.

    Args:
        descriptor: of a connected stream socket.
        mine: descriptor of the arena that this side writes.
        theirs: descriptor of the other side's.
    """

    def __init__(self, descriptor: int, mine: int, theirs: int) -> None:
        self._socket = descriptor
        self._mine = mmap.mmap(mine, ARENA)
        self._theirs = mmap.mmap(theirs, ARENA, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._floor = ARENA
        self._blocks: dict[Any, tuple[int, list[Tensor], list[Any]]] = {}
        self._told: set[int] = set()
        self._their_blocks: list[list[Tensor]] = []

    def send(
        self, message: Any, tensors: Sequence[Tensor] = (), blocks: Sequence[Sequence[Tensor]] = ()
    ) -> None:
        """Send a message with its tensors.

        Args:
            message: what JSON holds.
            tensors: copied one by one.
            blocks: tensors that are sent again and again in these forms: their place stays.

        Raises:
            BrokenError: if the other side is gone.
            MemoryError: if the tensors take more than an arena.
        """
        places = [self._block(tuple(map(_form, block)), n) for n, block in enumerate(blocks)]
        for (_, views, _), block in zip(places, blocks, strict=True):
            if views:
                torch._foreach_copy_(views, list(block))
        described, end = [], 0
        for tensor in tensors:
            start = -(-end // _ALIGNED) * _ALIGNED
            size = tensor.numel() * tensor.itemsize
            end = start + size
            if end > self._floor:
                raise MemoryError("the tensors of a message take more than there is room for")
            if size:
                _over(self._mine, tensor.dtype, tuple(tensor.shape), start).copy_(tensor)
            described.append([_NAMES[tensor.dtype], start, list(tensor.shape)])
        new = {n: layout for n, _, layout in places if n not in self._told}
        self._told |= new.keys()
        numbers = [n for n, _, _ in places]
        whole = [message, described, numbers, [*new.items()]]
        text = json.dumps(whole, separators=(",", ":")).encode()
        self._write(struct.pack("<Q", len(text)) + text)

    def _block(self, form: tuple[Any, ...], ordinal: int) -> tuple[int, list[Tensor], list[Any]]:
        """The place of tensors of a form, from the arena's end downwards: its number, views, and description."""
        key = (form, ordinal)
        if key not in self._blocks:
            layout, views = [], []
            for dtype, shape in form:
                size = dtype.itemsize
                for n in shape:
                    size *= n
                self._floor = (self._floor - size) // _ALIGNED * _ALIGNED
                if self._floor < ARENA // 2:
                    raise MemoryError("a model takes more than there is room for")
                layout.append([_NAMES[dtype], self._floor, list(shape)])
                views.append(_over(self._mine, dtype, shape, self._floor))
            self._blocks[key] = (len(self._blocks), views, layout)
        return self._blocks[key]

    def receive(self, seconds: float | None = None) -> tuple[Any, list[Tensor], list[list[Tensor]]]:
        """The next message, with its tensors where the other side wrote them: to be copied.

        Args:
            seconds: how long to wait for it; None: for ever.

        Raises:
            BrokenError: if the other side is gone or too late, or sends what is no message.
        """
        until = None if seconds is None else time.monotonic() + seconds
        (length,) = struct.unpack("<Q", self._read(8, until))
        if length > MOST_TEXT:
            raise BrokenError(f"it sent a message of {length} bytes")
        try:
            message, described, numbers, new = json.loads(self._read(length, until))
            for number, layout in new:
                if number != len(self._their_blocks) or number >= _MOST_BLOCKS:
                    raise ValueError("a place of tensors is not the next one")
                self._their_blocks.append(self._tensors(layout))
            blocks = [self._their_blocks[number] for number in numbers]
            return message, self._tensors(described), blocks
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            RecursionError,
            OverflowError,
        ) as error:
            raise BrokenError(f"it sent what is no message ({type(error).__name__})") from None

    def _tensors(self, described: Any) -> list[Tensor]:
        tensors, total = [], 0
        for dtype, start, shape in described:
            kind, dimensions = DTYPES[dtype], [int(n) for n in shape]
            size = kind.itemsize
            for n in dimensions:
                if not 0 <= n <= ARENA:
                    raise ValueError("a tensor of impossible shape")
                size *= n
            total += size
            inside = type(start) is int and start >= 0 and start + size <= ARENA
            if not inside or total > ARENA or start % _ALIGNED:
                raise ValueError("a tensor outside of its arena")
            tensors.append(_over(self._theirs, kind, tuple(dimensions), start))
        return tensors

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._socket, view) :]
        except OSError as error:
            raise BrokenError(f"it is gone ({error.strerror})") from None

    def _read(self, count: int, until: float | None) -> bytearray:
        data = bytearray()
        while len(data) < count:
            if until is not None:
                left = until - time.monotonic()
                if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                    raise BrokenError("it does not answer in time")
            try:
                part = os.read(self._socket, min(count - len(data), 2**20))
            except OSError as error:
                raise BrokenError(f"it is gone ({error.strerror})") from None
            if not part:
                raise BrokenError("it is gone")
            data += part
        return data


def _over(memory: mmap.mmap, kind: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    """A tensor over a part of an arena."""
    count = 1
    for n in shape:
        count *= n
    if not count:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(memory, dtype=kind, count=count, offset=start).view(shape)


def _form(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)
