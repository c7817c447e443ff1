import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditspec.errors import SignatureError
from auditspec.sign import keys
from auditspec.sign.dsse import Envelope, Signature, pae
from auditspec.sign.signer import KeySigner

signatures = st.builds(Signature, st.binary(min_size=1), st.none() | st.text())


def test_pae_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("ü", b"") == b"DSSEv1 2 \xc3\xbc 0 "


@given(st.text(), st.binary(), st.lists(signatures, min_size=1, max_size=3).map(tuple))
def test_round_trip(kind: str, payload: bytes, made: tuple[Signature, ...]) -> None:
    envelope = Envelope(kind, payload, made)
    assert Envelope.decode(envelope.encode()) == envelope


@given(
    st.binary()
    | st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda v: (
            st.lists(v, max_size=3)
            | st.dictionaries(
                st.sampled_from(["payload", "payloadType", "signatures", "sig", "keyid"]), v
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        assert Envelope.decode(data).signatures
    except SignatureError as error:
        assert error.step == "envelope-wellformed"


def document(**changes: Any) -> bytes:
    base = {"payload": "QQ==", "payloadType": "t", "signatures": [{"sig": "QQ=="}]}
    return json.dumps(base | changes).encode()


def test_a_keyid_may_be_missing() -> None:
    envelope = Envelope("t", b"A", (Signature(b"A", None),))
    assert Envelope.decode(envelope.encode()) == envelope


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"payload": ', b'"payload":  '),
        (b"\n}\n", b"\n}"),
        (b'"payloadType": "t"', b'"payloadType": "\\u0074"'),
        (b'"sig": "QQ=="', b'"sig": "QQ==",\n   "certificates": []'),
        (b'"keyid": "k"', b'"keyid": "l"'),
        (b"Q0VSVA==", b"Q0VSVB=="),
        (b"Q0VSVA==", b"Q0VSVQ=="),
        (b"VElNRQ==", b"VElNRA=="),
        (b"sha256:", b"sha512:"),
    ],
)
def test_every_byte_counts(before: bytes, after: bytes) -> None:
    """What no signature covers too: the checksum does."""
    data = Envelope("t", b"A", (Signature(b"A", "k", (b"CERT",), (b"TIME",)),)).encode()
    assert Envelope.decode(data).encode() == data and before in data
    with pytest.raises(SignatureError, match=r"changed|canonical|twice"):
        Envelope.decode(data.replace(before, after))
    with pytest.raises(SignatureError, match="changed"):
        Envelope.decode(document())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (document(payload="QR=="), "payload is not canonical base64"),
        (document(payload="QQ"), "payload is not base64"),
        (document(payload="Q Q=="), "payload is not base64"),
        (document(payload="QQ==\n"), "payload is not base64"),
        (document(payload="-_-_"), "payload is not base64"),
        (document(payload="ü"), "payload is not base64"),
        (document(signatures=[{"sig": "QR=="}]), "sig is not canonical base64"),
        (document(signatures=[{"sig": ""}]), r"signatures\.0\.sig"),
        (document(signatures=[]), "signatures"),
        (document(signatures=[{"sig": "QQ=="}] * 65), "signatures"),
        (document(signatures=[{"sig": "QQ==", "cert": ""}]), r"signatures\.0\.cert: Extra"),
        (document(more=1), "more: Extra"),
        (document(payloadType=1), "payloadType"),
        (document(payload=None), "payload"),
        (document()[:-1] + b', "payload": "Qg=="}', "'payload' stands twice"),
        (b"", "not strict JSON"),
    ],
)
def test_decode_is_strict(data: bytes, said: str) -> None:
    with pytest.raises(SignatureError, match=said) as caught:
        Envelope.decode(data)
    assert caught.value.exit_code == 6


def test_openssl_verifies(tmp_path: Path, any_signer: KeySigner) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    envelope = Envelope("application/x", b"payload \x00\xff").signed_by(any_signer)
    stored = json.loads(envelope.encode())
    payload = base64.b64decode(stored["payload"])
    kind = stored["payloadType"].encode()
    (tmp_path / "pae.bin").write_bytes(
        b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    )
    (tmp_path / "sig.bin").write_bytes(base64.b64decode(stored["signatures"][0]["sig"]))
    keys.write_public(tmp_path / "a.pub", any_signer.public_key)
    if any_signer.algorithm == "ed25519":
        command = [
            "pkeyutl",
            "-verify",
            "-pubin",
            "-inkey",
            "a.pub",
            "-rawin",
            "-in",
            "pae.bin",
            "-sigfile",
            "sig.bin",
        ]
    else:
        pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"]
        options = pss if any_signer.algorithm == "rsa-pss-sha256" else []
        command = [
            "dgst",
            "-sha256",
            *options,
            "-verify",
            "a.pub",
            "-signature",
            "sig.bin",
            "pae.bin",
        ]
    good = subprocess.run(["openssl", *command], cwd=tmp_path, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    (tmp_path / "pae.bin").write_bytes(envelope.pae + b"x")
    bad = subprocess.run(["openssl", *command], cwd=tmp_path, capture_output=True)
    assert bad.returncode != 0
