from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator

import pytest

from distqat.process import launcher_notices, told_wait, waiting
from distqat.process.launcher_notices import adopt_pipe
from distqat.process.role_command import READY_FD


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    reading, writing = os.pipe()
    monkeypatch.setattr(
        launcher_notices, "_pipe", launcher_notices._Pipe()
    )  # it is closed again, and must not be used later
    monkeypatch.setenv(READY_FD, str(writing))
    adopt_pipe()
    yield reading
    os.close(reading)
    os.close(writing)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[waiting.__module__]  # the package has a function of that name
    monkeypatch.setattr(module, "SAY_AFTER_S", 0.02)


async def read(pipe: int) -> list[dict[str, object]]:
    data = await asyncio.to_thread(os.read, pipe, 1 << 16)
    return [json.loads(line) for line in data.splitlines()]


async def test_a_long_wait_is_told_and_so_is_its_end(pipe: int) -> None:
    with waiting("a slot of run 'mlp'"):
        assert told_wait() is None
        said = await read(pipe)
        while len(said) < 2:
            said += await read(pipe)
        assert said[0] == {"event": "notice", "text": "waiting for a slot of run 'mlp', since 0 s"}
        assert (said[1]["event"], said[1]["text"]) == ("wait", "a slot of run 'mlp'")
        wait = told_wait()
        assert wait is not None
        assert wait.since == said[1]["since"]
    assert told_wait() is None
    assert await read(pipe) == [{"event": "wait", "text": "", "since": 0.0}]


async def test_a_short_wait_says_nothing(pipe: int) -> None:
    with waiting("something quick"):
        pass
    os.set_blocking(pipe, False)
    with pytest.raises(BlockingIOError):
        os.read(pipe, 1)


async def test_of_two_waits_the_inner_one_is_told_and_then_the_outer(pipe: int) -> None:
    with waiting("the client"):
        with waiting("a donor"):
            said: list[dict[str, object]] = []
            while [message["text"] for message in said if message["event"] == "wait"][-1:] != ["a donor"]:
                said += await read(pipe)
        said = await read(pipe)
        assert said[-1]["text"] == "the client"
