"""Swarms of real processes over IPv6, alone and beside IPv4; launchers take each other for other hosts."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest
from tests.failover.process_swarm import ProcessSwarm, until


def _no_ipv6() -> str | None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        return f"this machine has no IPv6: {error}"
    return None


REASON = _no_ipv6()
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for leftovers in /proc"),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(150),
]
BOTH = "127.0.0.1,::1"


class FarSwarm(ProcessSwarm):
    """One pipeline over two launchers; `ips`: what the client's side announces, and each server."""

    def __init__(self, folder: Path, ips: Sequence[str]) -> None:
        super().__init__(folder, servers=2)
        self._ips = iter(ips)

    def start(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, code: int = 0) -> int:
        far = {"DISTQAT_HOST_ID": f"host{len(self._launchers)}", **(env or {})}
        return super().start([*command, f"--public-ip={next(self._ips)}"], env=far, code=code)

    def add_servers(self, count: int, peers: str = "") -> int:
        for _ in range(count):
            number = super().add_servers(1, peers)
        return number


@pytest.mark.parametrize(
    "ips",
    [
        pytest.param(("::1", "::1", "::1"), id="alone", marks=pytest.mark.slow),
        pytest.param((BOTH, "::1", BOTH), id="beside IPv4"),
    ],
)
def test_a_swarm_trains(tmp_path: Path, ips: tuple[str, ...]) -> None:
    with FarSwarm(tmp_path, ips) as swarm:  # which commits two rounds of each stage
        told = swarm.peers.split(",")
        assert [address.split("/")[1] for address in told] == (["ip6"] if ips[0] == "::1" else ["ip4", "ip6"])
        listening = until(lambda: _listeners(swarm.pid("server back.0.0.0")), "the server's port")
        assert "::" in listening or "0.0.0.0" in listening
        log = (swarm.logs / "client.log").read_text()
        assert "Found expert front.0.0.0 at /ip" in log
        assert "/ip6/::1/tcp/" in log


def _listeners(pid: int) -> set[str]:
    """Addresses that the daemon of a role listens on."""
    daemon = next(child.pid for child in psutil.Process(pid).children() if child.name().startswith("p2pd"))
    bound = [c for c in psutil.net_connections("tcp") if c.pid == daemon and c.status == psutil.CONN_LISTEN]
    return {str(connection.laddr.ip) for connection in bound}
