import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sample_packet import packet_files, packet_result, write_packet

from auditspec.artifacts import files
from auditspec.errors import UsageError
from auditspec.results import Signer
from auditspec.sign.packet import PacketWriter
from auditspec.sign.signer import KeySigner

HERE = Path(__file__).parents[1] / "support"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_publishes_all_at_once(tmp_path: Path, signer: KeySigner) -> None:
    destination = tmp_path / "deep" / "packet"
    result = packet_result()
    with PacketWriter(destination) as packet:
        for name, data in packet_files(result).items():
            packet.write(name, data)
            assert not destination.exists()
        packet.seal(signer, result)
        assert not destination.exists()
    expected = packet_files(result)
    assert names(destination) == sorted([*expected, "packet.dsse.json", "packet.disclosure.json"])
    assert all((destination / name).read_bytes() == data for name, data in expected.items())
    assert names(tmp_path / "deep") == ["packet"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PacketWriter(tmp_path / "packet") as packet:
        packet.write("spec.yaml", b"")
        raise KeyError
    assert names(tmp_path) == []


def test_what_may_be_written(tmp_path: Path, signer: KeySigner) -> None:
    result = packet_result()
    with (
        pytest.raises(UsageError, match=r"lacks spec\.resolved\.json"),
        PacketWriter(tmp_path / "p") as p,
    ):
        p.write("spec.yaml", b"")
    with PacketWriter(tmp_path / "p") as packet:
        for bad in ("../x", "notes.txt", "packet.dsse.json"):
            with pytest.raises(UsageError, match="no such file"):
                packet.write(bad, b"")
        with pytest.raises(UsageError, match="lacks"):
            packet.seal(signer, result)
        for name, data in packet_files(result).items():
            packet.write(name, data)
        with pytest.raises(UsageError, match="twice"):
            packet.write("spec.yaml", b"")
        other = Signer(keyid="0" * 64, algorithm="ed25519")
        with pytest.raises(UsageError, match="name the signer 0000"):
            packet.seal(signer, result.model_copy(update={"signer": other}))
        packet.seal(signer, result)
    assert (tmp_path / "p" / "packet.dsse.json").exists()
    with pytest.raises(UsageError, match="sealed"), PacketWriter(tmp_path / "q") as packet:
        for name, data in packet_files(result).items():
            if name != "report.pdf":
                packet.write(name, data)
        packet.seal(signer, result)
        packet.write("report.pdf", b"")
    assert names(tmp_path) == ["p"]


def test_a_taken_destination_is_refused(tmp_path: Path, signer: KeySigner) -> None:
    packet = write_packet(tmp_path / "packet", signer)
    before = (packet / "packet.dsse.json").read_bytes()
    with pytest.raises(UsageError, match="not empty"):
        write_packet(packet, signer)
    assert (packet / "packet.dsse.json").read_bytes() == before
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(packet)
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="not a folder"):
            write_packet(tmp_path / name, signer, replace=True)
    (tmp_path / "empty").mkdir()
    assert names(write_packet(tmp_path / "empty", signer)) == names(packet)


def test_replace_swaps_packets_and_nothing_else(tmp_path: Path, signer: KeySigner) -> None:
    packet = write_packet(tmp_path / "packet", signer)
    write_packet(packet, None, replace=True)
    assert not (packet / "packet.dsse.json").exists()
    (packet / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="other than a packet"):
        write_packet(packet, signer, replace=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "spec.yaml").write_text("precious")
    with pytest.raises(UsageError, match="other than a packet"):
        write_packet(tmp_path / "home", signer, replace=True)
    assert (tmp_path / "home" / "spec.yaml").read_text() == "precious"
    assert names(tmp_path) == ["home", "packet"]


def test_a_destination_taken_meanwhile_is_kept(tmp_path: Path) -> None:
    destination = tmp_path / "packet"
    with pytest.raises(UsageError, match="not empty"), PacketWriter(destination) as packet:
        for name, data in packet_files(packet_result()).items():
            packet.write(name, data)
        destination.mkdir()
        (destination / "other").write_text("mine")
    assert names(destination) == ["other"]
    assert names(tmp_path) == ["packet"]


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(UsageError, match="cannot be written"),
        PacketWriter(tmp_path / "file" / "p"),
    ):
        pass


def killed_writer(destination: Path, replace: bool) -> int:
    """Start a process that writes a packet, kill -9 it before it publishes, and return its id."""
    program = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {str(HERE)!r})
        from pathlib import Path
        from sample_packet import packet_files, packet_result
        from auditspec.sign.packet import PacketWriter

        with PacketWriter(Path({str(destination)!r}), replace={replace}) as packet:
            for name, data in packet_files(packet_result(), pdf=False).items():
                packet.write(name, data)
            print("written", flush=True)
            time.sleep(600)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.pid


def test_kill_leaves_no_half_packet_and_the_next_run_cleans_up(
    tmp_path: Path, signer: KeySigner
) -> None:
    destination = tmp_path / "packet"
    pid = killed_writer(destination, replace=False)
    assert not destination.exists()
    (left,) = names(tmp_path)
    assert left.startswith(f".packet.auditspec-{pid}-")
    (tmp_path / ".packet.auditspec-notes").mkdir()
    alive = tmp_path / f".packet.auditspec-{os.getpid()}-00000000.new"
    alive.mkdir()
    write_packet(destination, signer)
    assert names(tmp_path) == [alive.name, ".packet.auditspec-notes", "packet"]


def test_kill_while_replacing_keeps_the_old_packet(tmp_path: Path, signer: KeySigner) -> None:
    destination = write_packet(tmp_path / "packet", signer)
    before = (destination / "packet.dsse.json").read_bytes()
    pid = killed_writer(destination, replace=True)
    assert (destination / "packet.dsse.json").read_bytes() == before
    # Killed between the two renames: the old packet stands aside, the new one is not there yet.
    destination.rename(tmp_path / f".packet.auditspec-{pid}-00000000.old")
    with pytest.raises(UsageError, match="not empty"):
        write_packet(destination, signer)
    assert (destination / "packet.dsse.json").read_bytes() == before
    assert names(tmp_path) == ["packet"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(UsageError, match="No space left"),
        PacketWriter(tmp_path / "packet") as packet,
    ):
        packet.write("spec.yaml", b"")
    assert names(tmp_path) == []


def test_a_failed_swap_puts_the_old_packet_back(
    tmp_path: Path, signer: KeySigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    packet = write_packet(tmp_path / "packet", signer)
    rename = Path.rename
    monkeypatch.setattr(files, "_EXCHANGE", 1 << 30)  # unknown to every system

    def refuse_new(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(UsageError, match="not permitted"):
        write_packet(packet, None, replace=True)
    assert (packet / "packet.dsse.json").exists()
    assert names(tmp_path) == ["packet"]
