"""Peers that this DHT node has known, asked until they answer: what makes one DHT of two after a partition.

Kademlia forgets who does not answer once. When a network was cut in two, each side has forgotten the other,
and nobody would ask again: both would stay alone although the way between them is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any

logger = logging.getLogger(__name__)

EVERY_S = 1.0
AT_ONCE = 3  # a lost peer costs a dial; many are asked in turn
FORGET_S = 1800.0
REMEMBERED = 256


class KnownPeers:
    """The peers of one `hivemind.dht.DHTNode`, those included that its routing table has dropped."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self._seen: dict[Any, float] = {}  # peer id: when it was last in the routing table

    async def keep_in_touch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            missing = self.look(time.monotonic())
            await asyncio.gather(*(self._ask(peer) for peer in missing))

    def look(self, now: float) -> list[Any]:
        """Remember who is there; some of those who are not there any more."""
        there = set(self._node.protocol.routing_table.peer_id_to_uid)
        self._seen.update(dict.fromkeys(there, now))
        kept = [(peer, at) for peer, at in self._seen.items() if now - at < FORGET_S]
        self._seen = dict(sorted(kept, key=lambda entry: entry[1])[-REMEMBERED:])
        missing = [peer for peer in self._seen if peer not in there]
        return random.sample(missing, min(AT_ONCE, len(missing)))

    async def _ask(self, peer: Any) -> None:
        """One DHT ping: an answer brings the peer back into our routing table, and us into its."""
        if await self._node.protocol.call_ping(peer) is not None:
            self._node.blacklist.register_success(peer)
            logger.info("in touch with peer %s again", peer)
