from pathlib import Path

import pytest

from auditspec.errors import SpecError, UsageError
from auditspec.sign import keys
from auditspec.verification.trust import Trust, write_trust

GOOD = """\
auditspec_trust: "1"
keys:
  - {name: Ada, role: auditor, key: ada.pub}
  - {name: Bo, role: owner, key: sub/bo.pub}
require: {auditor: 1, owner: 1}
algorithms: [ed25519]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    keys.write_public(tmp_path / "ada.pub", keys.generate("ed25519").public_key())
    keys.write_public(tmp_path / "sub" / "bo.pub", keys.generate("ecdsa-p256-sha256").public_key())
    return tmp_path


def read(folder: Path, text: str) -> Trust:
    (folder / "trust.yaml").write_text(text)
    return Trust.read(folder / "trust.yaml")


def test_reads_keys_beside_the_file(folder: Path) -> None:
    trust = read(folder, GOOD)
    assert [(k.name, k.role, k.algorithm) for k in trust.keys] == [
        ("Ada", "auditor", "ed25519"),
        ("Bo", "owner", "ecdsa-p256-sha256"),
    ]
    assert trust.keys[0].keyid == keys.keyid(keys.load_public(folder / "ada.pub"))
    assert trust.require == {"auditor": 1, "owner": 1}
    assert trust.algorithms == ("ed25519",)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"1"', '"2"', r"trust.yaml:1:18: error\[AS015\] auditspec_trust: expected '1'"),
        ('"1"', "1", r"trust.yaml:1:18: error\[AS01\d\] auditspec_trust: .*quote it"),
        ("algorithms", "algorithm", r"6:1: error\[AS012\] .* did you mean 'algorithms'"),
        ("require: {auditor: 1, owner: 1}", "", r"error\[AS013\] missing key 'require'"),
        ("[ed25519]", "[rsa]", r"trust.yaml:6:14: error\[AS015\] algorithms\[0\]"),
        ("[ed25519]", "[]", r"trust.yaml:6:13: error\[AS015\] algorithms"),
        ("role: owner", "role: Owner", r"trust.yaml:4:22: error\[AS015\] keys\[1\].role"),
        ("sub/bo.pub", "ada.pub", r"trust.yaml:4:34: error\[AS060\] .* same key as Ada"),
        ("{auditor: 1, owner: 1}", "{}", r"error\[AS015\] require"),
        ("auditor: 1", "auditor: 0", r"trust.yaml:5:20: error\[AS015\] require.auditor"),
        (
            "auditor: 1",
            "auditor: 2",
            r"5:20: error\[AS061\] signers required in role 'auditor': 2; listed: 1",
        ),
        ("owner: 1", "chief: 1", r"error\[AS061\] signers required in role 'chief': 1; listed: 0"),
        ("require:", "keys:", "AS005"),
        ("key: ada.pub", "key: ada.pub, until: soon", r"error\[AS015\] keys\[0\].until"),
        (
            "require:",
            "identities: [{name: Cy, role: owner, subject: CN=Cy}]\nrequire:",
            r"error\[AS062\] nobody is trusted to vouch for CN=Cy",
        ),
        (
            "require:",
            "identities: [{name: A, role: owner, subject: CN=A}, {name: B, role: owner, subject: CN=A}]\n"
            "require:",
            r"error\[AS060\] the same subject twice",
        ),
        (
            "require:",
            "log: none.pub\nauthorities: {roots: []}\nrequire:",
            r"AS015\] authorities.roots",
        ),
        ("{name: Ada", "!!python/object:os.system {name: Ada", "AS007"),
    ],
)
def test_every_mistake_has_its_place(folder: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        read(folder, GOOD.replace(old, new))
    assert caught.value.exit_code == 2


def test_broken_text_and_missing_files(folder: Path) -> None:
    with pytest.raises(SpecError, match="AS003"):
        read(folder, "keys: [")
    with pytest.raises(UsageError, match=r"none\.pub: no such file"):
        read(folder, GOOD.replace("ada.pub", "none.pub"))
    with pytest.raises(UsageError, match=r"none\.yaml: no such file"):
        Trust.read(folder / "none.yaml")


@pytest.mark.parametrize("name", ["Ada", 'Ada "Ünal": {x}', "back\\slash"])
def test_what_is_written_can_be_read(folder: Path, name: str) -> None:
    write_trust(folder / "new.yaml", name, "auditor", "ada.pub")
    trust = Trust.read(folder / "new.yaml")
    assert [(k.name, k.role) for k in trust.keys] == [(name, "auditor")]
    assert trust.require == {"auditor": 1}
    with pytest.raises(UsageError, match="never overwritten"):
        write_trust(folder / "new.yaml", name, "auditor", "ada.pub")


def test_a_role_must_be_plain(folder: Path) -> None:
    with pytest.raises(UsageError, match="role 'Chief Auditor'"):
        write_trust(folder / "new.yaml", "Ada", "Chief Auditor", "ada.pub")
    assert not (folder / "new.yaml").exists()
