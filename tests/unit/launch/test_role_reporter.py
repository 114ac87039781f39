from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest

from distqat.launch import role_reporter as module
from distqat.launch.display import PlainDisplay
from distqat.launch.role_reporter import RoleReporter
from distqat.process import LastWords, RoleCommand, RoleEnded, RoleProcess

GIVEN_UP = "given up: starting it again cannot help"


class Scene:
    def __init__(self, folder: Path) -> None:
        self.out = io.StringIO()
        self.log = folder / "launcher.log"
        self.reporter = RoleReporter(PlainDisplay(self.out), self.log)

    def ended(self, name: str, sentence: str | None, consequence: str, code: int = 1) -> RoleEnded:
        command = RoleCommand(name, "m:main", log_path=Path(f"logs/{name.replace(' ', '_')}.log"))
        ended = RoleEnded(command, 7, code, consequence, LastWords(sentence, "fault") if sentence else None)
        self.reporter.ended(ended)
        return ended


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_a_restart_is_told_with_its_cause_once(scene: Scene) -> None:
    scene.ended("server 0", "no such key", "starting again in 0.2 s")
    scene.ended("server 0", "no such key", "starting again in 0.4 s")
    scene.ended("server 1", None, "starting again in 0.2 s", code=-9)
    assert scene.out.getvalue().splitlines() == [
        "server 0 (PID 7) ended with code 1: no such key; starting again in 0.2 s; see logs/server_0.log",
        "server 0 (PID 7) ended with code 1: the same error again; starting again in 0.4 s; "
        "see logs/server_0.log",
        "server 1 (PID 7) ended with SIGKILL: starting again in 0.2 s; see logs/server_1.log",
    ]
    assert all(line in scene.log.read_text() for line in scene.out.getvalue().splitlines())


async def test_what_ends_in_order_is_nothing_to_speak_of(scene: Scene) -> None:
    scene.ended("server 0", None, "finished", code=0)
    scene.ended("server 1", None, "stopped", code=1)
    assert scene.out.getvalue() == ""


async def test_only_a_second_start_is_told(scene: Scene) -> None:
    role = RoleProcess(RoleCommand("monitor", "m:main"), 8, lambda *_: None)
    scene.reporter.started(role)
    scene.reporter.started(role)
    assert scene.out.getvalue() == "monitor started again: PID 8\n"


async def test_the_launcher_ends_with_the_cause_which_nobody_has_told_yet(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.ended("server 0", "seed: the run has 7", GIVEN_UP)
    scene.ended("server 1", "the disk is full", GIVEN_UP)
    last = scene.ended("server 2", "seed: the run has 7", GIVEN_UP)
    assert scene.reporter.given_up is last
    failure = scene.reporter.failure(last)
    assert (str(failure), failure.log) == ("seed: the run has 7", Path("logs/server_2.log"))
    assert scene.out.getvalue() == ""
    errors = capsys.readouterr().err
    assert "the disk is full" in errors  # another cause is told before
    assert "seed" not in errors
    assert scene.log.read_text().count("seed") == 2


async def test_a_launcher_that_goes_on_tells_what_it_has_lost(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    scene.ended("server 0", "seed: the run has 7", GIVEN_UP)
    asyncio.get_running_loop().call_later(0.01, told.set)
    await asyncio.wait_for(told.wait(), 5)
    assert capsys.readouterr().err == (
        f"server 0 (PID 7) ended with code 1: seed: the run has 7; {GIVEN_UP}; see logs/server_0.log\n"
    )
    assert scene.reporter.given_up is None
