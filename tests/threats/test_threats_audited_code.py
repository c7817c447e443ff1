"""S1: audited code that attacks the audit. Each attempt is made, from within the process where the code runs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_audit import edit_code

from auditspec import audit
from auditspec.artifacts.code import CodeBundle
from auditspec.errors import EstimationError, UsageError
from auditspec.sealed import isolation
from auditspec.sealed.isolation import MEASURES, Wanted, readable
from auditspec.sealed.process import Process
from auditspec.sealed.start import SealedCode, sealed_code

pytestmark = pytest.mark.threat

SAMPLE = Path(__file__).parents[1] / "sealed" / "sealed_sample.py"


@contextmanager
def started(
    bundle: CodeBundle, read: list[Path], folder: Path, wanted: Wanted = "best"
) -> Iterator[SealedCode]:
    process = Process(wanted, read, folder, lambda line: None)
    try:
        yield sealed_code(bundle, process, torch.device("cpu"))
    finally:
        process.end()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attacked")
    (folder / "sealed_sample.py").write_text(SAMPLE.read_text())
    (folder / "auditor.key").write_text("the key")
    (folder / "beside.txt").write_text("readable")
    (folder / ".hidden").write_text("hidden")
    for name in ("cache", "packet"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("stands")
    return folder


@pytest.fixture(scope="module")
def code(place: Path) -> Iterator[SealedCode]:
    bundle = CodeBundle.read(place / "sealed_sample.py", None)
    secrets = [place / name for name in ("auditor.key", "cache", "packet")]
    os.environ["AUDITOR_SECRET"] = "a secret of the auditor's"
    read = readable([], [place], secrets)
    with started(bundle, read, place) as sealed:
        if not {*MEASURES} <= {*sealed.client.measures}:
            pytest.skip("this kernel does not isolate a process")
        yield sealed
    del os.environ["AUDITOR_SECRET"]


def attempt(code: SealedCode, what: str, argument: object = None) -> str:
    outcome = code.load("sealed_sample:attempt")(what, None if argument is None else str(argument))
    assert isinstance(outcome, str)
    return outcome


@pytest.mark.parametrize(
    "what",
    [
        "read",
        "append",
        "remove",
        "rename",
        "link",
        "symlink",
        "thread",
        "truncate",
        "chmod",
        "utime",
        "write",
    ],
)
@pytest.mark.parametrize("file", ["auditor.key", "cache/file", "packet/file", ".hidden"])
def test_s1_no_secret_is_read_or_changed(
    code: SealedCode, place: Path, what: str, file: str
) -> None:
    before = (
        (place / file).read_bytes(),
        (place / file).stat().st_mtime,
        (place / file).stat().st_mode,
    )
    outcome = attempt(code, what, place / file)
    assert outcome in ("PermissionError", "OSError", "FileExistsError"), outcome
    now = (place / file).read_bytes(), (place / file).stat().st_mtime, (place / file).stat().st_mode
    assert now == before


@pytest.mark.parametrize(
    "path", ["~/.ssh", "~", "/root", "/etc/shadow", "/tmp", "/var/log", "/proc/1/environ"]
)
def test_s1_no_home_and_no_system_secret(code: SealedCode, path: str) -> None:
    full = str(Path(path).expanduser())
    assert attempt(code, "list" if Path(full).is_dir() else "read", full) != "done"


@pytest.mark.parametrize("what", ["write", "mkdir"])
@pytest.mark.parametrize("where", ["beside.txt", "new", "/tmp/new-file", "/dev/shm/new-file"])
def test_s1_no_file_is_written_outside(
    code: SealedCode, place: Path, what: str, where: str
) -> None:
    assert attempt(code, what, place / where) == "PermissionError"
    assert not (place / "new").exists()
    assert (place / "beside.txt").read_text() == "readable"


def test_s1_no_byte_is_sent(code: SealedCode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert attempt(code, "connect", server.getsockname()[1]) == "PermissionError"
    for what in ("listen", "pair"):
        assert attempt(code, what) == "PermissionError"
    assert attempt(code, "unix", "/run/any") == "PermissionError"
    for number in (
        41,
        53,
        425,
        321,
        101,
        272,
        165,
        250,
        317,
    ):  # socket, io_uring, bpf, ptrace, mounts, keys
        assert attempt(code, "call", number) == "PermissionError" or number == 317


def test_s1_no_process_is_started_or_reached(code: SealedCode) -> None:
    for what in ("run", "fork", "exec"):
        assert attempt(code, what) == "PermissionError"
    for what in ("kill", "stop", "trace", "environ"):
        assert attempt(code, what, os.getpid()) == "PermissionError"
    assert attempt(code, "kill", os.getppid()) == "PermissionError"


def test_s1_nothing_of_the_audit_is_in_its_memory(code: SealedCode, place: Path) -> None:
    assert attempt(code, "memory", "a secret of the auditor's") == "done"
    assert attempt(code, "inherited", str(place)) == "done"


def test_s1_it_reads_the_evidence_and_writes_its_scratch(code: SealedCode, place: Path) -> None:
    assert attempt(code, "read", place / "beside.txt") == "done"
    assert attempt(code, "scratch") == "done"


def test_s1_patches_stay_where_they_are_made(code: SealedCode) -> None:
    assert code.load("sealed_sample:patch_everything")(None) == "done"
    assert not torch.equal(torch.zeros(1), torch.ones(1))


def test_s1_it_ends_with_the_audit(place: Path) -> None:
    script = (
        "import os, sys, torch\nfrom pathlib import Path\n"
        "from auditspec.artifacts.code import CodeBundle\n"
        "from auditspec.sealed.process import Process\n"
        "from auditspec.sealed.start import sealed_code\n"
        "from auditspec.sealed.isolation import readable\n"
        "b = CodeBundle.read(Path(sys.argv[1]), None)\n"
        "p = Process('best', readable([], [], []), Path('/'), print)\n"
        "sealed_code(b, p, torch.device('cpu'))\n"
        "print(p.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(place / "sealed_sample.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    session = int(ran.stdout.split()[0])
    until = time.monotonic() + 10
    while living(session) and time.monotonic() < until:
        time.sleep(0.05)
    assert not living(session)


def living(session: int) -> list[str]:
    """Processes of a session that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own, *_ = stat.read_text().rpartition(")")[2].split()
            found += [stat.parent.name] if int(own) == session and state != "Z" else []
    return found


DEATHS = {
    "os._exit(3)": "ended itself",
    "os.kill(os.getpid(), 9)": "ended by signal 9",
    "ctypes.string_at(0)": "ended by signal 11",
    "os.closerange(3, 99)": "process",
}


@pytest.mark.parametrize(
    "line", [pytest.param(d, marks=[pytest.mark.slow] if n else []) for n, d in enumerate(DEATHS)]
)
def test_s1_a_process_that_dies_is_said(tmp_path: Path, line: str) -> None:
    (tmp_path / "dies.py").write_text(f"import ctypes, os\ndef go(x):\n    {line}\n")
    bundle = CodeBundle.read(tmp_path / "dies.py", None)
    with started(bundle, readable([], [tmp_path], []), tmp_path) as code:
        for _ in range(2):
            with pytest.raises(EstimationError, match=DEATHS[line]):
                code.load("dies:go")(1)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 150])
def test_s1_a_process_that_dies_ends_the_audit(audit_spec: Path, after: int) -> None:
    """Whoever takes that for a run that diverges, or a record that does not hold, does not have the last word."""
    old = "    return F.cross_entropy("
    new = f"    F.calls = getattr(F, 'calls', 0) + 1\n    F.calls <= {after} or os._exit(0)\n{old}"
    edit_code(audit_spec, "import numpy as np", "import os\nimport numpy as np")
    edit_code(audit_spec, old, new)
    with pytest.raises(EstimationError, match="ended itself"):
        audit(audit_spec, isolation="best")


def test_s1_required_refuses_a_machine_that_cannot(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditspec.sealed.client.MEASURES", ("files", "teleportation"))
    bundle = CodeBundle.read(place / "sealed_sample.py", None)
    with (
        pytest.raises(UsageError, match="does not isolate"),
        started(bundle, readable([], [place], []), place, "required"),
    ):
        pass


def test_s1_secrets_inside_what_is_readable_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/key", "a/b/open", "a/other"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b" / "key")
    allowed = isolation.readable([], [tmp_path], [tmp_path / "a" / "b" / "key"])
    mine = [str(p.relative_to(tmp_path)) for p in allowed if p.is_relative_to(tmp_path)]
    assert sorted(mine) == ["a/b/open", "a/other"]


FORGERY = """

# --- the attack -------------------------------------------------------------------------------------
def _attack():
    import gc, os, pathlib, socket
    for place in ({key!r}, {cache!r}):
        try:
            pathlib.Path(place).read_bytes()
            print("READ", place)
        except OSError:
            pass
    for name in ("auditspec.verdicts", "auditspec.conclusions", "auditspec.intervals", "auditspec.estimator.cache"):
        try:
            module = __import__(name, fromlist=["x"])
        except ImportError:
            continue
        for attribute, value in list(vars(module).items()):
            if callable(value) and not attribute.startswith("__"):
                try:
                    setattr(module, attribute, lambda *a, **k: None)
                except Exception:
                    pass
    for thing in gc.get_objects():
        if type(thing).__name__ in ("AuditResult", "Verdict", "Credentials"):
            print("FOUND", type(thing).__name__)
    for attempt in (os.fork, lambda: socket.create_connection(("127.0.0.1", 9), 1), lambda: open({out!r}, "w")):
        try:
            attempt()
            print("DID IT")
        except OSError:
            pass
_attack()
"""


@pytest.mark.slow
def test_s1_the_forged_run(tmp_path: Path) -> None:
    """Code that attacks from its first line changes no effect, no check, no verdict, and no finding."""
    from small_audit import make

    from auditspec import api
    from auditspec.sign import keys

    outcomes = []
    for attack in (False, True):
        folder = tmp_path / ("forged" if attack else "honest")
        folder.mkdir()
        spec = make(folder)
        keys.write_private(folder / "auditor.key", keys.generate("ecdsa-p256-sha256"))
        if attack:
            training = folder / "small_training.py"
            out = folder / "written"
            training.write_text(
                training.read_text()
                + FORGERY.format(
                    key=str(folder / "auditor.key"), cache=str(tmp_path / "cache"), out=str(out)
                )
            )
            subprocess.run(
                [sys.executable, "-m", "auditspec", "digest", "--lock", str(spec), "--update-all"],
                check=True,
                capture_output=True,
            )
        spec.write_text(spec.read_text() + "\nsigning:\n  key: auditor.key\n")
        result = api.audit(spec, out=folder / "packet", isolation="required")
        facts = result.model_dump(mode="json")
        outcomes.append({k: facts[k] for k in ("effects", "verdicts", "findings", "gate")})
        assert result.run.isolation is not None
        assert result.run.isolation.sealed
        assert not (folder / "written").exists()
    assert outcomes[0] == outcomes[1]


SCAN = """

def _scan():  # the expressions match no expression
    import ctypes, os, re, sys
    sought = [rb"needle-[a-z]*-[0-9a-f]{32}", rb"AwEHBG0wawIBAQQg[A-Za-z0-9+/]{40}"]
    found = set()
    for line in open("/proc/self/maps").read().splitlines():
        span, access, _, _, inode = line.split()[:5]
        if not access.startswith("r") or inode != "0" or "[v" in line:
            continue
        start, end = (int(text, 16) for text in span.split("-"))
        for at in range(start, end, 2**24):
            part = ctypes.string_at(at, min(2**24 + 99, end - at))
            found |= {hit for each in sought for hit in re.findall(each, part)}
    print("SCANNED", *sorted(text.decode() for text in found))
    print("FORKED", not sys.flags.isolated)
    open_ = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    print("OPEN", *{os.readlink(link).split(":")[0] for link in open_ if os.path.lexists(link)})
    print("VARIABLES", *sorted(os.environ))
    print("ARGUMENTS", *sys.argv)
if __name__ != "__main__":
    _scan()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [("-m", "auditspec"), ("-c", "from auditspec.cli.main import main; main()")],
    ids=["forked from the audit's", "a program of its own"],
)
def test_s1_nothing_that_the_audit_knows_is_in_the_memory_of_the_code(
    tmp_path: Path, command: tuple[str, str]
) -> None:
    """However its process began: no variable, no word of the spec, no key; what is passed on is found."""
    from small_audit import TRAINING, lock, make

    from auditspec.sign import keys

    spec = make(tmp_path, TRAINING + SCAN)
    secret, title, control = (
        f"needle-{name}-{os.urandom(16).hex()}" for name in ("secret", "title", "control")
    )
    spec.write_text(
        spec.read_text().replace("A small audit", title) + "\nsigning: {key: auditor.key}\n"
    )
    lock(spec)
    options = ("--no-cache", "-q", "--isolation", "required")
    keys.write_private(tmp_path / "auditor.key", keys.generate("ecdsa-p256-sha256"))
    ran = subprocess.run(
        [sys.executable, *command, "run", "audit.yaml", *options],
        cwd=tmp_path,
        env={**os.environ, "AUDITOR_SECRET": secret, "OMP_CONTROL": control},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    lines = [line.split() for line in ran.stderr.splitlines()]
    told = {words[1]: words[2:] for words in lines if words[:1] == ["|"]}
    assert told.get("SCANNED") == [control], ran.stderr
    assert told["FORKED"] == [str(command[0] == "-m")]
    assert {*told["OPEN"]} == {"socket", "pipe", "/memfd"}
    assert not {*told["VARIABLES"]} & {"AUDITOR_SECRET", "PYTHONPATH", "PWD"}
    assert told["ARGUMENTS"][0] == "-c"
    assert "audit.yaml" not in told["ARGUMENTS"]


LIES = {
    "by-its-calls": """
_calls = [0]
def objective(model, batch, _honest=objective):
    _calls[0] += 1
    return _honest(model, batch) * (1.0 if _calls[0] <= 24 else 0.25)
""",
    "in-its-gradients": """
class _Turned(torch.autograd.Function):
    calls = 0
    @staticmethod
    def forward(ctx, loss):
        _Turned.calls += 1
        return loss.clone()
    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * (1.0 if _Turned.calls <= 24 else 0.0)
def objective(model, batch, _honest=objective):
    return _Turned.apply(_honest(model, batch))
""",
    "by-its-outputs": """
_calls = [0]
def predict(model, batch, _honest=predict):
    _calls[0] += 1
    return _honest(model, batch) * (1.0 if _calls[0] <= 8 else -1.0)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_s14_code_that_lies_once_the_record_is_checked(tmp_path: Path, lie: str) -> None:
    """Its recorded steps land on the recorded states; a second process that is asked the same gives it away."""
    from small_audit import make

    from auditspec import api

    spec = make(tmp_path)
    training = tmp_path / "small_training.py"
    training.write_text(training.read_text() + LIES[lie])
    lock = [sys.executable, "-m", "auditspec", "digest", "--lock", str(spec), "--update-all"]
    subprocess.run(lock, check=True, capture_output=True)
    result = api.audit(spec, isolation="best")
    outcomes = {check.id: check.outcome for check in result.checks}
    assert outcomes["record-fidelity"] == "pass"
    assert outcomes["asked-again"] == "fail"
    assert {verdict.verdict for verdict in result.verdicts} == {"inconclusive"}
    assert not any(verdict.parties for verdict in result.verdicts)
    assert result.gate.exit_code == 3
