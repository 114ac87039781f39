"""Servers in a home: behind a router that translates addresses, real processes in network namespaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from tests.failover.namespaces import HOME, HUB, Namespaces, missing
from tests.failover.process_swarm import ProcessSwarm, until

REASON = missing()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"no network namespaces here: {REASON}"),
    pytest.mark.timeout(240),
    pytest.mark.slow,
    pytest.mark.faults,
]
PORT = 50500


class HomeSwarm(ProcessSwarm):
    """The client's side in the hub, all servers at home, with ports that the router forwards."""

    def __init__(self, folder: Path, network: Namespaces) -> None:
        super().__init__(folder, servers=2)
        self.network = network
        self._where, self._port = HUB, PORT

    def start(self, command: Sequence[str], *, env: Mapping[str, str] | None = None, code: int = 0) -> int:
        inside = [*self.network.entering(self._where), *command]
        if not any(word.startswith("--public-ip") for word in command):
            inside.append(f"--public-ip={self.network.address(self._where)}")
        return super().start(inside, env={"DISTQAT_HOST_ID": self._where, **(env or {})}, code=code)

    def add_servers(self, count: int, peers: str = "", *flags: str) -> int:
        self._where = HOME
        ports = f"--server-base-port={self._port}"
        self._port += 100
        return self.launch(
            "start_servers.py", f"--num-servers={count}", ports, f"--initial-peers={self.peers}", *flags
        )


@pytest.fixture
def network() -> Iterator[Namespaces]:
    with Namespaces(0, home=True) as made:
        yield made
    assert made.left() == []


def test_only_who_can_be_reached_gets_a_slot_and_keeps_it(tmp_path: Path, network: Namespaces) -> None:
    for port in (PORT, PORT + 1):
        network.forward(port)
    with HomeSwarm(tmp_path, network) as swarm:  # which trains two rounds through the router
        closed = swarm.add_servers(1)
        wrong = swarm.add_servers(1, "", "--public-ip=10.77.0.77")
        loopback = swarm.add_servers(1, "", "--public-ip=127.0.0.1")
        for number, why in (
            (closed, "TCP port 50600 "),
            (wrong, "/ip4/10.77.0.77/tcp/50700: no route to this host"),
            (loopback, "it announces loopback alone (/ip4/127.0.0.1/tcp/50800)"),
        ):
            swarm.expect(number, 1)
            assert swarm.launcher(number).wait(timeout=90) == 1
            said = swarm.said(number).strip().splitlines()[-1]
            assert "this server gets no slot: " in said
            assert "--public-ip" in said
            assert why in said
        assert len(swarm.pids("server")) == 2

        network.forward_nothing()
        network.let_nobody_in(HUB)  # or servers would connect to the next trainer, and it has a way to them
        swarm.kill(swarm.pid("trainer 0"))
        until(lambda: "front.0.0.0 loses its slot: nobody can connect" in swarm.said(1), "its owner is told")
        until(lambda: "front.0.0.0 loses its slot" in swarm.said(0), "so is the run's")
        until(lambda: not swarm.pids("server front.0.0.0"), "it ends")
        swarm.expect(1, 1)
