"""A relay between two ends of a TCP connection that behaves like a bad network: slow, lossy, cut.

What is lost is sent again, as TCP does: a lost segment never vanishes, it stalls its direction for the time
that a retransmission takes. What is sent into a cut stays with the sender and travels once that has healed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from dataclasses import dataclass, field

SEGMENT = 1448
TIMEOUT_S = 0.2  # TCP's smallest retransmission timeout: a loss at the end of what there is to send
QUEUE_BYTES = 256 * 1024  # on their way or waiting for the line; then the sender has to wait


@dataclass
class Way:
    """One direction between two peers. Changing a field changes connections that are open."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = math.inf
    random: random.Random = field(default_factory=lambda: random.Random(1))
    carried: int = 0
    lost: int = 0
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    def cut(self) -> None:
        """Nothing gets through any more."""
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    @property
    def is_cut(self) -> bool:
        return not self._open.is_set()

    async def passable(self) -> None:
        """Wait until it is not cut."""
        await self._open.wait()

    def occupied_s(self, size: int, *, last: bool) -> float:
        """How long the line is busy with `size` bytes, retransmissions included."""
        segments = math.ceil(size / SEGMENT)
        lost = sum(self.random.random() < self.loss for _ in range(segments))
        self.lost += lost
        again = max(2 * self.delay_s, 0.01)
        stalls = lost * again + (TIMEOUT_S if lost and last else 0.0)
        return size / self.bytes_per_s + stalls


class Relay:
    """Listens on a loopback port and passes every connection on to `target`."""

    def __init__(self, target: int, forth: Way, back: Way) -> None:
        self.port = 0
        self._target, self._forth, self._back = target, forth, back
        self._server: asyncio.AbstractServer | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._forth.passable()  # the SYN has to arrive, and its answer
            await self._back.passable()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(
                _carry(self._forth, reader, far_writer), _carry(self._back, far_reader, writer)
            )
        except (OSError, asyncio.CancelledError):  # this task is nobody's but ours: `close` cancels it
            writer.close()
        finally:
            self._running.discard(task)


async def _carry(way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction of one connection, until its end."""
    line: deque[tuple[float, bytes]] = deque()
    changed, room = asyncio.Event(), asyncio.Event()
    delivering = asyncio.ensure_future(_deliver(way, line, changed, room, writer))
    loop, free_at, arrives = asyncio.get_running_loop(), 0.0, 0.0
    try:
        while data := await reader.read(16 * 1024):
            await way.passable()
            free_at = max(free_at, loop.time()) + way.occupied_s(len(data), last=len(data) < 16 * 1024)
            delay = way.delay_s + way.random.uniform(0, way.jitter_s)
            arrives = max(arrives, free_at + delay)  # TCP keeps the order
            line.append((arrives, data))
            changed.set()
            while sum(len(part) for _, part in line) > QUEUE_BYTES:
                room.clear()
                await room.wait()
        line.append((arrives, b""))
        changed.set()
        await delivering
    except OSError:  # an end was reset
        line.append((arrives, b""))
        changed.set()
        await delivering
    finally:
        delivering.cancel()


async def _deliver(
    way: Way,
    line: deque[tuple[float, bytes]],
    changed: asyncio.Event,
    room: asyncio.Event,
    writer: asyncio.StreamWriter,
) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while True:
            while not line:
                changed.clear()
                await changed.wait()
            arrives, data = line[0]
            if loop.time() < arrives:
                await asyncio.sleep(arrives - loop.time())
            await way.passable()
            line.popleft()
            room.set()
            if not data:
                break
            way.carried += len(data)
            writer.write(data)
            await writer.drain()
    writer.close()


class BadNetwork:
    """Relays between named peers, one way per direction: `ways["a", "b"]` carries what a sends to b."""

    def __init__(self, seed: int = 1) -> None:
        self.ways: dict[tuple[str, str], Way] = {}
        self.walled: set[str] = set()
        """Peers behind a router: what is connected stays so, and nobody new gets a connection to them."""
        self._seed = seed
        self._ports: dict[str, int] = {}
        self._relays: dict[tuple[str, str], Relay] = {}
        self._defaults: dict[str, float] = {}

    def listens(self, peer: str, port: int) -> None:
        """Where a peer really listens."""
        self._ports[peer] = port

    def knows(self, peer: str) -> bool:
        return peer in self._ports

    async def port(self, source: str, target: str) -> int:
        """Where `source` has to connect to reach `target`."""
        relay = self._relays.get((source, target))
        if relay is None:
            relay = Relay(self._ports[target], self.way(source, target), self.way(target, source))
            self._relays[source, target] = relay
            await relay.start()
        return relay.port

    def way(self, source: str, target: str) -> Way:
        if (source, target) not in self.ways:
            chance = random.Random(f"{self._seed} {source} {target}")
            self.ways[source, target] = Way(**self._defaults, random=chance)  # type: ignore[arg-type]
        return self.ways[source, target]

    def shape(self, **conditions: float) -> None:
        """Set fields of all ways, those included that are used later."""
        self._defaults = conditions
        for way in self.ways.values():
            for name, value in conditions.items():
                setattr(way, name, value)

    def cut(self, some: set[str], others: set[str], *, back: bool = True) -> None:
        """Cut what `some` send to `others`, and `back` as well what these send to them."""
        for one in some:
            for other in others:
                self.way(one, other).cut()
                if back:
                    self.way(other, one).cut()

    def heal(self) -> None:
        for way in self.ways.values():
            way.heal()

    async def close(self) -> None:
        self.heal()
        for relay in self._relays.values():
            await relay.close()
