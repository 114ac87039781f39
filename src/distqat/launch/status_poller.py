"""How a local run goes: asks its client over the client's Unix socket, without a network daemon."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distqat.errors import DistqatError, RoleError, SwarmError
from distqat.process import host_id, runtime_dir

if TYPE_CHECKING:
    from distqat.swarm.transport import StreamTransport

TIMEOUT_S = 5.0


class StatusPoller:
    """The status of the client of run `run`."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._client: str | None = None
        self._transport: StreamTransport | None = None

    def follow(self, said: Mapping[str, Any]) -> None:
        """Ask the client that said this when it was ready; a restarted one has another identity."""
        self._client = peer_of(said.get("peers"))

    async def ask(self) -> dict[str, Any] | None:
        """What the client answers; None: there is none, or it does not answer now."""
        if self._client is None:
            return None
        if self._transport is None:
            # torch comes with it: in a thread, so that a signal is still heard
            await asyncio.get_running_loop().run_in_executor(
                None, importlib.import_module, "distqat.swarm.transport"
            )
            self._transport = self._open()
        from distqat.protocol.calls.slot_calls import AskStatus
        from distqat.protocol.hop import PeerAddress
        from distqat.swarm.call_messages import ask

        try:
            link = await self._transport.link(PeerAddress(self._client, host_id()))
            return dict((await ask(link, AskStatus(), timeout=TIMEOUT_S)).figures)
        except (SwarmError, DistqatError):
            return None

    async def close(self) -> None:
        """Ends the connection to the client."""
        if self._transport is not None:
            await self._transport.close()

    def _open(self) -> StreamTransport:
        from distqat.swarm.handshake import Admission
        from distqat.swarm.transport import StreamTransport, UnixStreams

        name = f"launcher-{os.getpid()}"
        return StreamTransport(
            Admission.of_environment(self._run, name), [UnixStreams(runtime_dir(), name, host_id())]
        )


def peer_of(addresses: object) -> str:
    """The peer id in `["/ip4/IP/tcp/PORT/p2p/ID", ...]`. RoleError: there is none."""
    if isinstance(addresses, Sequence) and addresses and isinstance(addresses[0], str):
        _, found, peer = addresses[0].rpartition("/p2p/")
        if found and peer:
            return peer
    raise RoleError(f"the client serves but told no address: {addresses!r}")
