"""Threats to what a packet is held against: it would vouch for itself (S9)."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import world as w
from sample_packet import write_packet

from auditspec import api
from auditspec.errors import AuditspecError, UsageError
from auditspec.sign import keys

pytestmark = pytest.mark.threat

POLICY = """\
auditspec_trust: "1"
keys: [{name: Lead auditor, role: auditor, key: KEY}]
require: {auditor: 1}
"""


@pytest.fixture
def courier(tmp_path: Path) -> Path:
    """A stranger's packet, sealed by the stranger, that brings a trust file and a key along."""
    packet = write_packet(tmp_path / "Packet", w.AUDITOR.signer)
    keys.write_public(packet / "stranger.pub", w.AUDITOR.key.public_key())
    (packet / "trust.yaml").write_text(POLICY.replace("KEY", "stranger.pub"))
    w.reseal(packet)
    return packet


def refused(packet: Path, said: str = "lies inside the packet", **given: object) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        api.verify(packet, **given)
    assert caught.value.exit_code == 2 and caught.value.remedy


def test_s9_the_packet_as_such_is_refused_for_another_reason_only(
    courier: Path, tmp_path: Path
) -> None:
    """Outside of the packet the same bytes are the verifier's own choice."""
    for name in ("trust.yaml", "stranger.pub"):
        shutil.copy(courier / name, tmp_path)
    error = api.verify(courier, trust=tmp_path / "trust.yaml").error
    assert error is not None
    assert error.step == "rebuild"  # a packet holds no such files, whoever signed them


def test_s9_a_trust_file_inside_the_packet(courier: Path) -> None:
    refused(courier, trust=courier / "trust.yaml")


def by_another_spelling(packet: Path) -> Path:
    return packet / ".." / packet.name / "." / "trust.yaml"


def through_a_link_to_the_folder(packet: Path) -> Path:
    (packet.parent / "mine").symlink_to(packet)
    return packet.parent / "mine" / "trust.yaml"


def by_a_hard_link(packet: Path) -> Path:
    os.link(packet / "trust.yaml", packet.parent / "trust.yaml")
    return packet.parent / "trust.yaml"


def through_the_process_s_own_folder(packet: Path) -> Path:
    os.chdir(packet)
    return Path("/proc/self/cwd/trust.yaml")


@pytest.mark.parametrize(
    "spelled",
    [
        by_another_spelling,
        through_a_link_to_the_folder,
        by_a_hard_link,
        through_the_process_s_own_folder,
    ],
)
def test_s9_however_it_is_spelled(
    courier: Path, spelled: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(courier.parent)
    refused(courier, trust=spelled(courier))


def test_s9_a_packet_that_is_reached_through_a_link(courier: Path, tmp_path: Path) -> None:
    (tmp_path / "received").symlink_to(courier)
    refused(tmp_path / "received", trust=courier / "trust.yaml")


def test_s9_a_folder_of_the_packet_that_leads_outside(courier: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(courier / "trust.yaml", tmp_path / "elsewhere")
    (courier / "more").symlink_to(tmp_path / "elsewhere")
    refused(courier, trust=courier / "more" / "trust.yaml")


def test_s9_a_trust_file_outside_that_names_a_key_inside(courier: Path, tmp_path: Path) -> None:
    (tmp_path / "trust.yaml").write_text(POLICY.replace("KEY", f"{courier.name}/stranger.pub"))
    refused(courier, "what the trust file names lies inside", trust=tmp_path / "trust.yaml")


def test_s9_roots_inside(courier: Path, tmp_path: Path) -> None:
    (tmp_path / "trust.yaml").write_text(
        POLICY.replace("KEY", "stranger.pub") + "authorities: {roots: [Packet/ca.pem]}\n"
    )
    refused(courier, "what the trust file names lies inside", trust=tmp_path / "trust.yaml")


def test_s9_whatever_else_a_packet_is_held_against(courier: Path, tmp_path: Path) -> None:
    shutil.copy(courier / "stranger.pub", tmp_path)
    policy = POLICY.replace("KEY", "stranger.pub") + "log: stranger.pub\n"
    (tmp_path / "trust.yaml").write_text(policy)
    trust = tmp_path / "trust.yaml"
    refused(courier, "the spec lies inside", trust=trust, spec=courier / "spec.yaml")
    refused(courier, "the log lies inside", trust=trust, log=courier)
    refused(
        courier, "artifact 'final' lies", trust=trust, artifacts={"final": courier / "spec.yaml"}
    )


def test_s9_a_packet_in_an_archive(courier: Path, tmp_path: Path) -> None:
    """No archive is opened: there is no packet, and so nothing that could vouch."""
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", courier))
    with pytest.raises(AuditspecError):
        api.verify(archive, trust=archive / "trust.yaml")
