"""Whether a peer can be reached at the addresses that it announces.

libp2p takes a connection that is there already, whoever has opened it, so a peer behind a router looks as if
it could be dialled once it has dialled us. A daemon of its own, which nobody knows, has no connections.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from distqat.errors import RoleError
from distqat.protocol.hop import PeerAddress
from distqat.swarm import hivemind_patches
from distqat.swarm.deadline import within
from distqat.swarm.peer_link import gone

DIAL_S = 6.0  # libp2p itself gives a TCP connection five seconds
START_S, STOP_S = 30.0, 2.0
MAX_ADDRESSES = 8
_OF_AN_ADDRESS = re.compile(r"\* \[(\S+)\] (.*)")
_PLAIN = {
    "connection refused": "connection refused",
    "i/o timeout": "no answer",
    "deadline exceeded": "no answer",
    "peer id mismatch": "another peer answers there",
    "dial backoff": "failed a moment ago",
    "no route to host": "no route to this host",
    "network is unreachable": "no network leads there",
    "security protocol": "what answers there is no peer of ours",
}


async def dial_afresh(to: PeerAddress) -> None:
    """Dial `to` as a stranger would. Raises PeerGone with the reason for each address.

    RoleError: nothing is known, because the daemon that was to dial did not start.
    """
    hivemind_patches.install()
    from hivemind.p2p import P2P, PeerID
    from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure, P2PDaemonError
    from hivemind.utils.multiaddr import Multiaddr

    try:
        peer = PeerID.from_base58(to.peer)
        maddrs = [Multiaddr(text.split("/p2p/")[0]) for text in to.maddrs[:MAX_ADDRESSES]]
    except ValueError as error:
        raise gone(to.peer, f"it announces no addresses that can be read ({error})") from error
    if not maddrs:
        raise gone(to.peer, "it announces no address")
    try:
        stranger = await P2P.create(
            host_maddrs=None,
            no_listen=True,
            dht_mode="client",
            use_relay=False,
            nat_port_map=False,
            auto_nat=False,
            startup_timeout=START_S,
        )
    except (P2PDaemonError, OSError) as error:
        raise RoleError(f"the libp2p daemon that was to dial {to.peer} did not start: {error}") from error
    try:
        await within(stranger._client.connect(peer, maddrs), DIAL_S)
    except asyncio.TimeoutError:
        tried = ", ".join(f"{maddr}: no answer" for maddr in maddrs)
        raise gone(to.peer, tried) from None
    except (ControlFailure, OSError, asyncio.IncompleteReadError) as error:
        raise gone(to.peer, dial_problem(str(error))) from error
    finally:
        await end_daemon(stranger)


async def end_daemon(p2p: Any) -> None:
    """End a daemon; never hangs, also when it is stopped or dead already."""
    try:
        await within(p2p.shutdown(), STOP_S)
    except asyncio.TimeoutError:
        p2p._child.kill()
        await p2p._child.wait()


def dial_problem(text: str) -> str:
    """libp2p's error of a dial in one line: each address with what went wrong there."""
    found = _OF_AN_ADDRESS.findall(text)
    if not found:
        return " ".join(text.removeprefix("Connect failed. msg=").split())[:300]
    return ", ".join(f"{address}: {_plain(reason)}" for address, reason in found)


def _plain(reason: str) -> str:
    return next((plain for known, plain in _PLAIN.items() if known in reason), " ".join(reason.split())[:100])
