"""Ports of the loopback interface: claims of other processes, listeners, what closed connections leave."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distqat.errors import RoleError
from distqat.process.port_claims import claim_port

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """What a leftover libp2p daemon looks like: it shares its port with anybody who asks for that."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((HOST, 0))
        listening.listen()
        yield listening


def port_of(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


@pytest.mark.parametrize("host", [HOST, "0.0.0.0"])
def test_a_given_port_that_somebody_listens_on_is_refused_with_the_pid(
    listener: socket.socket, host: str
) -> None:
    with pytest.raises(RoleError, match=rf"port {port_of(listener)} is in use by PID {os.getpid()} \(.+\)"):
        claim_port(host, port_of(listener), given=True)


def test_a_default_port_moves_on(listener: socket.socket) -> None:
    claim = claim_port(HOST, port_of(listener), given=False)
    assert claim.port > port_of(listener)
    again = claim_port(HOST, port_of(listener), given=False)
    assert again.port > claim.port


def test_a_claim_of_another_process_holds_until_it_ends() -> None:
    code = (
        "from distqat.process.port_claims import claim_port; import sys\n"
        f"claim = claim_port('{HOST}', 0, given=True); print(claim.port, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    port = int(other.stdout.readline())
    with pytest.raises(RoleError, match=rf"port {port} is in use by PID {other.pid} \("):
        claim_port(HOST, port, given=True)
    other.kill()
    other.communicate(timeout=10)
    assert claim_port(HOST, port, given=True).port == port


def test_any_port_is_never_given_twice() -> None:
    claims = [claim_port(HOST, 0, given=True) for _ in range(20)]
    assert len({claim.port for claim in claims}) == 20
    for claim in claims:
        claim.release()
    assert claim_port(HOST, claims[0].port, given=True).port == claims[0].port


def test_a_role_uses_the_port_that_its_launcher_claimed() -> None:
    claim = claim_port(HOST, 0, given=True)
    with pytest.raises(RoleError, match=f"in use by PID {os.getpid()}"):
        claim_port(HOST, claim.port, given=True)
    assert claim_port(HOST, claim.port, given=True, claimed=claim.port).port == claim.port


def test_closed_connections_do_not_hold_a_port(listener: socket.socket) -> None:
    port = port_of(listener)
    with socket.create_connection((HOST, port)) as caller:
        accepted, _ = listener.accept()
        accepted.close()  # this side closes first, so TIME_WAIT stays at the listener's port
        assert caller.recv(1) == b""
    listener.close()
    with socket.socket() as strict, pytest.raises(OSError, match="in use"):
        strict.bind((HOST, port))
    assert claim_port(HOST, port, given=True).port == port


def test_an_address_that_is_not_ours_and_a_port_that_does_not_exist() -> None:
    with pytest.raises(RoleError, match=r"cannot use port 0 on 192\.0\.2\.1"):
        claim_port("192.0.2.1", 0, given=True)
    with pytest.raises(RoleError, match="port 70000 does not exist"):
        claim_port(HOST, 70000, given=True)


def _no_ipv6() -> str | None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        return f"this machine has no IPv6: {error}"
    return None


REASON = _no_ipv6()


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_claim_is_of_the_families_that_it_names(listener: socket.socket) -> None:
    port = port_of(listener)  # somebody listens over IPv4
    claim = claim_port("::", port, given=True)
    claim.release()
    with pytest.raises(RoleError, match=rf"port {port} is in use by PID {os.getpid()} \("):
        claim_port(("0.0.0.0", "::"), port, given=True)
    with socket.socket(socket.AF_INET6) as sixth:
        sixth.bind(("::1", 0))
        sixth.listen()
        port = port_of(sixth)
        for hosts in ("::", ("0.0.0.0", "::")):
            with pytest.raises(RoleError, match=rf"port {port} is in use by PID {os.getpid()} \("):
                claim_port(hosts, port, given=True)
        assert claim_port(HOST, port, given=True).port == port
