"""Merkle trees as in RFC 6962: proofs that a log holds an entry, and that it only ever grew.

    leaf(d)    = sha256(0x00 ‖ d)
    node(l, r) = sha256(0x01 ‖ l ‖ r)
    root of n leaves: of the largest power of two below n, and of the rest (section 2.1)

The verifying functions are those of RFC 9162, sections 2.1.3.2 and 2.1.4.2; they need no tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

EMPTY = hashlib.sha256().digest()


def leaf(data: bytes) -> bytes:
    """The hash of one entry."""
    return hashlib.sha256(b"\0" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return node(root(leaves[:k]), root(leaves[k:]))


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """PATH(index, leaves): the siblings from leaf `index` up to the root (RFC 6962, 2.1.1).

    Raises:
        IndexError: if there is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"no leaf {index} of {len(leaves)}")
    if len(leaves) == 1:
        return ()
    k = _split(len(leaves))
    if index < k:
        return (*inclusion_proof(leaves[:k], index), root(leaves[k:]))
    return (*inclusion_proof(leaves[k:], index - k), root(leaves[:k]))


def consistency_proof(leaves: Sequence[bytes], old: int) -> tuple[bytes, ...]:
    """PROOF(old, leaves): that the first `old` leaves are a tree that these leaves extend (2.1.2).

    Raises:
        IndexError: if the tree has fewer leaves, or `old` is 0.
    """
    if not 0 < old <= len(leaves):
        raise IndexError(f"no tree of {old} leaves among {len(leaves)}")
    return _subproof(leaves, old, whole=True)


def includes(index: int, size: int, hashed: bytes, proof: Sequence[bytes], of: bytes) -> bool:
    """Whether the tree of `size` leaves with root `of` has leaf hash `hashed` at `index`."""
    if not 0 <= index < size:
        return False
    fn, sn, found = index, size - 1, hashed
    for sibling in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found = node(sibling, found)
            while not fn & 1 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node(found, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and found == of


def extends(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of `new` leaves begins with the tree of `old` leaves."""
    if old == new:
        return not proof and old_root == new_root
    if not 0 < old < new or not proof:
        return False
    first, *rest = proof if old & (old - 1) else (old_root, *proof)
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = first
    for sibling in rest:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node(sibling, fr), node(sibling, sr)
            while not fn & 1 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node(sr, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old_root and sr == new_root


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _subproof(leaves: Sequence[bytes], old: int, *, whole: bool) -> tuple[bytes, ...]:
    if old == len(leaves):
        return () if whole else (root(leaves),)
    k = _split(len(leaves))
    if old <= k:
        return (*_subproof(leaves[:k], old, whole=whole), root(leaves[k:]))
    return (*_subproof(leaves[k:], old - k, whole=False), root(leaves[:k]))
