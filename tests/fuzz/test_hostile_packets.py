"""Whole packets, mutated and built: never valid, never a traceback, soon, and with a short message.

Most are held against a policy whose signer did not sign them so, in this process; one of two hundred is signed
anew by a stranger, and goes through the fence, in its process.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import time
from pathlib import Path

import pytest
from sample_packet import packet_files, packet_result, trusting

from auditspec.sign import keys
from auditspec.sign.disclosure import Disclosure
from auditspec.sign.dsse import Envelope
from auditspec.sign.signer import KeySigner
from auditspec.sign.statement import PAYLOAD_TYPE, Statement
from auditspec.verification.trust import Trust
from auditspec.verification.verifier import verify_all

CASES = int(os.environ.get("AUDITSPEC_FUZZ", "300"))
FENCED = 200
"""One of so many goes through the fence."""
SECONDS, MESSAGE = 10, 3000
AUDITOR, STRANGER = (KeySigner(keys.generate("ed25519")) for _ in range(2))
ENVELOPE = "packet.dsse.json"
FILES = packet_files(packet_result(), pdf=False)
STATEMENT = Statement.of(packet_result(), FILES, Disclosure.fresh(FILES)).encode()
ATOMS = [b"[", b"{", b'"', b",", b":", b"\\u0041", b"<a ", b"<!--", b"<data ", b"BT ", b"/", b"\0", b"9" * 99, b"]", b"\xff"]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bits flipped, pieces put in, doubled, or cut out."""
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(data) + 1), rng.randint(0, 40)
        piece = rng.choice(
            [rng.choice(ATOMS), data[at : at + length] * 2, b"", bytes([rng.randrange(256)])]
        )
        data = data[:at] + piece + data[at + length :]
    return data


def built(rng: random.Random) -> bytes:
    """Atoms repeated and nested, which is what costs readers most."""
    parts = [rng.choice(ATOMS) * 4 ** rng.randint(0, 8) for _ in range(rng.randint(1, 4))]
    return b"".join(parts)[: 2**20]


def sealed(files: dict[str, bytes], signer: KeySigner, rng: random.Random | None = None) -> bytes:
    """An envelope over the files as they are; with `rng` around a statement that is built."""
    document = json.loads(STATEMENT)
    for subject in document["subject"]:
        subject["digest"]["sha256"] = digest(files[subject["name"]])
    if rng is not None:
        document[rng.choice(list(document))] = rng.choice(
            [[], {}, "x" * 10_000, [{}] * 10_000, None]
        )
    return Envelope(PAYLOAD_TYPE, json.dumps(document).encode()).signed_by(signer).encode()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def case(folder: Path, rng: random.Random, *, fenced: bool) -> Trust | None:
    """Write a hostile packet; gives the policy that it is to be held against."""
    files = dict(FILES)
    good = sealed(files, AUDITOR)
    name = rng.choice([*files, ENVELOPE])
    how = rng.choice([mutated, lambda _, r: built(r)])
    if fenced:
        name = rng.choice(list(files))
        files[name] = how(files[name], rng)
        envelope = sealed(files, STRANGER)
    elif name == ENVELOPE:
        envelope = rng.choice([how(good, rng), sealed(files, STRANGER, rng)])
    else:
        files[name] = how(files[name], rng) + b" "
        envelope = good
    for other, data in (files | {ENVELOPE: envelope}).items():
        (folder / other).write_bytes(data)
    return None if fenced else trusting(AUDITOR)


@pytest.mark.parametrize("part", range(max(1, CASES // 300)))
def test_hostile_packets(tmp_path: Path, part: int) -> None:
    rng, slowest = random.Random(part), 0.0
    for number in range(300):
        policy = case(tmp_path, rng, fenced=(300 * part + number) % FENCED == FENCED - 1)
        begun = time.process_time(), children()
        error = verify_all(tmp_path, policy).error
        slowest = max(slowest, time.process_time() - begun[0] + children() - begun[1])
        assert error is not None and error.exit_code in (6, 7), number
        assert len(str(error)) < MESSAGE
    assert slowest < SECONDS


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
