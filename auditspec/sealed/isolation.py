"""What the audited code's process gives up before it takes the code, and how much of that the kernel grants.

Three things are wanted: `files` (it reads the evidence, what stands beside the spec, and what is installed, and
writes its scratch folder only), `network` (it opens no connection), and `processes` (it starts none, and reaches no
other). A namespace without a network comes on top, where the kernel gives one to whoever asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from auditspec.sealed import landlock, seccomp

Wanted = Literal["required", "best", "none"]
MEASURES = ("files", "network", "processes")

_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/opt", "/nix/store", "/sys",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/timezone",
    "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/mime.types", "/etc/os-release",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/version",
    "/proc/sys/vm", "/proc/sys/kernel/osrelease", "/proc/driver",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONHASHSEED")
_PASSED_ON_ALL = (
    "OMP_",
    "MKL_",
    "KMP_",
    "OPENBLAS_",
    "CUDA_",
    "CUBLAS_",
    "NVIDIA_",
    "ATEN_",
    "TORCH_",
    "GOMP_",
)
_NEW_USER, _NEW_NET, _NEW_IPC, _NEW_UTS = 0x10000000, 0x40000000, 0x08000000, 0x04000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


def environment(scratch: Path) -> dict[str, str]:
    """The variables that the process gets: those that libraries compute by, and its scratch folder as home."""
    own = {name: str(scratch) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR")}
    return passed_on() | own | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def passed_on() -> dict[str, str]:
    """The variables of this process that libraries compute by."""
    return {n: v for n, v in os.environ.items() if n in _PASSED_ON or n.startswith(_PASSED_ON_ALL)}


def readable(
    evidence: Iterable[Path], beside: Iterable[Path], secrets: Sequence[Path]
) -> list[Path]:
    """Files and folders that the process may read.

    Args:
        evidence: artifacts, whole.
        beside: folders of the spec and of the code: what stands in them may be read, but hidden files and folders.
        secrets: what must not be read, wherever it lies: keys, the cache, earlier packets.
    """
    hidden = [path.absolute() for path in secrets]
    installed = [Path(p).absolute() for p in (*_installed(), *sys.path) if p]
    paths = [Path(p) for p in (*_SYSTEM, *_DEVICES)]
    for path in (*evidence, *installed):
        paths += _without(path.absolute(), hidden)
    for folder in beside:
        for entry in _entries(folder.absolute()):
            paths += _without(entry, hidden)
    return list(dict.fromkeys(paths))


def _without(path: Path, hidden: Sequence[Path]) -> Iterator[Path]:
    """A path, or where something hidden lies below it, all that lies beside that."""
    real = path.resolve()
    below = [h for h in hidden if h.is_relative_to(path) or h.resolve().is_relative_to(real)]
    if any(h == path or h.resolve() == real for h in below):
        return
    if not below:
        yield path
        return
    for entry in _entries(path):
        yield from _without(entry, hidden)


def _entries(folder: Path) -> list[Path]:
    try:
        return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError:
        return []


def _installed() -> list[str]:
    folders = [
        *sysconfig.get_paths().values(),
        *site.getsitepackages(),
        sys.prefix,
        sys.base_prefix,
    ]
    return [*folders, sys.exec_prefix, str(Path(__file__).parents[1])]


def end_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends, and keep others out of its memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def give_up(read: Iterable[Path], scratch: Path, parent: int) -> tuple[str, ...]:
    """Give up what can be given up; called in the process itself, while it has one thread only.

    Args:
        read: what may be read, by `readable`.
        scratch: the one folder that may be changed.
        parent: process id of the process with which this one ends.

    Returns:
        What is in force: some of `MEASURES`, and `namespaces`.
    """
    end_with(parent)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # what follows is written to files in /proc/self
    # Landlock restricts one thread, and what it starts.
    alone = len([*Path("/proc/self/task").iterdir()]) == 1
    with contextlib.suppress(OSError):  # the first to end where memory is short
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit()
    measures = ["namespaces"] if _unshare(libc) else []
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    devices = [*Path("/dev").glob("nvidia*"), *(Path(p) for p in _DEVICES)]
    files = landlock.restrict(read, [scratch, *devices])
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if files and alone:
        measures.append("files")
    if seccomp.restrict():
        measures += ["network", "processes"]
    elif measures[:1] == ["namespaces"]:
        measures.append("network")
    return tuple(measures)


def _unshare(libc: ctypes.CDLL) -> bool:
    """Leave the network, as the same user in a namespace of users of its own."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_NET | _NEW_IPC | _NEW_UTS) != 0:
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError:
            return True  # nobody in there: it can do less
    return True


def _limit() -> None:
    """No core dumps; no more memory than the machine has; no file beyond what a scratch file may need."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, 2**40),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))
