"""Ranks that share work: every job is made once, whoever dies, fails, or comes late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from auditspec.team import Job, Team

JOBS = [{"kind": "square", "of": n} for n in range(12)]


@pytest.fixture
def connect() -> Callable[[], Any]:
    """Another connection to one store."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def connected() -> TCPStore:
        return TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=20))

    return connected


def square(job: Job) -> Mapping[str, Any]:
    return {"square": job["of"] ** 2, "by": threading.current_thread().name}


def helper(
    connect: Callable[[], Any], rank: int, make: Callable[[Job], Mapping[str, Any]] = square
) -> threading.Thread:
    def work() -> None:
        team = Team(connect(), rank, 2)
        with team.present():
            if team.exchange() is not None:
                team.serve({"square": make})

    thread = threading.Thread(target=work, name=f"rank {rank}")
    thread.start()
    return thread


def test_every_job_is_made_once_and_by_several(connect: Callable[[], Any]) -> None:
    both = threading.Barrier(2, timeout=20)

    def meeting(job: Job) -> Mapping[str, Any]:
        if job["of"] < 2:
            both.wait()  # so that neither makes all of them
        return square(job)

    others = helper(connect, 1, meeting)
    team = Team(connect(), 0, 2)
    with team.present():
        team.open(Path("there"))
        for _ in range(2):  # numbers go on
            made = team.share(JOBS[:2], meeting)
            assert [m["square"] for m in made] == [0, 1]
            assert len({m["by"] for m in made}) == 2
        made = team.share(JOBS[2:], square)
    others.join(20)
    assert [m["square"] for m in made] == [n**2 for n in range(2, 12)]
    assert not others.is_alive()


def test_what_fails_elsewhere_is_made_here(connect: Callable[[], Any]) -> None:
    def failing(job: Job) -> Mapping[str, Any]:
        raise OSError("no space left")

    others = helper(connect, 1, failing)
    team = Team(connect(), 0, 2)
    with team.present():
        team.open(Path("there"))
        made = team.share(JOBS, square)
    others.join(20)
    assert [m["square"] for m in made] == [n**2 for n in range(12)]
    assert {m["by"] for m in made} == {threading.current_thread().name}


def test_what_fails_here_is_an_error_and_the_others_end(connect: Callable[[], Any]) -> None:
    others = helper(connect, 1)
    team = Team(connect(), 0, 2)

    def failing(job: Job) -> Mapping[str, Any]:
        raise ValueError("it diverges")

    with pytest.raises(ValueError, match="it diverges"), team.present():
        team.open(Path("there"))
        team.share(JOBS * 50, failing)
    others.join(20)
    assert not others.is_alive()


@pytest.mark.parametrize("said", [True, False])
def test_jobs_of_a_rank_that_is_gone_are_made_here(connect: Callable[[], Any], said: bool) -> None:
    """It died with a job that it had taken; whether it came to say so or not."""
    gone = Team(connect(), 1, 2)
    gone.store.add("claims", 1)
    if said:
        gone.store.set("claimed/0", "1")
        gone.store.add("alive/1", 1)
    team = Team(connect(), 0, 2, dead=0.5)
    with team.present():
        team.open(Path("there"))
        made = team.share(JOBS[:3], square)
    assert [m["square"] for m in made] == [0, 1, 4]


def test_nobody_waits_for_a_first_rank_that_is_gone(connect: Callable[[], Any]) -> None:
    first = Team(connect(), 0, 2)
    with first.present():
        pass
    first.store.delete_key("end")  # as if it had been killed
    team = Team(connect(), 1, 2, dead=0.5)
    assert team.exchange() is None


def test_alone_there_is_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Team.here() is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Team.here() is None


def test_what_ranks_of_before_left_is_none_of_theirs(connect: Callable[[], Any]) -> None:
    """A launcher that starts all ranks again keeps its store."""
    before = Team.joining(connect(), 0, 2)
    before.store.set("job/0", '{"kind": "square", "of": 100}')
    before.store.set("done/0", '{"square": -1, "by": "nobody"}')
    before.store.add("alive/0", 5)
    with pytest.raises(TimeoutError, match="rank 0 gave no sign"):
        Team.joining(connect(), 1, 2, within=1.5)
    first = Team.joining(connect(), 0, 2)
    joined: list[Team] = []
    late = threading.Thread(target=lambda: joined.append(Team.joining(connect(), 1, 2)))
    with first.present():
        late.start()
        late.join(20)
        first.open(Path("there"))
        assert joined[0].exchange() == Path("there").absolute()
        assert [m["square"] for m in first.share(JOBS[:1], square)] == [0]


def test_who_comes_when_all_is_done_has_nothing_to_do(connect: Callable[[], Any]) -> None:
    first = Team.joining(connect(), 0, 2)
    with first.present():
        first.open(Path("there"))
    assert Team.joining(connect(), 1, 2, within=5.0).exchange() is None
