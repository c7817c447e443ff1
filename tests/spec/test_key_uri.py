import pytest

from auditspec.spec.key_uri import carries_pin, shown, uri_scheme


@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        ("pkcs11:token=a", "pkcs11"),
        ("PKCS11:token=a", "pkcs11"),
        ("hashivault://signing", "hashivault"),
        ("aws+kms://x", "aws+kms"),
        ("auditor.key", None),
        ("./a:b.key", None),
        ("C:\\keys\\auditor.key", None),
        ("keys/x:y", None),
    ],
)
def test_what_is_a_uri_and_what_a_file(key: str, scheme: str | None) -> None:
    assert uri_scheme(key) == scheme


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("pkcs11:token=a?pin-value=1", True),
        ("pkcs11:token=a?pin%2DVALUE=1", True),
        ("pkcs11:token=a@b", False),
        ("hashivault://user:password@signing", True),
        ("hashivault://user%3Apassword%40signing", True),
        ("kms://[broken", False),
        ("hashivault://signing", False),
        ("a@b.key", False),
    ],
)
def test_a_secret_inside(uri: str, secret: bool) -> None:
    assert carries_pin(uri) is secret


def test_what_is_shown() -> None:
    assert shown("pkcs11:token=a;object=b?pin-source=c") == "pkcs11:token=a;object=b"
