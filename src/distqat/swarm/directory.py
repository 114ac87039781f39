"""Who serves what: signed records in the DHT, one key per run and stage, one subkey per server.

The DHT is for finding each other and never decides. A record says who it is of by who signed it; a look-up
that fails raises DirectoryUnavailable, which is not an empty swarm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from distqat.errors import DirectoryUnavailable
from distqat.protocol.hop import PeerAddress
from distqat.swarm.record_validator import MAX_TTL_S, SignedRecord
from distqat.topology.snapshot import ServerRecord, SwarmSnapshot

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.5
LEASE_S = 8.0
MAX_TEXT = 512
MAX_ADDRESSES = 32


@dataclass(frozen=True)
class _Place:
    host: str
    maddrs: tuple[str, ...]


@dataclass(frozen=True)
class FinishedWord:
    """A word that the run is over: whose, and since when (Unix time)."""

    owner: str
    at: float


_SERVER = TypeAdapter(ServerRecord)
_AT = TypeAdapter(dict[Literal["at"], FiniteFloat])
_RUN = TypeAdapter(dict[Literal["run"], str])
_PLACE = TypeAdapter(_Place)
_RUNS = "distqat/1/runs"  # the one key that is the same for every run
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Directory(Protocol):
    """What roles need of it. `run`: whose records it looks at."""

    run: str

    async def snapshot(self) -> SwarmSnapshot:
        """All servers of the run, as their records say now."""

    async def announce(self, record: ServerRecord) -> None:
        """Store this server's record until it expires."""

    async def roles(self, role: str) -> list[PeerAddress]:
        """Who announced itself as `role` (client, monitor)."""

    async def announce_role(self, role: str, host: str) -> None:
        """Store that this peer has the role."""

    async def announce_finished(self, at: float) -> None:
        """Store that the run is over since `at` (Unix time)."""

    async def finished(self) -> list[FinishedWord]:
        """Who says that the run is over."""

    async def runs(self) -> set[str]:
        """Names of all runs that were announced."""


class Records(Protocol):
    """Signed, owner-bound records that vanish when they expire: `DhtNode`, and `MemoryRecords` in tests."""

    async def addresses(self) -> tuple[str, ...]:
        """The multiaddrs that this peer announces."""

    async def store(self, key: str, name: str, value: bytes, ttl_s: float) -> bool:
        """Store `value` under `key` and this owner's `name` for `ttl_s` seconds; whether it was kept."""

    async def find(self, key: str) -> list[SignedRecord]:
        """All records under `key` that have not expired."""


class DhtDirectory:
    """The directory of one run over a DHT node."""

    def __init__(
        self, engine: Records, run: str, stages: tuple[str, ...], *, lease_s: float = LEASE_S
    ) -> None:
        self.run = run
        self._engine = engine
        self._stages = stages
        self._lease_s = lease_s

    async def snapshot(self) -> SwarmSnapshot:
        """All live records of the run, the newest of each peer. Raises DirectoryUnavailable."""
        found = await asyncio.gather(*(self._engine.find(self._key(stage)) for stage in self._stages))
        newest: dict[str, ServerRecord] = {}
        for stage, entries in zip(self._stages, found, strict=True):
            for entry in entries:
                record = _parse_server(entry, stage)
                known = newest.get(entry.owner)
                if record is not None and (known is None or known.expires_at < record.expires_at):
                    newest[entry.owner] = record
        return SwarmSnapshot(self._stages, tuple(newest.values()))

    async def announce(self, record: ServerRecord) -> None:
        """Declare a server until its lease is over. Raises DirectoryUnavailable."""
        await self._store(self._key(record.stage), str(record.expert), asdict(record))

    async def roles(self, role: str) -> list[PeerAddress]:
        """Addresses of the live `client` or `monitor` of the run, newest record first."""
        entries = sorted(await self._engine.find(self._key(f"role:{role}")), key=lambda e: -e.expires_at)
        return [address for entry in entries if (address := _parse_role(entry)) is not None]

    async def announce_role(self, role: str, host: str) -> None:
        """Declare this peer as the run's `client` or `monitor`, and that the run is there at all."""
        maddrs = list(await self._engine.addresses())
        await self._store(self._key(f"role:{role}"), role, {"host": host, "maddrs": maddrs})
        await self._store(_RUNS, self.run, {"run": self.run})

    async def runs(self) -> set[str]:
        """Names of the runs that have a monitor or a client, ours included. Raises DirectoryUnavailable."""
        names = set()
        for entry in await self._engine.find(_RUNS):
            with contextlib.suppress(ValidationError):
                name = _RUN.validate_json(entry.value).get("run", "")
                if len(name) <= MAX_TEXT and _RUN_NAME.fullmatch(name):
                    names.add(name)
        return names

    async def announce_finished(self, at: float) -> None:
        """Tell those who missed it that the run ended at `at`, for as long as a record may live."""
        await self._store(self._key("finished"), "client", {"at": at}, MAX_TTL_S)

    async def finished(self) -> list[FinishedWord]:
        """Who said that the run is over, newest first. Raises DirectoryUnavailable."""
        found = []
        for entry in await self._engine.find(self._key("finished")):
            with contextlib.suppress(ValidationError, KeyError):
                found.append(FinishedWord(entry.owner, _AT.validate_json(entry.value)["at"]))
        return sorted(found, key=lambda finish: -finish.at)

    async def _store(self, key: str, name: str, value: dict[str, Any], ttl_s: float = 0.0) -> None:
        encoded = json.dumps(value).encode()
        if not await self._engine.store(key, name, encoded, ttl_s or self._lease_s):
            raise DirectoryUnavailable(f"no peer took the record of {name}")

    def _key(self, kind: str) -> str:
        return f"distqat/1/{self.run}/{kind}"


def address_of(record: ServerRecord) -> PeerAddress:
    """Where the server of a record is reached."""
    return PeerAddress(record.peer_id, record.host, record.addresses)


def _parse_server(entry: SignedRecord, stage: str) -> ServerRecord | None:
    try:
        record = _SERVER.validate_json(entry.value)
        problem = _problem(record, entry.owner, stage)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
    if problem is not None:
        logger.warning("ignored a record of %s for stage %s: %s", entry.owner, stage, problem)
        return None
    return replace(record, expires_at=entry.expires_at)


def _problem(record: ServerRecord, owner: str, stage: str) -> str | None:
    """What keeps a well-formed record from being believed; its numbers steer routing and placement."""
    if record.peer_id != owner or record.stage != stage:
        return f"it speaks for {record.peer_id[:80]!r} at stage {record.stage[:80]!r}"
    counts = (record.index, record.epoch, record.step, record.round)
    if any(not 0 <= count < 10**9 for count in counts):
        return "index, epoch, step or round out of range"
    numbers = (record.throughput, *record.metrics.values())
    if record.throughput < 0 or not all(math.isfinite(number) for number in numbers):
        return "throughput or metrics that are no finite numbers"
    texts = (record.host, record.config_digest, *record.addresses)
    if any(len(text) > MAX_TEXT for text in texts) or len(record.addresses) > MAX_ADDRESSES:
        return "too many or too long addresses"
    return None


def _parse_role(entry: SignedRecord) -> PeerAddress | None:
    try:
        place = _PLACE.validate_json(entry.value)
    except ValidationError as error:
        logger.warning("ignored the role record of %s: %s", entry.owner, error.errors()[0]["msg"])
        return None
    if len(place.maddrs) > MAX_ADDRESSES or any(len(text) > MAX_TEXT for text in (place.host, *place.maddrs)):
        return None
    return PeerAddress(entry.owner, place.host, place.maddrs)


async def keep_announced(announce: Callable[[], Any], *, every_s: float = HEARTBEAT_S) -> None:
    """Announce again and again until cancelled; a failed announcement is logged once per streak."""
    failing = False
    while True:
        try:
            await announce()
            if failing:
                logger.info("announcing works again")
            failing = False
        except DirectoryUnavailable as error:
            if not failing:
                logger.warning("could not announce this role: %s; trying again", error)
            failing = True
        await asyncio.sleep(every_s)


class DirectoryWatch:
    """The newest snapshot; on a failed look-up the last one stands."""

    def __init__(self, directory: Directory, stages: Iterable[str], *, every_s: float = 1.0) -> None:
        self.snapshot = SwarmSnapshot(tuple(stages))
        self.changed = asyncio.Event()
        self._directory = directory
        self._every_s = every_s
        self._failing = False

    async def run(self) -> None:
        """Look up again and again until cancelled; `changed` is set at each new snapshot."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._every_s)

    async def refresh(self) -> SwarmSnapshot:
        """Look up now. Keeps the last snapshot when that fails."""
        try:
            self.snapshot = await self._directory.snapshot()
            self.changed.set()
            self._failing = False
        except DirectoryUnavailable as error:
            if not self._failing:
                logger.warning("%s; going on with what is known", error)
            self._failing = True
        return self.snapshot

    async def next_change(self) -> SwarmSnapshot:
        """Wait for the next snapshot."""
        self.changed.clear()
        await self.changed.wait()
        return self.snapshot
