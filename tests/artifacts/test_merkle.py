"""Against the definition, against known values of RFC 6962's reference tests, and with every bit flipped."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditspec.artifacts import merkle

# The leaves and roots that certificate-transparency's tests use (merkle tree of sizes 1 to 8).
LEAVES = [b"", b"\x00", b"\x10", b"\x20\x21", b"\x30\x31", b"\x40\x41\x42\x43", bytes(range(0x50, 0x58)), bytes(range(0x60, 0x70))]  # fmt: skip
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
HASHES = [merkle.leaf(data) for data in LEAVES]


@pytest.mark.parametrize("size", ROOTS)
def test_known_roots(size: int) -> None:
    assert merkle.root(HASHES[:size]).hex() == ROOTS[size]


def test_the_empty_tree() -> None:
    assert merkle.root([]) == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("size", range(1, 34))
def test_every_leaf_of_every_tree_is_included(size: int) -> None:
    leaves = [merkle.leaf(bytes([i])) for i in range(size)]
    top = merkle.root(leaves)
    for index in range(size):
        proof = merkle.inclusion_proof(leaves, index)
        assert merkle.includes(index, size, leaves[index], proof, top)
        for other in range(size + 1):
            if other != index:
                assert not merkle.includes(other, size, leaves[index], proof, top)
        assert not merkle.includes(index, size, leaves[index], (*proof, top), top)
        assert size == 1 or not merkle.includes(index, size, leaves[index], proof[:-1], top)


@pytest.mark.parametrize("new", range(1, 20))
def test_every_tree_extends_its_beginnings(new: int) -> None:
    leaves = [merkle.leaf(bytes([i])) for i in range(new)]
    other = [merkle.leaf(b"other"), *leaves[1:]]
    for old in range(1, new + 1):
        proof = merkle.consistency_proof(leaves, old)
        before, after = merkle.root(leaves[:old]), merkle.root(leaves)
        assert merkle.extends(old, new, before, after, proof)
        assert not merkle.extends(old, new, merkle.root(other[:old]), after, proof)
        assert not merkle.extends(old, new, before, merkle.root(other), proof)
        assert old == new or not merkle.extends(old, new, before, after, proof[:-1])
        assert not merkle.extends(new + 1, new, before, after, proof)


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=40), st.data())
def test_a_changed_proof_does_not_hold(entries: list[bytes], data: st.DataObject) -> None:
    leaves = [merkle.leaf(entry) for entry in entries]
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = list(merkle.inclusion_proof(leaves, index))
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        spoiled = bytearray(proof[place])
        spoiled[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
        proof[place] = bytes(spoiled)
        assert not merkle.includes(index, len(leaves), leaves[index], proof, merkle.root(leaves))


def test_what_is_not_there_has_no_proof() -> None:
    with pytest.raises(IndexError):
        merkle.inclusion_proof(HASHES, 8)
    for old in (0, 9):
        with pytest.raises(IndexError):
            merkle.consistency_proof(HASHES, old)
