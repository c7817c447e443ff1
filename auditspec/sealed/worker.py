"""Main program of the audited code's process: gives up what it can, imports the code, and answers.

Arguments: descriptors of the socket and of the two arenas, and the audit's process id; from its standard input as JSON what
may be read, the scratch folder, where it runs, and whether to give anything up at all. Nothing is imported before that but what Python begins with.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditspec.sealed.answers import Answers


def main(arguments: list[str]) -> None:
    """Answer until the line is closed."""
    from auditspec.sealed.isolation import give_up

    sock, mine, theirs, parent = map(int, arguments[:4])
    facts = json.load(sys.stdin)
    scratch = Path(facts["scratch"])
    os.chdir(facts["folder"])
    measures = give_up(map(Path, facts["read"]), scratch, parent) if facts["isolate"] else ()

    from auditspec.sealed.answers import Answers
    from auditspec.sealed.channel import BrokenError, Channel

    channel = Channel(sock, mine, theirs)
    answers = Answers()
    channel.send({"measures": list(measures)})
    with contextlib.suppress(BrokenError):
        while True:
            _answer(channel, answers)
    os._exit(0)


def _answer(channel: Any, answers: Answers) -> None:
    message, tensors, blocks = channel.receive()
    channel.send(*answers.answer(message, [tensor.clone() for tensor in tensors], blocks))


if __name__ == "__main__":
    main(sys.argv[1:])
