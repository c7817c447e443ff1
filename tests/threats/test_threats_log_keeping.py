"""Threats to keeping a log: many writers, killed ones, lost files, and witnesses who are none (S3)."""

import base64
import datetime as dt
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import world as w
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from auditspec.errors import SignatureError, SpecError, UsageError
from auditspec.sign import keys, log
from auditspec.sign.checkpoint import Checkpoint, RefusedLogError, Witness, witness_of
from auditspec.sign.dsse import Envelope
from auditspec.sign.seen_checkpoints import SeenCheckpoints
from auditspec.sign.signer import KeySigner
from auditspec.sign.statement import PAYLOAD_TYPE
from auditspec.verification.monitor import watch
from auditspec.verification.trust import Trust, Witnesses

pytestmark = pytest.mark.threat
KEEPER, WITNESS = (KeySigner(keys.generate("ed25519")) for _ in range(2))
NOW = dt.datetime.now(dt.UTC)
NAME = "witness.example/w1"

WRITERS = """\
import os, random, signal, sys, time
from pathlib import Path
from auditspec.sign import keys, log
from auditspec.sign.dsse import Envelope
from auditspec.sign.signer import KeySigner

folder, writers, each, killed = Path(sys.argv[1]), *map(int, sys.argv[2:])
keeper = KeySigner(keys.load_private(Path(sys.argv[1] + ".key")))
done = os.open(sys.argv[1] + ".done", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
children = []
for writer in range(writers):
    child = os.fork()
    if child == 0:
        for number in range(each):
            envelope = Envelope("text/x", f"{writer} {number}".encode()).signed_by(keeper)
            log.append(folder, envelope, keeper).check(log.entry_of(envelope), keeper.public_key)
            os.write(done, (log.entry_of(envelope) + "\\n").encode())
        os._exit(0)
    children.append(child)
for child in children[:killed]:
    time.sleep(random.random() / 20)
    os.kill(child, signal.SIGKILL)
ends = [os.waitpid(child, 0)[1] for child in children]
sys.exit(any(ends[killed:]))
"""


def write_at_once(folder: Path, writers: int, each: int, killed: int = 0) -> tuple[list[str], str]:
    """The entries whose writers were told that they stand, and what they said on stderr."""
    keys.write_private(folder.with_name("log.key"), KEEPER._key)
    arguments = [sys.executable, "-c", WRITERS, *map(str, (folder, writers, each, killed))]
    ran = subprocess.run(arguments, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return folder.with_name("log.done").read_text().split(), ran.stderr


def envelope(number: int) -> Envelope:
    return Envelope(PAYLOAD_TYPE, str(number).encode()).signed_by(KEEPER)


def enter(folder: Path, *numbers: int, memory: SeenCheckpoints | None = None) -> log.Inclusion:
    return [log.append(folder, envelope(n), KEEPER, memory=memory) for n in numbers][-1]


def read(folder: Path) -> log.Log:
    return log.Log.read(folder, KEEPER.public_key)


def test_s3_eight_appends_at_once(tmp_path: Path) -> None:
    done, said = write_at_once(tmp_path / "log", 8, 1)
    found = read(tmp_path / "log")
    assert (len(found.entries), found.checkpoint.size, said) == (8, 8, "")
    assert set(done) == set(found.entries) and len(set(done)) == 8
    assert {p.name for p in (tmp_path / "log").iterdir()} == {"entries", "checkpoint"}


def test_s3_two_hundred_appends_and_killed_writers(tmp_path: Path) -> None:
    done, _ = write_at_once(tmp_path / "log", 20, 10, killed=8)
    enter(tmp_path / "log", 0)  # who comes next finds nothing in the way
    found = read(tmp_path / "log")
    assert len(done) >= 120 and set(done) < set(found.entries)
    assert len(set(found.entries)) == len(found.entries)
    assert {p.name for p in (tmp_path / "log").iterdir()} == {"entries", "checkpoint"}


@pytest.mark.parametrize("writes", range(4))
def test_s3_killed_between_any_two_writes(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first entry of a log takes three writes, and every prefix of them is a log that goes on."""
    folder, write, done = tmp_path / "log", log._write, []

    def killing(*arguments: object) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(write(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(log, "_write", killing)
    if writes < 3:
        with pytest.raises(KeyboardInterrupt):
            enter(folder, 1)
    else:
        enter(folder, 1)
    (folder / ".entries.0123abcd.part").write_text("half")
    monkeypatch.setattr(log, "_write", write)
    enter(folder, 1, 2)
    assert read(folder).entries == tuple(log.entry_of(envelope(n)) for n in (1, 2))
    assert not (folder / ".entries.0123abcd.part").exists()


def test_s3_a_deleted_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    enter(folder, 1, 2)
    (folder / "checkpoint").unlink()
    before = (folder / "entries").read_bytes()
    with pytest.raises(UsageError, match="which was deleted"):
        enter(folder, 3)
    assert (folder / "entries").read_bytes() == before
    assert not (folder / "checkpoint").exists()


def rolled_back(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("backup"), folder)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)


def rewritten(folder: Path) -> None:
    shutil.rmtree(folder)
    enter(folder, 1, 22, 33)


def begun_under_another_name(folder: Path) -> None:
    shutil.rmtree(folder)
    log.append(folder, envelope(1), KEEPER, "another.example")


@pytest.mark.parametrize("change", [rolled_back, emptied, rewritten, begun_under_another_name])
def test_s3_a_keeper_never_signs_a_second_history(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder, memory = tmp_path / "log", SeenCheckpoints(tmp_path / "memory")
    enter(folder, 1, memory=memory)
    shutil.copytree(folder, tmp_path / "backup")
    enter(folder, 2, memory=memory)
    change(folder)
    with pytest.raises(UsageError, match=r"log that this key keeps|this key keeps one"):
        enter(folder, 3, memory=memory)


def test_s3_a_key_that_signs_no_notes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="RSA key signs no checkpoints"):
        log.append(tmp_path / "log", envelope(1), KeySigner(keys.generate("rsa-pss-sha256")))
    with pytest.raises(UsageError, match="names no log"):
        log.append(tmp_path / "log", envelope(1), KEEPER, "two words")


# --- the format


def test_the_note_that_other_implementations_sign() -> None:
    """Go's golang.org/x/mod/sumdb/note, from its documentation: a key, a text, and the signature."""
    key = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    signed = base64.b64decode(
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    )
    text = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    assert hashlib.sha256(b"PeterNeumann\n" + key).digest()[:4] == signed[:4]
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    assert keys.verifies(Ed25519PublicKey.from_public_bytes(key[1:]), signed[4:], text)


def test_a_checkpoint_is_a_signed_note(tmp_path: Path) -> None:
    """Read here by the text of the standards alone."""
    log.append(tmp_path / "log", envelope(1), KEEPER, "example.org/audits")
    checkpoint = read(tmp_path / "log").checkpoint.cosigned_by(WITNESS, NAME, NOW)
    text, _, below = checkpoint.encode().decode().rpartition("\n\n")
    origin, size, root = text.split("\n")
    assert (origin, size, len(base64.b64decode(root))) == ("example.org/audits", "1", 32)
    lines = [line.split(" ") for line in below.splitlines()]
    assert [(dash, name) for dash, name, _ in lines] == [("—", origin), ("—", NAME)]
    own, cosigned = (base64.b64decode(data) for _, _, data in lines)
    for kind, name, signer, data in ((1, origin, KEEPER, own), (4, NAME, WITNESS, cosigned)):
        raw = signer.public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        assert data[:4] == hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + raw).digest()[:4]
    body = (text + "\n").encode()
    KEEPER.public_key.verify(own[4:], body)  # type: ignore[call-arg, union-attr]
    time = int.from_bytes(cosigned[4:12], "big")
    assert time == int(NOW.timestamp())
    stated = f"cosignature/v1\ntime {time}\n".encode() + body
    WITNESS.public_key.verify(cosigned[12:], stated)  # type: ignore[call-arg, union-attr]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n1\n", "\n01\n"),
        ("\n1\n", "\n+1\n"),
        ("\n1\n", "\n-1\n"),
        ("\n1\n", "\n1_0\n"),
        ("\n1\n", "\n99999999999999\n"),
        ("=\n\n", "=\nextension\n\n"),
        ("=\n\n", "\n\n"),
        ("\n\n", "\n"),
        ("\n\n", "\n\n\n"),
        ("— log", "- log"),
        ("— log", "—  log"),
        ("log-", "log "),
        ("=\n", "= \n"),
    ],
)
def test_s3_a_checkpoint_that_two_readers_see_differently(
    tmp_path: Path, old: str, new: str
) -> None:
    enter(tmp_path / "log", 1)
    text = (tmp_path / "log" / "checkpoint").read_text()
    assert old in text
    with pytest.raises(RefusedLogError, match="cannot be read"):
        Checkpoint.decode(text.replace(old, new, 1).encode())


# --- witnesses


@pytest.fixture
def witnessed(packet: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A packet in a log that a witness cosigned, and the log."""
    folder = tmp_path / "log"
    log.append(folder, w.envelope_of(packet), KEEPER)
    put(packet, read(folder).checkpoint.cosigned_by(WITNESS, NAME, NOW))
    return packet, folder


def put(packet: Path, checkpoint: Checkpoint) -> None:
    """A packet's proof with this checkpoint."""
    proof = log.Inclusion(index=0, proof=(), checkpoint=checkpoint.encode().decode())
    (packet / "packet.log.json").write_bytes(proof.encode())


def trusting(*names: str, require: int = 1) -> Trust:
    known = tuple(witness_of(name, WITNESS.public_key) for name in names)
    return replace(w.TRUST, log=KEEPER.public_key, witnesses=Witnesses(require, known))


def test_s3_a_witness_is_asked_for(witnessed: tuple[Path, Path]) -> None:
    packet, folder = witnessed
    w.holds(packet, trusting(NAME))
    put(packet, read(folder).checkpoint)
    w.fails(packet, "log-inclusion", trusting(NAME), said="0 of 1 required witnesses")
    log.write_cosigned(folder, read(folder).checkpoint.cosigned_by(WITNESS, NAME, NOW))
    again = log.append(folder, w.envelope_of(packet), KEEPER)  # once cosigned, entered again
    (packet / "packet.log.json").write_bytes(again.encode())
    w.holds(packet, trusting(NAME))


def test_s3_a_cosignature_by_another_key(witnessed: tuple[Path, Path]) -> None:
    packet, folder = witnessed
    put(packet, read(folder).checkpoint.cosigned_by(KEEPER, NAME, NOW))
    w.fails(packet, "log-inclusion", trusting(NAME), said="0 of 1 required witnesses")


def test_s3_a_cosignature_of_another_checkpoint(witnessed: tuple[Path, Path]) -> None:
    packet, folder = witnessed
    good = read(folder).checkpoint
    other = replace(good, root="00" * 32).cosigned_by(WITNESS, NAME, NOW)
    put(packet, replace(good, signatures=(*good.signatures, other.signatures[-1])))
    w.fails(packet, "log-inclusion", trusting(NAME), said="does not verify")


def test_s3_a_cosignature_dated_anew(witnessed: tuple[Path, Path]) -> None:
    packet, folder = witnessed
    cosigned = read(folder).checkpoint.cosigned_by(WITNESS, NAME, NOW)
    line = cosigned.signatures[-1]
    later = (int(NOW.timestamp()) + 1).to_bytes(8, "big")
    dated = replace(line, data=line.data[:4] + later + line.data[12:])
    put(packet, replace(cosigned, signatures=(*cosigned.signatures[:-1], dated)))
    w.fails(packet, "log-inclusion", trusting(NAME), said="does not verify")


def test_s3_one_witness_under_two_lines_counts_once(witnessed: tuple[Path, Path]) -> None:
    packet, folder = witnessed
    once = read(folder).checkpoint.cosigned_by(WITNESS, NAME, NOW)
    again = once.cosigned_by(WITNESS, NAME, NOW + dt.timedelta(seconds=5)).signatures[-1]
    put(packet, replace(once, signatures=(*once.signatures, again)))
    other = Witness("witness.example/w2", keys.generate("ed25519").public_key())  # type: ignore[arg-type]
    trust = trusting(NAME)
    both = replace(trust, witnesses=Witnesses(2, (*trust.witnesses.known, other)))
    w.fails(packet, "log-inclusion", both, said="1 of 2 required witnesses")


@pytest.mark.parametrize(
    ("witnesses", "said"),
    [
        ("{require: 2, keys: [{name: a, key: w.pub}]}", "AS061"),
        ("{require: 1, keys: [{name: a, key: log.pub}]}", "AS060.*would witness itself"),
        ("{require: 1, keys: [{name: a, key: w.pub}, {name: b, key: w.pub}]}", "AS060"),
        ("{require: 0, keys: [{name: a, key: w.pub}]}", "AS015"),
        ("{require: 1, keys: []}", "AS015"),
    ],
)
def test_s3_a_policy_in_which_nobody_watches(tmp_path: Path, witnesses: str, said: str) -> None:
    for name, signer in (("log", KEEPER), ("w", WITNESS), ("ada", w.AUDITOR.signer)):
        keys.write_public(tmp_path / f"{name}.pub", signer.public_key)
    text = 'auditspec_trust: "1"\nkeys: [{name: Ada, role: auditor, key: ada.pub}]\nrequire: {auditor: 1}\n'
    path = tmp_path / "trust.yaml"
    path.write_text(f"{text}log: log.pub\nwitnesses: {witnesses}\n")
    with pytest.raises(SpecError, match=said):
        Trust.read(path)
    path.write_text(f"{text}witnesses: {{require: 1, keys: [{{name: a, key: w.pub}}]}}\n")
    with pytest.raises(SpecError, match="AS062"):
        Trust.read(path)
    path.write_text(
        f"{text}log: log.pub\nwitnesses: {{require: 1, keys: [{{name: a, key: w.pub}}]}}\n"
    )
    assert Trust.read(path).witnesses == Witnesses(1, (witness_of("a", WITNESS.public_key),))


# --- the monitor


def test_s3_a_monitor_sees_a_log_grow(tmp_path: Path) -> None:
    folder, memory = tmp_path / "log", SeenCheckpoints(tmp_path / "memory")
    enter(folder, 1, 2)
    assert len(watch(folder, KEEPER.public_key, memory).new) == 2
    (tmp_path / "shown").write_bytes(read(folder).checkpoint.encode())
    enter(folder, 3)
    watched = watch(folder, KEEPER.public_key, memory, [tmp_path / "shown"])
    assert watched.new == (log.entry_of(envelope(3)),)


def test_s3_a_monitor_sees_what_others_were_shown(tmp_path: Path) -> None:
    """A log that shows each of its readers another history forks only where nobody compares."""
    folder, memory = tmp_path / "log", SeenCheckpoints(tmp_path / "memory")
    enter(folder, 1, 2)
    watch(folder, KEEPER.public_key, memory)
    enter(tmp_path / "fork", 1, 22)
    enter(folder, 3)
    with pytest.raises(SignatureError, match="rewritten") as caught:
        watch(folder, KEEPER.public_key, memory, [tmp_path / "fork" / "checkpoint"])
    assert (caught.value.step, caught.value.exit_code) == ("log-monitor", 6)
    last = memory.last(KEEPER.public_key)
    assert last is not None and last.size == 2
    with pytest.raises(SignatureError, match=r"rewritten|rolled back"):
        watch(tmp_path / "fork", KEEPER.public_key, memory)


def test_s3_a_witness_does_not_cosign_what_it_did_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    enter(folder, 1)
    cosigned = read(folder).checkpoint.cosigned_by(WITNESS, NAME, NOW)
    enter(folder, 2)
    with pytest.raises(RefusedLogError, match="has grown"):
        log.write_cosigned(folder, cosigned)
