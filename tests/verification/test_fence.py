"""The process behind the fence: what it is asked, what it may answer, and what its end means."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_packet import packet_files, packet_result

from auditspec.artifacts import confined
from auditspec.errors import AuditspecError, SignatureError, UsageError
from auditspec.report.exports import Source
from auditspec.results import Message
from auditspec.sign.disclosure import Disclosure
from auditspec.sign.statement import Statement
from auditspec.verification import fence
from auditspec.verification.content import Content
from auditspec.verification.examination import examine
from auditspec.verification.expectation import Expectation
from auditspec.verification.fence import examine_fenced
from auditspec.verification.steps import CONTENT, Protocol


def content(**files: bytes) -> Content:
    given = packet_files(packet_result(seed=1))
    disclosure = Disclosure.fresh(given)
    statement = Statement.of(packet_result(seed=1), given, disclosure)
    now = dt.datetime.now(dt.UTC)
    whole = given | {name.replace("_", "."): data for name, data in files.items()}
    return Content(whole, statement, disclosure, (), frozenset(), None, now, Expectation(), None)


def test_it_says_what_this_process_would() -> None:
    here, there = Protocol(), Protocol()
    examine(content(), here)
    examine_fenced(content(), there)
    assert here.steps == there.steps
    assert tuple(step.name for step in here.steps) == CONTENT


def test_a_failure_keeps_its_step_and_remedy() -> None:
    protocol = Protocol()
    with pytest.raises(SignatureError, match="not strict JSON") as caught:
        examine_fenced(content(results_json=b"["), protocol)
    assert caught.value.step == "results-consistent"
    assert [step.outcome for step in protocol.steps] == ["fail"]


def test_results_that_no_words_can_be_made_of_are_the_packets_fault() -> None:
    """A limitation whose sentence lacks a value: it comes to light where the report is drawn."""
    good = packet_result(seed=1)
    bare = good.limitations[0].model_copy(update={"message": Message(code="check-line-bare")})
    result = good.model_copy(update={"limitations": (bare,)})
    given = packet_files(good) | {"results.json": Source(result).data}
    disclosure = Disclosure.fresh(given)
    statement = Statement.of(result, given, disclosure)
    changed = replace(content(), files=given, statement=statement, disclosure=disclosure)
    with pytest.raises(
        SignatureError, match="'check-line-bare' cannot be put into words"
    ) as caught:
        examine_fenced(changed, Protocol())
    assert caught.value.step == "rebuild"


def answering(text: bytes, error: str = "") -> Callable[..., None]:
    """A process that writes this, and ends so."""

    def run(module: str, arguments: tuple[int, int], *_: Any) -> None:
        Path(f"/dev/fd/{arguments[1]}").write_bytes(text)
        if error:
            raise confined.StoppedError(error)

    return run


GOOD = b'{"step":"results-consistent","outcome":"pass","detail":"","remedy":""}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "results-consistent: it was stopped"),
        (GOOD, "withheld: it was stopped"),
        (GOOD + GOOD, "withheld: .* gave no answer"),
        (b"\0" * 100, "results-consistent: .* gave no answer"),
        (GOOD.replace(b"pass", b"good"), "results-consistent: .* gave no answer"),
        (GOOD.replace(b'detail":"', b'detail":"' + b"x" * 2000), "gave no answer"),
        (GOOD + b'{"step":"withheld","outcome":"fail","detail":"no"}\n', "withheld: no"),
    ],
)
def test_an_answer_is_read_strictly(
    monkeypatch: pytest.MonkeyPatch, text: bytes, said: str
) -> None:
    monkeypatch.setattr(confined, "run", answering(text, "it was stopped"))
    with pytest.raises(SignatureError, match=said):
        examine_fenced(content(), Protocol())


def test_a_packet_that_is_too_long_to_be_drawn_is_not_called_false(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = b"".join(GOOD.replace(b"results-consistent", s.encode()) for s in CONTENT[:-1])
    monkeypatch.setattr(confined, "run", answering(lines, "it was stopped"))
    protocol = Protocol()
    examine_fenced(content(), protocol, 3)
    last = protocol.steps[-1]
    assert (last.name, last.outcome) == ("rebuild", "weaker")
    assert last.detail == f"nothing: it was stopped ({fence._Bounds.of(content(), 3).words})"
    monkeypatch.setattr(confined, "run", answering(lines))
    with pytest.raises(SignatureError, match=r"rebuild: .* ended early"):
        examine_fenced(content(), Protocol())


ENDLESS = """
_main = main
def main(*arguments):
    global SECONDS
    from auditspec.verification import examination
    examination.rebuild = lambda *_: {what}
    SECONDS = 2
    _main(*arguments)
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("[0 for _ in iter(int, 1) if _]", "took more processor time than it may"),
        ("[bytearray(2**20) for _ in iter(int, 1)]", "takes more memory than it may"),
    ],
)
def test_its_limits_hold_while_it_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, said: str
) -> None:
    """The process imports the module by its name: here one of another name, whose drawing does not end."""
    code = Path(fence.__file__).read_text()
    (tmp_path / "endless_fence.py").write_text(code + ENDLESS.format(what=what))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fence, "__name__", "endless_fence")
    protocol = Protocol()
    examine_fenced(content(), protocol)
    last = protocol.steps[-1]
    assert (last.name, last.outcome) == ("rebuild", "weaker") and said in last.detail


def test_drawing_has_more_the_longer_the_results() -> None:
    def drawn(size: int, times: int = 1) -> tuple[int, int, tuple[int, int]]:
        files = {**content().files, "results.json": b"x" * size}
        bounds = fence._Bounds.of(replace(content(), files=files), times)
        return bounds.memory >> 20, bounds.seconds, (bounds.more[0] >> 20, bounds.more[1])

    assert drawn(0) == (512, 10, (0, 0))
    assert drawn(256_000) == (512, 10, (1000, 52))
    assert drawn(256_000, 2) == (1024, 20, (2000, 103))
    assert drawn(10**9) == drawn(500_000) == (512, 10, (1953, 100))


def test_what_was_set_aside_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(
        "import resource\nfrom auditspec.artifacts import confined\n"
        "def main():\n"
        "    confined.limit(2**30, 5, 1000, (2**29, 7))\n"
        "    kinds = resource.RLIMIT_AS, resource.RLIMIT_CPU\n"
        "    a = [resource.getrlimit(k)[0] for k in kinds]\n"
        "    confined.widen()\n"
        "    b = [resource.getrlimit(k)[0] for k in kinds]\n"
        "    confined.refuse(f'{b[0] - a[0]} {b[1] - a[1]}')\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(confined.StoppedError, match=f"^{2**29} 7$"):
            confined.run("asks", (), (), 60)


def test_a_plug_in_is_at_fault_and_not_the_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    line = b'{"step":"results-consistent","outcome":"unusable","detail":"plug-in x failed"}\n'
    monkeypatch.setattr(confined, "run", answering(line))
    with pytest.raises(UsageError, match="plug-in x failed"):
        examine_fenced(content(), Protocol())


def test_its_environment_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    own = fence._environment()
    assert "HOME" not in own and (own["LC_ALL"], own["TZ"]) == ("C.UTF-8", "UTC")


def test_an_error_quotes_no_more_than_it_must(tmp_path: Path) -> None:
    error = AuditspecError("key " + "x" * 10_000_000 + " stands twice\nsecond line", "r" * 10_000)
    assert len(str(error)) < 2100
    assert error.message.endswith(" stands twice\nsecond line")
