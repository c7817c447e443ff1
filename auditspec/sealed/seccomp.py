"""System calls that the audited code's process does without: a filter of the Linux kernel (seccomp(2), bpf).

What is left out starts programs or processes, speaks to others, opens connections, changes who may use a file,
or changes the machine. Threads are left in: tensors are computed by several.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_CLONE_THREAD = 0x10000
_SIGNALS = {"x86_64": (62, 234, 129, 297), "aarch64": (129, 131, 138, 240)}
"""kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo: of this process only."""
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_PRCTL = {"x86_64": 157, "aarch64": 167}
_PR_SET_PDEATHSIG = 1
_REFUSED = {
    "x86_64": (
        # sockets
        41, 53, 42, 49, 50, 43, 288,
        # fork, vfork, execve, execveat, tkill
        57, 58, 59, 322, 200,
        # ptrace, process_vm_*, process_madvise, pidfd_*
        101, 310, 311, 440, 434, 438, 424,
        # namespaces, mounts, roots
        272, 308, 165, 166, 155, 161, 429, 428, 430, 431, 432, 433, 442,
        # modes, owners, times, attributes of files
        90, 91, 268, 452, 92, 93, 94, 260, 188, 189, 190, 197, 198, 199, 132, 235, 261, 280,
        # keys, bpf, perf, userfaultfd, io_uring, handles, shared memory and queues of System V
        248, 249, 250, 321, 298, 323, 425, 426, 427, 303, 304, 29, 30, 31, 64, 68, 240,
        # modules, kexec, reboot, swap, clock, names, accounts, logs, ports
        175, 313, 176, 246, 320, 169, 167, 168, 164, 227, 170, 171, 163, 179, 103, 172, 173, 154, 135,
    ),
    "aarch64": (
        198, 199, 203, 200, 201, 202, 242,
        221, 281, 130,
        117, 270, 271, 440, 434, 438, 424,
        97, 268, 40, 39, 41, 51, 429, 428, 430, 431, 432, 433, 442,
        52, 53, 452, 54, 55, 5, 6, 7, 14, 15, 16, 88,
        217, 218, 219, 280, 241, 282, 425, 426, 427, 264, 265, 194, 195, 196, 190, 186, 180,
        105, 273, 106, 104, 294, 142, 224, 225, 170, 112, 161, 162, 89, 60, 116, 92,
    ),
}  # fmt: skip

_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENT = 0, 4, 16
_SET_MODE_FILTER = 1


def _instruction(code: int, value: int, on_true: int = 0, on_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, on_true, on_false, value & 0xFFFFFFFF)


def _program(machine: str, pid: int) -> bytes:
    """The filter, as instructions of classic BPF."""

    def refuse(error: int = errno.EPERM) -> bytes:
        return _instruction(_RETURN, _ERRNO | error)

    program = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":  # the numbers of x32 are others
        program += [_instruction(_JUMP_AT_LEAST, 0x40000000, 0, 1), refuse()]
    for number in _REFUSED[machine]:
        program += [_instruction(_JUMP_EQUAL, number, 0, 1), refuse()]
    program += [_instruction(_JUMP_EQUAL, _CLONE3, 0, 1), refuse(errno.ENOSYS)]
    program += [
        _instruction(_JUMP_EQUAL, _CLONE[machine], 0, 4),
        _instruction(_LOAD, _ARGUMENT),
        _instruction(_JUMP_SET, _CLONE_THREAD, 1, 0),
        refuse(),
        _instruction(_RETURN, _ALLOW),
    ]
    own = [(number, (pid,)) for number in _SIGNALS[machine]]
    for number, allowed in [*own, (_PRLIMIT[machine], (0, pid))]:
        program += [_instruction(_JUMP_EQUAL, number, 0, len(allowed) + 3)]
        program += [_instruction(_LOAD, _ARGUMENT)]
        for place, value in enumerate(allowed):
            program += [_instruction(_JUMP_EQUAL, value, len(allowed) - place, 0)]
        program += [refuse(), _instruction(_RETURN, _ALLOW)]
    program += [
        _instruction(_JUMP_EQUAL, _PRCTL[machine], 0, 4),
        _instruction(_LOAD, _ARGUMENT),
        _instruction(_JUMP_EQUAL, _PR_SET_PDEATHSIG, 0, 1),
        refuse(),
        _instruction(_RETURN, _ALLOW),
        _instruction(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def restrict() -> bool:
    """Give up the system calls, for this process and all its threads; False where the kernel has no such filter.

    `no_new_privs` must be set.
    """
    machine = platform.machine()
    if machine not in _REFUSED:
        return False
    program = _program(machine, os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    pointer = ctypes.create_string_buffer(described, len(described))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_SECCOMP[machine], _SET_MODE_FILTER, 0, pointer) == 0)
