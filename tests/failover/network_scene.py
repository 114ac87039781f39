"""A whole swarm in one process, over TCP through a bad network: client, servers and trainers are real.

Only what lies below is replaced: relays stand where libp2p would be, a directory in memory where the DHT is.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from tests.failover.memory_scene import batches
from tests.failover.relay import BadNetwork
from tests.fakes.memory_directory import MemoryDirectory, MemorySwarm
from typing_extensions import Self

from distqat.config import Config
from distqat.data.serving.batch_client import LeasedBatch
from distqat.distributed import server as server_module
from distqat.distributed.client import Client
from distqat.distributed.server import Server
from distqat.distributed.serving.held_slot import HeldSlot
from distqat.distributed.trainer import Trainer
from distqat.protocol.hop import PeerAddress
from distqat.swarm.directory import keep_announced
from distqat.swarm.handshake import Admission
from distqat.swarm.peer_link import gone
from distqat.swarm.transport import OnStream, StreamTransport
from distqat.tasks.base import Batch
from distqat.topology.expert import ExpertId

T = TypeVar("T")
CLIENT = "client"
START_S = 60.0


class RelayStreams:
    """TCP through the relays of a BadNetwork, between peers that it knows by name."""

    def __init__(self, network: BadNetwork, peer: str) -> None:
        self._network, self._peer = network, peer
        self._server: asyncio.AbstractServer | None = None

    def reaches(self, to: PeerAddress) -> bool:
        return self._network.knows(to.peer)

    async def listen(self, on_stream: OnStream) -> None:
        self._server = await asyncio.start_server(lambda r, w: on_stream(None, r, w), "127.0.0.1", 0)
        self._network.listens(self._peer, self._server.sockets[0].getsockname()[1])

    async def open(self, to: PeerAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if to.peer in self._network.walled:
            raise OSError(self._walled(to))
        port = await self._network.port(self._peer, to.peer)
        return await asyncio.open_connection("127.0.0.1", port)

    async def prove(self, to: PeerAddress) -> None:
        if to.peer in self._network.walled:
            raise gone(to.peer, self._walled(to))

    def _walled(self, to: PeerAddress) -> str:
        return f"{to.maddrs[0]}: no answer"

    async def hang_up(self, peer: str) -> None:
        return

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()


@dataclass
class Log:
    """A sink that keeps what it gets, with the moment."""

    records: list[dict[str, Any]] = field(default_factory=list)

    def write(self, record: dict[str, Any]) -> None:
        self.records.append({**record, "at": time.monotonic()})

    def close(self) -> None:
        return

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]


class Batches:
    """A data server's client without a data server."""

    last_position = None
    account: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Config, seed: int) -> None:
        self._parts = itertools.cycle(batches(config, 8, seed=seed))
        self._ids = itertools.count()

    async def next(self, count: int) -> LeasedBatch:
        parts = next(self._parts)
        inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
        labels = {name: torch.cat([part.labels[name] for part in parts]) for name in parts[0].labels}
        return LeasedBatch(next(self._ids), Batch(inputs, labels, sum(part.size for part in parts)), 0, ())

    async def consumed(self, batch_id: int) -> None:
        return

    async def release(self, batch_id: int) -> None:
        return


async def never() -> None:
    await asyncio.Event().wait()


async def until(condition: Callable[[], T | None], what: str, timeout_s: float = 20.0) -> T:
    """What `condition` returns as soon as that is true."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        await asyncio.sleep(0.01)  # a poll with a deadline: the roles are as they are, without hooks
    return value


class NetworkSwarm:
    """`replicas` of two stages, one trainer for each; peers are called server0.., trainer0.., client.

    `servers_config`: what servers were started with, where that is not what the client has.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        replicas: int = 2,
        trainers: int = 2,
        servers_config: Config | None = None,
    ) -> None:
        self._folder = folder
        self.config = self._here(config)
        self._servers_config = self._here(servers_config or config)
        self.network = BadNetwork()
        self.directory = MemorySwarm()
        self.servers: dict[str, Server] = {}
        self.logs: dict[str, Log] = {}
        self._replicas, self._trainers = replicas, trainers
        self._peers: list[Any] = []
        self._stop = asyncio.Event()
        self._running: dict[str, asyncio.Future[Any]] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start(self) -> None:
        await self._start_client(CLIENT)
        for number in range(self._replicas * len(self.config.stages)):
            await self.add_server(number)
            await until(lambda: self.holder_of(f"server{number}"), "a slot", START_S)  # noqa: B023
        for number in range(self._trainers):
            await self.add_trainer(number)
        await until(lambda: all(self.committed(s) >= 2 for s in self.config.stages), "two rounds", START_S)
        await until(
            lambda: all(self.together(s) for s in self.config.stages), "rounds with all members", START_S
        )

    def _here(self, config: Config) -> Config:
        """With all files in the folder of the test."""
        checkpoints = {"checkpoint_dir": str(self._folder / "checkpoints")}
        folders = {"log_dir": str(self._folder), "param_mirror": checkpoints}
        return Config.model_validate({**config.model_dump(exclude_unset=True), **folders})

    async def _start_client(self, name: str) -> None:
        peer = self._peer(name)
        self.client = Client(self.config, [], peer, SimpleNamespace(), self.logs[name])  # type: ignore[arg-type]
        self.client.parts.preflight.open()  # there is no data server
        await peer.transport.serve(self.client.calls.answer, self.client.calls.died)
        self._run("announcing", keep_announced(lambda: peer.directory.announce_role(CLIENT, "")))
        self._run("watching", self.client.parts.watch.run())

    async def restart_client(self, config: Config) -> None:
        """The client ends and another takes its place, with its log and this configuration."""
        ended = [self._running.pop("announcing"), self._running.pop("watching")]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        self.client.parts.rounds.close()
        self.client.parts.log.close()
        await self.client.parts.peer.transport.close()
        self.config = self._here(config)
        await self._start_client(f"{CLIENT}{len(self._peers)}")

    async def add_server(self, number: int) -> str:
        name = f"server{number}"
        peer = self._peer(name)
        self.servers[name] = Server(self._servers_config, peer, "cpu", self.logs[name])
        self._run(name, self.servers[name].run(self._stop))
        return name

    async def add_trainer(self, number: int) -> None:
        name = f"trainer{number}"
        peer, data = self._peer(name), Batches(self.config, number)
        await peer.transport.serve(self._nothing)
        trainer = Trainer(self.config, peer, number, data, self.logs[name])  # type: ignore[arg-type]
        self._run(name, trainer.run(self._stop))

    async def _nothing(self, call: Any) -> Any:
        raise AssertionError(f"nobody calls a trainer: {call.method}")

    def _peer(self, name: str) -> Any:
        streams = RelayStreams(self.network, name)
        peer = SimpleNamespace(
            identity=SimpleNamespace(peer=name),
            transport=StreamTransport(Admission("failover", name), [streams]),
            directory=MemoryDirectory(
                self.directory, name, self.config.experiment_prefix, tuple(self.config.stages)
            ),
            host="",
            maddrs=(f"/memory/{name}",),
            lost_daemon=never,
        )
        self.logs[name] = Log()
        self._peers.append(peer)
        return peer

    def _run(self, name: str, work: Awaitable[Any]) -> None:
        self._running[name] = asyncio.ensure_future(work)

    async def __aexit__(self, *_: object) -> None:
        self.network.heal()
        for task in self._running.values():
            task.cancel()
        ended = await asyncio.gather(*self._running.values(), return_exceptions=True)
        self.client.parts.rounds.close()
        self.client.parts.log.close()
        for server in self.servers.values():
            server._compute.stop()
        for peer in self._peers:
            await peer.transport.close()
        await self.network.close()
        failed = [e for e in ended if isinstance(e, Exception)]
        assert not failed, failed

    # faults

    def cut(self, *names: str, back: bool = True, forth: bool = True) -> float:
        """Cut these peers off from all others; when that was."""
        others = {peer.identity.peer for peer in self._peers} - set(names)
        self.directory.cut_off |= set(names)
        if forth:
            self.network.cut(set(names), others, back=back)
        else:
            self.network.cut(others, set(names), back=False)
        return time.monotonic()

    def heal(self) -> float:
        self.directory.cut_off.clear()
        self.network.heal()
        return time.monotonic()

    # what is so

    def held(self, name: str) -> HeldSlot | None:
        return self.servers[name]._held

    def holder_of(self, peer: str) -> str | None:
        """The slot that the client's log gives to a peer."""
        holder = self.client.parts.slots.of_peer(peer)
        return holder.grant.uid if holder else None

    def at(self, uid: str) -> str:
        """The server that holds a slot."""
        return next(name for name in self.servers if self.holder_of(name) == uid)

    def state(self, name: str) -> str:
        held = self.held(name)
        return held.state.shown if held else "none"

    def round_of(self, name: str) -> int:
        held = self.held(name)
        return int(held.served.status.status()["round"]) if held else -1

    def committed(self, stage: str) -> int:
        newest = self.client.parts.log.newest_round(stage)
        return newest[0] if newest else -1

    def rounds(self, stage: str) -> list[dict[str, Any]]:
        return [r for r in self.logs[CLIENT].of("round") if r["stage"] == stage and r["committed"]]

    def together(self, stage: str) -> bool:
        """Whether the last round of a stage had all its replicas."""
        rounds = self.rounds(stage)
        return bool(rounds) and rounds[-1]["members"] == self._replicas

    def steps(self, trainer: int, since: float = 0.0, through: str = "") -> list[dict[str, Any]]:
        records = self.logs[f"trainer{trainer}"].of("step")
        return [r for r in records if r["at"] > since and (not through or through in r["route"])]

    async def next_step(self, trainer: int, since: float, timeout_s: float = 20.0) -> float:
        """Seconds from a moment to the next step that was begun or was under way then, and was slow."""
        step = await until(lambda: self._first(trainer, since), f"a step of trainer {trainer}", timeout_s)
        return float(step["at"]) - since

    def _first(self, trainer: int, since: float) -> dict[str, Any] | None:
        begun = (s for s in self.steps(trainer, since) if s["at"] - s["seconds"] > since or s["seconds"] > 1)
        return next(begun, None)

    async def all_agree(self, since: float, timeout_s: float) -> float:
        """Every stage commits a round with all its replicas; seconds that it took from `since`."""

        def agreed() -> float | None:
            ends = []
            for stage in self.config.stages:
                rounds = [r for r in self.rounds(stage) if r["at"] > since and r["members"] == self._replicas]
                ends += [rounds[0]["at"]] if rounds else []
            return max(ends) if len(ends) == len(self.config.stages) else None

        return await until(agreed, "rounds with all replicas", timeout_s) - since

    def check(self) -> None:
        """I1 and I3: what members took for committed is what the log has, and the log only goes on."""
        for name, log in self.logs.items():
            for record in log.of("round"):
                if name in self.servers and record["committed"] and record["digest"]:
                    stage = ExpertId.parse(record["uid"]).stage
                    known = {self.client.parts.log.digest(stage, n) for n in range(self.committed(stage) + 1)}
                    assert record["digest"] in known, (name, record)
        for stage in self.config.stages:
            numbers = [r["round"] for r in self.rounds(stage)]
            assert numbers == list(range(1, len(numbers) + 1)), numbers
        for number in range(self._trainers):
            ids = [r["step"] for r in self.steps(number)]
            assert len(ids) == len(set(ids))


def quiet_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of the scene do not rename the process of the tests."""
    monkeypatch.setattr(server_module, "set_title", lambda *_: None)
