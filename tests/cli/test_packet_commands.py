import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_packet import packet_result, write_packet

from auditspec.cli.main import main
from auditspec.sign.keys import load_public
from auditspec.sign.signer import KeySigner
from auditspec.verification.trust import Trust

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """Run the command line in an empty folder; gives the exit code, stdout, and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["auditspec", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return int(str(caught.value.code)), captured.out, captured.err

    return run


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ed25519", "rsa-pss"])
def test_keys_sign_verify(call: Call, tmp_path: Path, algorithm: str) -> None:
    code, out, _ = call("keys", "new", "ada", "--algorithm", algorithm)
    assert code == 0
    assert "ada.key" in out and "ada.pub" in out and "trust.yaml" in out
    signer = KeySigner.from_file(tmp_path / "ada.key")
    assert signer.keyid in out
    write_packet(tmp_path / "packet", signer)
    code, out, err = call("verify", "packet", "--trust", "trust.yaml")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == " 1 ✓ packet-readable"
    assert lines[13] == "14 ○ withheld: nothing"
    assert lines[14] == "15 ✓ conclusions: 3 drawn again"
    assert lines[8] == " 9 ✓ thresholds: all met"
    assert lines[21] == "valid: signed by ada (auditor)"


def test_failures_show_every_step(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "ada")
    call("keys", "new", "eve", "--trust-file", "eve.yaml")
    write_packet(tmp_path / "packet", KeySigner.from_file(tmp_path / "ada.key"))
    code, out, err = call("verify", "packet")
    assert code == 7
    assert "\n 6 ✗ signatures: " in out
    assert out.splitlines()[-1] == "intact, but the signer is unknown"
    assert "--trust trust.yaml" in err
    assert call("verify", "packet", "--trust", "eve.yaml")[0] == 7
    (tmp_path / "packet" / "report.html").write_text("other")
    code, out, err = call("verify", "packet", "--trust", "trust.yaml")
    assert code == 6
    assert "12 ✗ digests: changed after signing: report.html\n13 – results-consistent\n" in out
    assert out.splitlines()[-1] == "invalid: step 12 digests failed"
    assert "digests: changed after signing: report.html" in err
    assert "valid: signed" not in out


def test_json(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "ada", "--role", "owner")
    signer = KeySigner.from_file(tmp_path / "ada.key")
    write_packet(tmp_path / "packet", signer)
    code, out, _ = call("verify", "packet", "--trust", "trust.yaml", "--format", "json")
    report = json.loads(out)
    assert code == report["exit_code"] == 0
    assert report["audit"] == "digits-2026-q4"
    assert report["verdicts"]["three-read-as-eight"] == "attributed"
    outcomes = [s["outcome"] for s in report["steps"]]
    assert (outcomes.count("pass"), outcomes.count("skipped")) == (14, 7)
    assert report["signers"] == [
        {"name": "ada", "role": "owner", "keyid": signer.keyid, "algorithm": "ecdsa-p256-sha256"}
    ]
    code, out, _ = call("verify", "packet", "--format", "json")
    report = json.loads(out)
    assert code == report["exit_code"] == 7
    assert report["unknown_signers"] == [signer.keyid]
    code, out, _ = call("verify", "none", "--format", "json")
    report = json.loads(out)
    assert code == report["exit_code"] == 6
    assert (report["audit"], report["steps"][0]["outcome"]) == (None, "fail")


@pytest.mark.parametrize("taken", ["ada.key", "ada.pub", "ada.pem"])
def test_keys_never_overwrite(call: Call, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    code, _, err = call("keys", "new", "ada")
    assert code == 2
    assert f"{taken}: exists already" in err
    assert [p.name for p in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "precious"


def test_a_second_key_joins_the_trust_file(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "auditor")
    before = (tmp_path / "trust.yaml").read_text()
    code, out, _ = call("keys", "new", "owner", "--role", "owner")
    assert code == 0
    assert "trust.yaml" in out
    trust = Trust.read(tmp_path / "trust.yaml")
    assert {(k.name, k.role) for k in trust.keys} == {("auditor", "auditor"), ("owner", "owner")}
    assert trust.require == {"auditor": 1}  # what was required is what is required
    added = [
        line
        for line in (tmp_path / "trust.yaml").read_text().splitlines()
        if line not in before.splitlines()
    ]
    assert added == ['  - {name: "owner", role: owner, key: "owner.pub"}']
    assert call("keys", "new", "owner", "--role", "other")[0] == 2
    assert len(Trust.read(tmp_path / "trust.yaml").keys) == 2


@pytest.mark.parametrize(
    "text",
    [
        'auditspec_trust: "1"\nrequire: {auditor: 1}\nkeys: [{name: a, role: auditor, key: a.pub}]\n',
        'auditspec_trust: "1"\nkeys:\n- name: a\n  role: auditor  # chief\n  key: a.pub\nrequire:\n  auditor: 1',
        '{auditspec_trust: "1", require: {auditor: 1}, keys: [{name: a, role: auditor, key: a.pub}]}',
    ],
)
def test_a_trust_file_that_somebody_wrote_is_kept(call: Call, tmp_path: Path, text: str) -> None:
    call("keys", "new", "a", "--trust-file", "other.yaml")
    (tmp_path / "trust.yaml").write_text(text)
    assert call("keys", "new", "b", "--role", "owner")[0] == 0
    trust = Trust.read(tmp_path / "trust.yaml")
    assert [(k.name, k.role) for k in trust.keys] == [("b", "owner"), ("a", "auditor")]
    assert len((tmp_path / "trust.yaml").read_text()) > len(text)


def test_a_trust_file_of_identities_gets_its_first_key(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "a", "--trust-file", "other.yaml")
    (tmp_path / "trust.yaml").write_text(
        'auditspec_trust: "1"\nauthorities: {roots: [a.pem]}\n'
        "identities: [{name: A, role: auditor, subject: CN=a}]\nrequire: {auditor: 1}\n"
    )
    assert call("keys", "new", "b", "--role", "owner")[0] == 0
    trust = Trust.read(tmp_path / "trust.yaml")
    assert [k.name for k in trust.keys] == ["b"] and len(trust.identities) == 1


def test_no_trust_file_leaves_no_key(call: Call, tmp_path: Path) -> None:
    (tmp_path / "trust.yaml").write_text("precious")
    code, _, err = call("keys", "new", "ada")
    assert code == 2
    assert "trust.yaml:1:1: error[" in err
    assert [p.name for p in tmp_path.iterdir()] == ["trust.yaml"]
    assert (tmp_path / "trust.yaml").read_text() == "precious"


def test_keys_and_trust_in_other_folders(call: Call, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "public").mkdir()
    code, _, _ = call("keys", "new", "secret/ada", "--trust-file", "public/trust.yaml")
    assert code == 0
    trust = Trust.read(tmp_path / "public" / "trust.yaml")
    assert trust.keys[0].key == load_public(tmp_path / "secret" / "ada.pub")
    assert (tmp_path / "secret" / "ada.key").stat().st_mode & 0o777 == 0o600


def test_a_bad_role_writes_nothing(call: Call, tmp_path: Path) -> None:
    code, _, err = call("keys", "new", "ada", "--role", "Chief Auditor")
    assert code == 2
    assert "role 'Chief Auditor'" in err
    assert list(tmp_path.iterdir()) == []


def test_a_bad_trust_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "trust.yaml").write_text("auditspec_trust: 1\n")
    code, out, err = call("verify", "packet", "--trust", "trust.yaml")
    assert (code, out) == (2, "")
    assert "trust.yaml:1:18: error[AS01" in err


def test_verify_is_light(tmp_path: Path, call: Call) -> None:
    call("keys", "new", "ada")
    signer = KeySigner.from_file(tmp_path / "ada.key")
    write_packet(tmp_path / "packet", signer, result=packet_result(1))
    program = (
        "import sys\n"
        "from auditspec.cli.main import cli\n"
        "cli.main(['verify', 'packet', '--trust', 'trust.yaml'], standalone_mode=False)\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pyarrow', 'weasyprint', 'altair'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # The reports are drawn again, in a process of their own.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 10


def test_countersign(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "ada")
    call("keys", "new", "bo", "--role", "owner", "--trust-file", "bo.yaml")
    write_packet(tmp_path / "packet", KeySigner.from_file(tmp_path / "ada.key"))
    (tmp_path / "both.yaml").write_text(
        'auditspec_trust: "1"\nkeys:\n'
        "  - {name: Ada, role: auditor, key: ada.pub}\n  - {name: Bo, role: owner, key: bo.pub}\n"
        "require: {auditor: 1, owner: 1}\n"
    )
    verify = ("verify", "packet", "--trust", "both.yaml")
    assert call(*verify)[0] == 6
    code, out, _ = call("sign", "packet", "--key", "bo.key", "--certificate", "bo.pem")
    assert (code, out.split()[-2:]) == (0, ["2", "signatures"])
    code, out, _ = call(*verify)
    assert (code, out.splitlines()[-1]) == (0, "valid: signed by Ada (auditor), Bo (owner)")
    assert call("sign", "packet", "--key", "bo.key")[0] == 2
    (tmp_path / "packet" / "report.html").write_text("other")
    assert call("sign", "packet", "--key", "bo.key")[0] == 6


def test_rotation_expiry_and_another_moment(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "old")
    call("keys", "new", "new", "--trust-file", "new.yaml")
    write_packet(tmp_path / "packet", KeySigner.from_file(tmp_path / "old.key"))
    (tmp_path / "trust.yaml").write_text(
        'auditspec_trust: "1"\nkeys:\n'
        "  - {name: Ada, role: auditor, key: old.pub, until: 2027-01-31}\n"
        "  - {name: Ada, role: auditor, key: new.pub, from: 2027-01-31}\n"
        "require: {auditor: 1}\n"
    )
    verify = ("verify", "packet", "--trust", "trust.yaml", "--at")
    assert call(*verify, "2027-01-30")[0] == 0
    code, out, _ = call(*verify, "2027-01-31T00:00Z")
    assert (code, out.splitlines()[-1]) == (6, "invalid: step 8 validity failed")
    assert call(*verify, "soon")[0] == 2
    call("sign", "packet", "--key", "new.key")
    assert call(*verify, "2027-01-30")[0] == 6  # the new key does not count yet


def test_a_log(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "ada")
    call("keys", "new", "keeper", "--trust-file", "keeper.yaml")
    write_packet(tmp_path / "packet", KeySigner.from_file(tmp_path / "ada.key"))
    with (tmp_path / "trust.yaml").open("a") as file:
        file.write("log: keeper.pub\n")
    assert call("verify", "packet", "--trust", "trust.yaml")[0] == 6
    code, out, _ = call("log", "append", "log", "packet", "--key", "keeper.key")
    assert (code, out) == (0, "entry 1\n")
    verify = ("verify", "packet", "--trust", "trust.yaml", "--log", "log")
    code, out, _ = call(*verify)
    assert code == 0 and "21 ✓ log-consistency: 1 entries" in out
    assert call("log", "append", "log", "packet", "--key", "ada.key")[0] == 2
    call("keys", "new", "w", "--algorithm", "ed25519", "--trust-file", "w.yaml")
    monitor = ("log", "monitor", "log", "--log-key", "keeper.pub")
    code, out, err = call(*monitor, "--cosign", "w.key", "--name", "witness.example/w1")
    assert code == 0 and "1 entries, 0 new" in err and out == ""
    assert call(*monitor, "--cosign", "w.key")[0] == 2
    with (tmp_path / "trust.yaml").open("a") as file:
        file.write("witnesses: {require: 1, keys: [{name: witness.example/w1, key: w.pub}]}\n")
    assert call(*verify)[0] == 6
    assert call("log", "append", "log", "packet", "--key", "keeper.key")[1] == "entry 1\n"
    assert call(*verify)[0] == 0
    (tmp_path / "log" / "entries").write_text("")
    code, _, err = call(*monitor)
    assert code == 6 and "log-monitor: log: it was cut off" in err
    assert call("verify", "packet", "--trust", "keeper.yaml", "--log", "log")[0] == 2


def test_expectations(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "ada")
    packet = write_packet(tmp_path / "packet", KeySigner.from_file(tmp_path / "ada.key"))
    verify = ("verify", "packet", "--trust", "trust.yaml")
    shutil.copy(packet / "spec.yaml", tmp_path / "mine.yaml")
    assert call(*verify, "--spec", "mine.yaml", "--system-version", "4.2.0")[0] == 0
    code, _, err = call(*verify, "--spec", str(packet / "spec.yaml"))
    assert code == 2 and "the spec lies inside the packet" in err
    code, out, _ = call(*verify, "--spec", "trust.yaml")
    assert (code, out.splitlines()[-1]) == (6, "invalid: step 17 expected failed")
    assert call(*verify, "--artifact", "record=trust.yaml")[0] == 6
    assert call(*verify, "--artifact", "record")[0] == 2


def test_redact(call: Call, tmp_path: Path) -> None:
    call("keys", "new", "ada")
    write_packet(tmp_path / "packet", KeySigner.from_file(tmp_path / "ada.key"))
    secret = packet_result().evidence[0].path
    arguments = ("redact", "packet", "/evidence/0/path", "--reason", "a trade secret")
    code, out, err = call(*arguments, "-o", "public", "-q")
    assert (code, out.split()) == (0, ["public", "public.withheld.json"]), err
    for name in ("results.json", "report.html", "evidence.json"):
        assert secret not in (tmp_path / "public" / name).read_text()
        assert "withheld" in (tmp_path / "public" / name).read_text()
    assert not (tmp_path / "public" / "spec.yaml").exists()
    envelope = "packet.dsse.json"
    same = [(tmp_path / folder / envelope).read_bytes() for folder in ("packet", "public")]
    assert same[0] == same[1]
    verify = ("verify", "public", "--trust", "trust.yaml")
    code, out, err = call(*verify, "--disclosures", "public.withheld.json")
    assert code == 0 and "disclosures: 6 proved" in out, out
    assert out.splitlines()[-1].endswith("; 3 values and 3 files withheld")
    told = json.loads(call(*verify, "--format", "json")[1])
    assert "/evidence/0/path" in told["withheld"] and "/run/spec_digest" in told["withheld"]
    held = json.loads((tmp_path / "public.withheld.json").read_text())
    assert (tmp_path / "public.withheld.json").stat().st_mode & 0o777 == 0o600
    assert secret in [opening["value"] for opening in held["disclosures"]]
    held["disclosures"][2]["value"] = "elsewhere"
    (tmp_path / "public.withheld.json").write_text(json.dumps(held))
    code, out, _ = call(*verify, "--disclosures", "public.withheld.json")
    assert code == 6 and "disclosures failed" in out.splitlines()[-1]
    assert call("redact", "packet", "/nowhere", "--reason", "x", "-o", "other")[0] == 2
