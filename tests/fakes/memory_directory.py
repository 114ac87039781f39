"""The directory without a DHT: the fake that tests use, held to the same suite as the real one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from distqat.errors import DirectoryUnavailable
from distqat.swarm.directory import LEASE_S, DhtDirectory
from distqat.swarm.record_validator import MAX_RECORD_BYTES, MAX_TTL_S, SignedRecord

Slot = tuple[str, str]  # owner and name


@dataclass
class MemorySwarm:
    """The records of all peers by key; `cut_off` are those whose look-ups and stores fail."""

    now: Callable[[], float] = time.time
    records: dict[str, dict[Slot, SignedRecord]] = field(default_factory=dict)
    cut_off: set[str] = field(default_factory=set)


class MemoryRecords:
    """One peer's view of a MemorySwarm. It writes under its own name only, as a signature would have it."""

    def __init__(self, swarm: MemorySwarm, peer: str) -> None:
        self.peer = peer
        self._swarm = swarm

    async def addresses(self) -> tuple[str, ...]:
        return (f"/memory/{self.peer}",)

    async def store(self, key: str, name: str, value: bytes, ttl_s: float) -> bool:
        self._check(f"store {key}")
        if len(value) > MAX_RECORD_BYTES or not 0 < ttl_s <= MAX_TTL_S:  # also NaN
            raise ValueError(f"record of {len(value)} bytes for {ttl_s} s under {key}")
        record = SignedRecord(self.peer, value, self._swarm.now() + ttl_s)
        self._swarm.records.setdefault(key, {})[self.peer, name] = record
        return True

    async def find(self, key: str) -> list[SignedRecord]:
        self._check(f"look up {key}")
        now = self._swarm.now()
        return [record for record in self._swarm.records.get(key, {}).values() if now < record.expires_at]

    def _check(self, what: str) -> None:
        if self.peer in self._swarm.cut_off:
            raise DirectoryUnavailable(f"cannot {what}: this peer is connected to nobody")


class MemoryDirectory(DhtDirectory):
    """The directory of one run as `peer` sees it."""

    def __init__(
        self,
        swarm: MemorySwarm,
        peer: str,
        run: str,
        stages: tuple[str, ...],
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        super().__init__(MemoryRecords(swarm, peer), run, stages, lease_s=lease_s)
