"""Whether servers can be reached by those who have to: before a slot is granted, and when somebody cannot."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from distqat.distributed.coordination.slot_grants import SlotGrants
from distqat.errors import PeerGone, RoleError, Unreachable
from distqat.process import notice
from distqat.protocol.calls.slot_calls import ReportUnreached
from distqat.protocol.calls.step_calls import Done
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.incoming_call import IncomingCall
from distqat.swarm.role_addresses import outside
from distqat.swarm.transport import Transport

logger = logging.getLogger(__name__)

TRIES, AGAIN_S = 2, 1.0  # a packet may be lost
AT_ONCE = 4  # each dial is a process of some megabytes
LOOK_S = 5.0
PATIENCE_S = 20.0  # how long a server that was reached before must be out of reach to lose its slot
RECENT_S = 15.0  # and somebody must have been unable to connect so shortly before
PERSISTS_S = 10.0  # how long somebody must be unable to connect before people are told
FORGET_S = 60.0


@dataclass(frozen=True)
class UnreachableReport:
    """Who could not connect to a server."""

    peer: str
    host: str
    name: str


class ReachabilityChecks:
    """Dials servers as strangers would; `lost` is told of the peer of a holder that is out of reach."""

    def __init__(
        self, transport: Transport, host: str, slots: SlotGrants, lost: Callable[[str], None]
    ) -> None:
        self._transport = transport
        self._host = host
        self._slots = slots
        self._lost = lost
        self._proven: dict[str, tuple[str, ...]] = {}
        self._out: dict[str, str] = {}  # peers that lost their slots, and why
        self._looking: dict[str, asyncio.Future[None]] = {}
        self._reports: dict[tuple[str, str], tuple[float, float]] = {}  # server, reporter: first, last
        self._notices: dict[str, str] = {}
        self._dials = asyncio.Semaphore(AT_ONCE)

    async def prove(self, server: PeerAddress, *, held_before: bool) -> None:
        """Raises Unreachable, in words for its owner, unless `server` can be connected to.

        What was proven once is believed until somebody reports otherwise, and so is a server that held its
        slot before, in an earlier start of the client perhaps.
        """
        if server.peer in self._out:
            raise Unreachable(self._out.pop(server.peer))
        if held_before or self._proven.get(server.peer) == server.maddrs:
            return
        for attempt in range(TRIES):
            try:
                await self._dial(server)
                break
            except PeerGone as error:
                if attempt == TRIES - 1:
                    sentence = no_way(server, str(error), "this server gets no slot")
                    logger.warning("refused %s: %s", server.peer, sentence)
                    raise Unreachable(sentence) from error
            await asyncio.sleep(AGAIN_S)
        self._proven[server.peer] = server.maddrs

    async def heard(self, request: ReportUnreached, call: IncomingCall) -> Done:
        """A server or trainer could not connect to some peers; of interest are those that hold a slot."""
        own = self._slots.of_peer(call.peer)
        reporter = UnreachableReport(call.peer, request.host, own.grant.uid if own else "a trainer")
        for server, why in request.peers.items():
            holder = self._slots.of_peer(server)
            if holder is not None:
                self.reported(holder.hop, reporter, why)
        return Done()

    def reported(self, server: Hop, reporter: UnreachableReport, why: str) -> None:
        """A reporter could not connect to a server that holds a slot: look whether we can."""
        now, key = time.monotonic(), (server.address.peer, reporter.peer)
        first, last = self._reports.get(key, (now, now))
        self._reports[key] = (now if now - last > FORGET_S else first, now)
        if server.address.peer not in self._looking:
            looking = asyncio.ensure_future(self._look(server, reporter, why))
            self._looking[server.address.peer] = looking
            looking.add_done_callback(lambda _: self._looking.pop(server.address.peer, None))

    def notice_for(self, peer: str) -> str:
        """What the owner of this server should read; empty if there is nothing."""
        return self._notices.get(peer, "")

    def gone(self, peer: str) -> None:
        """It holds no slot any more."""
        self._proven.pop(peer, None)
        self._notices.pop(peer, None)
        self._reports = {key: at for key, at in self._reports.items() if peer not in key}
        looking = self._looking.get(peer)
        if looking is not None and looking is not asyncio.current_task():
            looking.cancel()

    def close(self) -> None:
        """Look no more."""
        for looking in self._looking.values():
            looking.cancel()

    async def _look(self, server: Hop, reporter: UnreachableReport, why: str) -> None:
        began, address = time.monotonic(), server.address
        while True:
            try:
                await self._dial(address)
            except PeerGone as error:
                now = time.monotonic()
                asked = max(last for (peer, _), (_, last) in self._reports.items() if peer == address.peer)
                if now - asked > FORGET_S:
                    return  # whoever could not connect has found another way
                if now - began >= PATIENCE_S and now - asked <= RECENT_S:
                    sentence = no_way(address, str(error), f"{server.uid} loses its slot")
                    self._out[address.peer] = sentence
                    notice(sentence)
                    self._lost(address.peer)
                    return
            else:
                first, last = self._reports.get((address.peer, reporter.peer), (began, began))
                if last - first >= PERSISTS_S:
                    self._tell_of_a_wall(server, reporter, why)
                return
            await asyncio.sleep(LOOK_S)

    def _tell_of_a_wall(self, server: Hop, reporter: UnreachableReport, why: str) -> None:
        """We can connect to a server, and somebody cannot: whose fault is that?"""
        address = server.address
        public = outside(address.maddrs)
        said = f"{reporter.name} cannot connect to {server.uid}"
        if reporter.host != address.host and (not public or address.host == self._host):
            owner = address.peer
            sentence = no_way(address, why, f"{said}, which shares a host with the client")
        else:
            owner = reporter.peer
            sentence = (
                f"{said} ({why}), but the client can: see whether a firewall lets {reporter.name} connect to "
                f"{', '.join(text.partition('/p2p/')[0] for text in public or address.maddrs)}"
            )
        if self._notices.get(owner) != sentence:
            self._notices[owner] = sentence
            notice(sentence)

    async def _dial(self, server: PeerAddress) -> None:
        try:
            async with self._dials:
                await self._transport.prove(server)
        except RoleError as error:  # our own fault: the server gets the benefit of the doubt
            logger.warning("could not look whether %s can be reached: %s", server.peer, error)


def no_way(server: PeerAddress, why: str, what: str) -> str:
    """A sentence that begins with `what` and goes on with why nobody reaches a server and what helps."""
    public = outside(server.maddrs)
    if not public:
        announced = ", ".join(text.partition("/p2p/")[0] for text in server.maddrs) or "no address"
        return (
            f"{what}: it announces loopback alone ({announced}), which other machines cannot reach; start it "
            "with --public-ip and the address at which they reach this one"
        )
    ports = dict.fromkeys(text.partition("/tcp/")[2].partition("/")[0] for text in public)
    told = [part for part in why.rpartition(" is gone: ")[2].split(", ") if outside((part,))]
    return (
        f"{what}: nobody can connect to it from outside ({', '.join(told) or why}); let TCP port "
        f"{', '.join(ports)} through to its machine (router, firewall, security group), and see whether "
        "--public-ip is the address at which others reach it"
    )
