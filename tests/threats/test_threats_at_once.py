"""Threats of many runs at once: into one packet, on one cache, on one envelope or trust file (S11)."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from auditspec.artifacts import files, locks
from auditspec.errors import UsageError
from auditspec.sign import keys
from auditspec.sign import packet as packets
from auditspec.sign.dsse import Envelope
from auditspec.sign.packet import PacketWriter
from auditspec.verification.trust import Trust

pytestmark = pytest.mark.threat
CONTENTS = dict.fromkeys(packets.REQUIRED, b"{}")
"""What makes a packet, as its writer looks at it."""

WRITERS = """\
import os, sys
from pathlib import Path
from auditspec.sign.packet import PacketWriter

files = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
children = []
for writer in range(4):
    child = os.fork()
    if child == 0:
        for _ in range(5):
            with PacketWriter(Path(sys.argv[1]), replace=True) as packet:
                for name, data in files.items():
                    packet.write(name, data)
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children))
"""


def write(place: Path, *, replace: bool = False) -> Path:
    with PacketWriter(place, replace) as writer:
        for name, data in CONTENTS.items():
            writer.write(name, data)
    return place


def test_s11_many_replace_one_packet(tmp_path: Path) -> None:
    """At every moment there is one, and it is whole."""
    place = write(tmp_path / "packet")
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(place)], stderr=subprocess.PIPE
    ) as writers:
        looks = 0
        while writers.poll() is None:
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)  # never missing
            here = {entry.name for entry in os.scandir(folder)}
            if place.stat().st_ino == os.fstat(folder).st_ino:  # nor half there
                assert here == set(CONTENTS)
                looks += 1
            os.close(folder)
            time.sleep(0.001)
        assert writers.stderr is not None
        assert (writers.returncode, writers.stderr.read()) == (0, b"")
    assert looks > 10
    assert [p.name for p in tmp_path.iterdir()] == ["packet"]


def test_s11_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_EXCHANGE", 1 << 30)  # unknown to every system
    place = write(tmp_path / "packet")
    before = place.stat().st_ino
    write(place, replace=True)
    assert place.stat().st_ino != before
    assert [p.name for p in tmp_path.iterdir()] == ["packet"]


def test_s11_a_writer_in_another_container_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is not seen here, and its folder is nevertheless not that of a dead one."""
    with PacketWriter(tmp_path / "packet") as slow:
        monkeypatch.setattr(locks, "_alive", lambda pid: False)
        write(tmp_path / "packet")
        slow._replace = True
        for name, data in CONTENTS.items():
            slow.write(name, data)
    assert [p.name for p in tmp_path.iterdir()] == ["packet"]


def test_s11_the_second_without_force_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="not empty"),
        PacketWriter(tmp_path / "packet") as second,
    ):
        for name, data in CONTENTS.items():
            second.write(name, data)
        first = write(tmp_path / "packet")
        before = first.stat().st_ino
    assert (tmp_path / "packet").stat().st_ino == before
    assert [p.name for p in tmp_path.iterdir()] == ["packet"]


def test_s11_the_folder_around_is_gone(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="cannot be written"),
        PacketWriter(tmp_path / "deep" / "packet") as writer,
    ):
        for name, data in CONTENTS.items():
            writer.write(name, data)
        shutil.rmtree(tmp_path / "deep")


def test_s11_a_file_system_that_locks_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS locks what can be written: a file then stands for the folder, and excludes just as well."""
    flock = fcntl.flock

    def of_nfs(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(9, os.strerror(9))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with (
        locks.locked(tmp_path),
        (tmp_path / ".lock").open("r+") as other,
        pytest.raises(BlockingIOError),
    ):
        flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    write(tmp_path / "packet")


def at_once(*calls: Callable[[], object]) -> list[BaseException]:
    """Run all in threads of their own, and give what they raised."""
    raised: list[BaseException] = []

    def guarded(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_s11_two_runs_on_one_cache(tmp_path: Path) -> None:
    """Entries that the other run removes to make room are estimated anew, and nothing fails."""
    torch = pytest.importorskip("torch")
    from auditspec.estimator.cache import Cache
    from auditspec.estimator.counterfactual import Counterfactual
    from auditspec.estimator.interventions import Arm
    from auditspec.record.state import State

    state = State({"w": torch.arange(64.0)}, {})
    estimate = Counterfactual(
        arm=Arm.of(("omit a",)),
        method="replay",
        exact=True,
        state=state,
        delta={"w": torch.zeros(64)},
        gradients=1.0,
        seconds=1.0,
        path={"b": state},
    )

    def work(run: int) -> None:
        cache = Cache(tmp_path, largest=4000)
        for number in range(60):
            key = f"{(number * 7 + run) % 5:064x}"
            cache.put(key, estimate, state.parameters)
            there = cache.get(f"{number % 5:064x}", state.parameters)
            assert there is None or torch.equal(there.state.parameters["w"], state.parameters["w"])
            journal = cache.journal("0" * 64)
            journal.save({"step": number}, {"now": state})
            noted = journal.load()
            assert noted is None or torch.equal(
                noted[1]["now"].parameters["w"], state.parameters["w"]
            )
            journal.clear()

    assert at_once(*(lambda run=run: work(run) for run in range(4))) == []
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".part"]


def test_s11_what_killed_runs_left_in_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from auditspec.estimator.cache import Cache

    old, new = tmp_path / ".a.safetensors.01234567.part", tmp_path / ".b.safetensors.89abcdef.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    Cache(tmp_path)._shrink()
    assert not old.exists() and new.exists()


COMMAND = [sys.executable, "-m", "auditspec"]


def test_s11_two_sign_one_packet(packet: Path, tmp_path: Path) -> None:
    """Neither writes the envelope without the other's signature."""
    place = packet
    signers = ["a", "b"]
    for name in signers:
        keys.write_private(tmp_path / f"{name}.key", keys.generate("ed25519"))
    running = [
        subprocess.Popen([*COMMAND, "sign", str(place), "--key", f"{name}.key"], cwd=tmp_path)
        for name in signers
    ]
    assert [process.wait() for process in running] == [0, 0]
    signed = Envelope.decode((place / "packet.dsse.json").read_bytes())
    assert len({s.keyid for s in signed.signatures}) == 3


def test_s11_keys_that_join_one_trust_file(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    running = [
        subprocess.Popen([*COMMAND, "keys", "new", n], cwd=tmp_path, stdout=subprocess.DEVNULL)
        for n in names
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert {k.name for k in Trust.read(tmp_path / "trust.yaml").keys} == set(names)


@pytest.mark.slow
def test_s11_three_forced_runs_into_one_folder(audit_spec: Path) -> None:
    folder = audit_spec.parent
    arguments = [*COMMAND, "run", "audit.yaml", "-o", "packet", "--force", "--cache", "cache", "-q"]
    running = [
        subprocess.Popen(
            arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate()[1] for process in running]
    assert {process.returncode for process in running} == {1}, said
    assert not any("Traceback" in text for text in said)
    assert (folder / "packet" / "results.json").exists()
    assert not list(folder.glob(".packet.*"))
