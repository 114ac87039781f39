"""A role waits for its client, and ends when there is nothing to wait for."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable

import pytest
from tests.fakes.memory_directory import MemoryDirectory, MemorySwarm
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from distqat.distributed.network import coordinator_link, other_runs
from distqat.distributed.network.coordinator_link import CoordinatorLink
from distqat.errors import ConfigError, RoleError, RunFinished
from distqat.process import waiting
from distqat.protocol.calls.slot_calls import AskStatus, StatusFigures
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.directory import FinishedWord
from distqat.swarm.tensor_frame import Message

BOUND_S = 10.0


class Scene:
    """A swarm with a directory in which a client may appear; `looks` for an end of the run are counted."""

    def __init__(self) -> None:
        self.network, self.records, self.looks = MemoryNetwork(), MemorySwarm(), 0

    def directory(self, peer: str) -> MemoryDirectory:
        return MemoryDirectory(self.records, peer, "run", ("front",))

    def server(self) -> CoordinatorLink:
        directory = self.directory("server")
        look = directory.finished

        async def finished() -> list[FinishedWord]:
            self.looks += 1
            return await look()

        directory.finished = finished  # type: ignore[method-assign]
        return CoordinatorLink(MemoryTransport(self.network, "server"), directory)

    async def client(self, name: str = "client") -> MemoryTransport:
        transport = MemoryTransport(self.network, name)

        async def answer(call: IncomingCall) -> Message:
            return Message({"heard": call.method})

        await transport.serve(answer, lambda peer, silent: None)
        await self.directory(name).announce_role("client", "")
        return transport


HEARD = StatusFigures({"heard": "status"})


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(coordinator_link, "RETRY_S", 0.0)
    return Scene()


async def turns(until: Callable[[], bool]) -> None:
    while not until():  # noqa: ASYNC110  turns of the event loop, not time
        await asyncio.sleep(0)


async def test_a_server_that_is_started_before_the_client_waits_for_it(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await scene.directory("client").announce_finished(
        time.time() - 60
    )  # the end of an older run of this name
    asked = asyncio.ensure_future(scene.server().insist(AskStatus()))
    await turns(lambda: "waiting for the client of this run: no client" in caplog.text)
    await scene.client()
    assert await asyncio.wait_for(asked, BOUND_S) == HEARD


async def test_it_says_again_that_it_waits(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(coordinator_link, "SAY_EVERY_S", 0.0)
    asked = asyncio.ensure_future(scene.server().wait())
    await asyncio.wait_for(turns(lambda: caplog.text.count("waiting for the client") >= 3), BOUND_S)
    asked.cancel()


async def test_it_ends_when_the_run_was_over_before_it_was_connected(scene: Scene) -> None:
    server = scene.server()
    asked = asyncio.ensure_future(server.insist(AskStatus()))
    await asyncio.sleep(0)
    await scene.directory("client").announce_finished(time.time())
    with pytest.raises(RunFinished):
        await asyncio.wait_for(asked, BOUND_S)


async def test_who_knew_a_client_believes_no_other_peer(scene: Scene) -> None:
    server = scene.server()
    client = await scene.client()
    assert await server.ask(AskStatus()) == HEARD
    await client.close()
    await scene.directory("stranger").announce_finished(time.time())
    asked = asyncio.ensure_future(server.wait())
    await turns(lambda: scene.looks >= 3)
    assert not asked.done()
    await scene.directory("client").announce_finished(time.time())
    with pytest.raises(RunFinished):
        await asyncio.wait_for(asked, BOUND_S)


async def test_a_role_that_is_alone_and_was_never_known_ends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_link, "ALONE_S", 0.0)
    scene.records.cut_off.add("server")
    with pytest.raises(RoleError, match=r"nobody of this run could be reached for 0 s .*connected to nobody"):
        await asyncio.wait_for(scene.server().wait(), BOUND_S)


async def announce(scene: Scene, run: str, role: str = "monitor") -> None:
    await MemoryDirectory(scene.records, f"{role} of {run}", run, ()).announce_role(role, "")


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (["mlp"], "there is no run 'run' in this swarm, which has 'mlp'; give --experiment-prefix mlp, or"),
        (["mlp", "run1"], "which has 'mlp', 'run1'; give --experiment-prefix run1, or"),
        (["mlp", "gpt"], "which has 'gpt', 'mlp'; give --experiment-prefix, or"),
    ],
)
async def test_a_name_that_no_run_has_ends_a_role_and_names_those_that_are_there(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, runs: list[str], said: str
) -> None:
    monkeypatch.setattr(other_runs, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(other_runs, "OTHERS_S", 0.05)
    for run in runs:
        await announce(scene, run)
    with pytest.raises(ConfigError, match=said):
        await asyncio.wait_for(scene.server().insist(AskStatus()), BOUND_S)
    assert scene.looks > 1, "not at the first look: a run that is started again is not there for a moment"


@pytest.mark.parametrize("ours", [True, False])
async def test_a_run_whose_client_is_away_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """Its monitor says that it is there; and where nobody is, it may be that nobody is there yet."""
    monkeypatch.setattr(other_runs, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(other_runs, "OTHERS_S", 0.0)
    for run in ["run", "other"] if ours else []:
        await announce(scene, run)
    asked = asyncio.ensure_future(scene.server().insist(AskStatus()))
    await turns(lambda: scene.looks >= 3)
    assert not asked.done()
    await scene.client()
    assert await asyncio.wait_for(asked, BOUND_S) == HEARD


async def test_the_terminal_is_told_what_it_waits_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules[waiting.__module__], "SAY_AFTER_S", 0.01)
    await announce(scene, "run")
    asked = asyncio.ensure_future(scene.server().wait())
    said = "waiting for the client of run 'run' (no client of this run is in the directory; start one), since"
    await asyncio.wait_for(turns(lambda: said in caplog.text), BOUND_S)
    asked.cancel()


async def test_who_holds_something_of_the_run_waits_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_link, "ALONE_S", 0.0)
    server = scene.server()
    client = await scene.client()
    await server.ask(AskStatus())
    await client.close()
    scene.records.cut_off.add("server")
    asked = asyncio.ensure_future(server.wait())
    await turns(lambda: scene.looks >= 3)
    assert not asked.done()
    asked.cancel()
