"""Main program of the audited code's processes: one that imports what the audit trusts, and forks.

Each fork gives up what it can, and only then takes the code, and answers. From standard input comes as JSON: what may be
read, the folder to run in, whether to give anything up, the audit's process id, and for each fork the descriptors of its
socket and of two arenas, and a scratch folder.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
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


def main() -> None:
    """Fork, and end as the first fork ends."""
    from auditspec.sealed.isolation import end_with

    facts = json.load(sys.stdin)
    end_with(facts["parent"])
    os.chdir(facts["folder"])
    gc.disable()  # nothing of this is garbage, now or in a fork
    for name in TRUSTED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    forks = []
    for number in range(len(facts["lines"])):
        forks.append(os.fork())
        if not forks[-1]:
            _serve(facts, number, os.getppid())
    for *descriptors, _ in facts["lines"]:
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


def _serve(facts: Mapping[str, Any], number: int, parent: int) -> None:
    """Give up what can be given up, and answer until the line is closed."""
    from auditspec.sealed.answers import Answers
    from auditspec.sealed.channel import BrokenError, Channel
    from auditspec.sealed.isolation import environment, give_up

    for other, (*descriptors, _) in enumerate(facts["lines"]):
        for descriptor in descriptors if other != number else ():
            os.close(descriptor)
    sock, mine, theirs, own = facts["lines"][number]
    if number:  # what it prints was printed before
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
    os.environ.update(environment(Path(own)))
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
