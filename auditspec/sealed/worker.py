"""Main program of the audited code's processes: one that imports what the audit trusts, and forks.

Each fork gives up what it can, and only then takes the code, and answers. Standard input is a socket: from it come for each
fork descriptors of its socket and of two arenas, and as JSON what may be read, the folder to run in, whether to give anything up,
the audit's process id, and for each fork a scratch folder.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRUSTED = (
    "auditspec.sealed.answers",
    "auditspec.sealed.channel",
    "auditspec.recorder.recorder",
    "pandas",
    "pyarrow.parquet",
)
"""Imported before the forks, and so once for all: what nearly every training code imports, and what reads files of its
own as it is imported."""
MOST_DESCRIPTORS = 16
"""More than two lines have."""


def main() -> None:
    """Fork, and end as the first fork ends."""
    from auditspec.sealed.isolation import end_with

    descriptors, facts = _told()
    end_with(facts["parent"])
    os.chdir(facts["folder"])
    import_trusted()
    forks = []
    for number in range(len(facts["scratch"])):
        forks.append(os.fork())
        if not forks[-1]:
            _serve(facts, descriptors, number, os.getppid())
    for descriptor in descriptors:
        os.close(descriptor)
    _, status = os.waitpid(forks[0], 0)
    for fork in forks[1:]:  # the audit is over, or the first one ended it
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # of two signals nobody changes what they do
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def import_trusted() -> None:
    """Import what the forks share."""
    gc.disable()  # nothing of this is garbage, now or in a fork
    for name in TRUSTED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()


def _told() -> tuple[list[int], dict[str, Any]]:
    """Descriptors and facts from the audit; ends where that did."""
    line = socket.socket(fileno=0)
    _, descriptors, _, _ = socket.recv_fds(line, 1, MOST_DESCRIPTORS)
    with line.makefile("rb") as file:
        text = file.read()
    line.detach()
    if not text:
        os._exit(1)
    return descriptors, json.loads(text)


def _serve(facts: Mapping[str, Any], descriptors: list[int], number: int, parent: int) -> None:
    """Give up what can be given up, and answer until the line is closed."""
    from auditspec.sealed.answers import Answers
    from auditspec.sealed.channel import BrokenError, Channel
    from auditspec.sealed.isolation import environment, give_up

    own = facts["scratch"][number]
    sock, mine, theirs = line = descriptors[3 * number : 3 * number + 3]
    for descriptor in {*descriptors} - {*line}:
        os.close(descriptor)
    if number:  # what it prints was printed before
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
    variables = environment(Path(own))
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None
    read = map(Path, facts["read"])
    measures = give_up(read, Path(own), parent) if facts["isolate"] else ()
    channel = Channel(sock, mine, theirs)
    answers = Answers()
    channel.send({"measures": list(measures)})
    with contextlib.suppress(BrokenError):
        while True:
            message, tensors, blocks = channel.receive()
            channel.send(*answers.answer(message, [tensor.clone() for tensor in tensors], blocks))
    os._exit(0)
