"""A signed packet with authorities, timestamps, and a log around it, and how an attacker changes copies.

Whoever reseals has the auditor's key: the attacks that need it show that later steps hold too.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pki
from sample_packet import write_certified

from auditspec.errors import SignatureError
from auditspec.sign.certificates import Authorities
from auditspec.sign.credentials import Credentials
from auditspec.sign.disclosure import FILE as DISCLOSURE
from auditspec.sign.disclosure import Disclosure, root_of, salted
from auditspec.sign.dsse import Envelope
from auditspec.sign.packet import SIDECARS
from auditspec.sign.statement import PAYLOAD_TYPE, FileDigest, Statement, Subject
from auditspec.sign.timestamps import TimestampAuthority
from auditspec.verification.steps import STEPS
from auditspec.verification.trust import Identity, Trust
from auditspec.verification.verifier import Verification, VerificationInputs, verify, verify_all

ROOT, TSA_ROOT = pki.root(), pki.root("Example TSA Root")
TSA = pki.timestamping(TSA_ROOT)
AUDITOR = ROOT.issue("Lead auditor")
OWNER = ROOT.issue("Model owner")
AUTHORITIES = Authorities((ROOT.der,), (ROOT.crl(),))
TRUST = Trust(
    (),
    {"auditor": 1},
    authorities=AUTHORITIES,
    identities=(
        Identity("Lead auditor", "auditor", "CN=Lead auditor"),
        Identity("Model owner", "owner", "CN=Model owner"),
    ),
    timestamps=Authorities((TSA_ROOT.der,), (TSA_ROOT.crl(),)),
)


@dataclass(frozen=True)
class World:
    """The good packet, which nobody changes, and the address of the timestamp authority."""

    packet: Path
    url: str

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.packet, folder / "packet"))

    def credentials(self, holder: pki.Holder = AUDITOR) -> Credentials:
        return Credentials(holder.signer, holder.chain, TimestampAuthority(self.url), "B-T")

    def write(self, folder: Path) -> Path:
        return write_certified(folder, self.credentials())


def envelope_of(packet: Path) -> Envelope:
    return Envelope.decode((packet / "packet.dsse.json").read_bytes())


def put(packet: Path, envelope: Envelope) -> None:
    (packet / "packet.dsse.json").write_bytes(envelope.encode())


def sign_again(
    packet: Path, payload: bytes, holder: pki.Holder = AUDITOR, kind: str = PAYLOAD_TYPE
) -> None:
    put(packet, Envelope(kind, payload).signed_by(holder.signer, [holder.der]))


def reseal(packet: Path, **changes: object) -> None:
    """Sign the files as they now are, with the auditor's key; `changes` alter the predicate."""
    statement = Statement.decode(envelope_of(packet).payload)
    files = {p.name: p.read_bytes() for p in sorted(packet.iterdir()) if p.name not in SIDECARS}
    disclosure = Disclosure.fresh(files)
    root = statement.predicate.results
    with contextlib.suppress(ValueError):  # where results.json is no JSON, as a test wants it
        root = root_of(json.loads(files["results.json"]), disclosure)
    predicate = statement.predicate.model_copy(update={"results": root} | changes)
    subject = [
        Subject(name=n, digest=FileDigest(salted_sha256=salted(disclosure.files[n], data)))
        for n, data in files.items()
    ]
    sealed = statement.model_copy(update={"subject": subject, "predicate": predicate})
    sign_again(packet, sealed.encode())
    (packet / DISCLOSURE).write_bytes(disclosure.encode())


def edit(packet: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    data = (packet / name).read_bytes()
    changed = change(data)
    assert changed != data
    (packet / name).write_bytes(changed)


def fails(
    packet: Path,
    step: str,
    trust: Trust | None = TRUST,
    against: VerificationInputs | None = None,
    said: str = "",
) -> SignatureError:
    """Verifying must fail at this step, with exit code 6, and run no step after it."""
    verification = verify_all(packet, trust, against)
    error = verification.error
    assert error is not None and (error.step, error.exit_code) == (step, 6), error
    outcomes = [s.outcome for s in verification.steps]
    assert outcomes[STEPS.index(step)] == "fail"
    assert set(outcomes[STEPS.index(step) + 1 :]) <= {"not-run"}
    assert said in error.message
    return error


def holds(
    packet: Path, trust: Trust = TRUST, against: VerificationInputs | None = None
) -> Verification:
    return verify(packet, trust, against)


def trusting_list(crls: Sequence[bytes], **changes: object) -> Trust:
    """The usual policy with other revocation lists."""
    return replace(TRUST, authorities=replace(AUTHORITIES, crls=tuple(crls)), **changes)
