"""What a spec asks of this machine: a device, exports that are installed, and keys to sign with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from auditspec.consistency.inquiry import Inquiry
from auditspec.consistency.paths import similar
from auditspec.errors import AuditspecError, EstimationError
from auditspec.report.exports import exports
from auditspec.spec.key_uri import uri_scheme
from auditspec.spec.models import Artifact, Signing
from auditspec.spec.suggest import did_you_mean
from auditspec.spec.tree import Location

T = TypeVar("T")


def check_device(inquiry: Inquiry) -> None:
    """The device that is asked for is there; torch is imported only where that is a GPU."""
    wanted = inquiry.spec.estimator.device
    if not wanted.startswith("cuda"):
        return
    from auditspec.engine.execution import resolve_device

    try:
        resolve_device(wanted)
    except EstimationError as error:
        inquiry.fault("AS090", error.message, ("estimator", "device"), error.remedy)


def check_exports(inquiry: Inquiry) -> None:
    """What the packet is to hold can be made here."""
    for index, name in enumerate(inquiry.spec.report.formats or ()):
        if name not in (every := exports()):
            hint = did_you_mean(name, every, "exports")
            inquiry.fault(
                "AS092", f"no export is named {name!r}", ("report", "formats", index), hint
            )


def check_method(inquiry: Inquiry) -> None:
    """The estimator that is asked for is there; torch is imported only where one is."""
    wanted = inquiry.spec.estimator.method
    if wanted == "auto":
        return
    from auditspec.estimator.plan import estimators

    known = ["auto", *estimators()]
    if wanted not in known:
        message = f"no estimator is named {wanted!r}"
        hint = did_you_mean(wanted, known, "estimators")
        inquiry.fault("AS093", message, ("estimator", "method"), hint)


def check_engine(inquiry: Inquiry) -> None:
    """The engine that is asked for is there."""
    wanted = inquiry.spec.estimator.engine
    if wanted == type(inquiry.spec.estimator)().engine:
        return
    from auditspec.engine import engines

    if wanted not in (known := engines()):
        hint = did_you_mean(wanted, known, "engines")
        inquiry.fault("AS094", f"no engine is named {wanted!r}", ("estimator", "engine"), hint)


def check_trainers(inquiry: Inquiry) -> None:
    """The keys of trainers, and of whoever dates their signatures, can be read, and stand where they count."""
    from auditspec.sign.keys import load_public

    signed = {"record", *(s.commitment for s in inquiry.spec.stages if s.commitment is not None)}
    for name, artifact in inquiry.spec.artifacts.items():
        place: Location = ("artifacts", name)
        for key in ("signed_by", "dated_by"):
            if getattr(artifact, key) is not None and name not in signed:
                message = (
                    f"artifact {name!r}: a trainer signs the record and commitments, and no other"
                )
                inquiry.fault("AS091", message, (*place, key), f"remove {key}")
        if artifact.signed_by is not None and name in signed:
            _load(inquiry, (*place, "signed_by"), artifact.signed_by, load_public)
        if artifact.dated_by is not None and name in signed:
            _check_dated(inquiry, (*place, "dated_by"), artifact)


def _check_dated(inquiry: Inquiry, place: Location, artifact: Artifact) -> None:
    from auditspec.sign.certificates import read_chain, read_crls
    from auditspec.sign.keys import load_public

    dated = artifact.dated_by
    if dated is None:
        return
    if artifact.signed_by is None:
        message = "a date is that of a signature, and nobody's is asked for"
        inquiry.fault("AS091", message, place, "name the trainer's key: signed_by")
    if dated.timestamps is not None:
        _load(inquiry, (*place, "timestamps"), dated.timestamps, read_chain)
    if dated.log is not None:
        _load(inquiry, (*place, "log"), dated.log, load_public)
    for index, name in enumerate(dated.crls):
        _load(inquiry, (*place, "crls", index), name, read_crls)


def check_signing(inquiry: Inquiry) -> None:
    """Everything that the packet is to be signed with can be read, and fits together.

    A key on a token is left alone, and so is an encrypted one: opening them may ask for a secret.
    """
    signing = inquiry.spec.signing
    if signing is None:
        return
    keyid = _key(inquiry, signing)
    if signing.certificate is not None:
        _check_certificate(inquiry, signing.certificate, keyid)
    elif signing.level is not None:
        message = "signing the PDF needs a certificate"
        inquiry.fault("AS091", message, ("signing", "level"), "name it: signing.certificate")
    if signing.level not in (None, "B-B") and signing.timestamp is None:
        message = f"level {signing.level} needs a timestamp authority"
        inquiry.fault("AS091", message, ("signing", "level"), "name it: signing.timestamp")
    if signing.authorities is not None:
        from auditspec.sign.certificates import read_chain

        _load(inquiry, ("signing", "authorities"), signing.authorities, read_chain)
    for index, name in enumerate(signing.crls):
        from auditspec.sign.certificates import read_crls

        _load(inquiry, ("signing", "crls", index), name, read_crls)


def _key(inquiry: Inquiry, signing: Signing) -> str | None:
    """The key's id; None where it stays closed."""
    from auditspec.sign.keys import is_encrypted, keyid, load_private, read_private

    if uri_scheme(signing.key) is not None:
        return None
    pem = _load(inquiry, ("signing", "key"), signing.key, read_private)
    if pem is None or is_encrypted(pem):
        return None
    key = _load(inquiry, ("signing", "key"), signing.key, load_private)
    return None if key is None else keyid(key.public_key())


def _check_certificate(inquiry: Inquiry, name: str, key: str | None) -> None:
    from auditspec.sign.certificates import public_key, read_chain
    from auditspec.sign.keys import keyid

    location: Location = ("signing", "certificate")
    chain = _load(inquiry, location, name, read_chain)
    if chain is None or key is None:
        return
    holder = keyid(public_key(chain[0]))
    if holder != key:
        message = f"the certificate is for the key {holder[:16]}…, the key is {key[:16]}…"
        inquiry.fault("AS091", message, location, "name the certificate of signing.key first")


def _load(inquiry: Inquiry, location: Location, name: str, load: Callable[..., T]) -> T | None:
    """What a file beside the spec holds; None, and a fault, where it cannot be read."""
    folder = inquiry.loaded.path.parent
    try:
        return load(folder / name)
    except AuditspecError as error:
        alike = None if (folder / name).exists() else similar(folder, name)
        hint = f"did you mean {alike!r}?" if alike else error.remedy
        message = error.message.replace(str(folder / name), name)
        inquiry.fault("AS091", message, location, hint)
        return None
