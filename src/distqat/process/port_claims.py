"""TCP ports, claimed before anybody binds them.

A second libp2p daemon binds a port beside a leftover without an error (SO_REUSEPORT), so a port belongs
to whoever holds its lock file and finds nobody listening.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from distqat.errors import RoleError
from distqat.process.runtime_folder import runtime_dir

_TRIES = 512


@dataclass
class PortClaim:
    """A port of ours until `release`, or until the process ends."""

    port: int
    _lock: int | None

    def release(self) -> None:
        """Lets others claim the port."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def claim_port(
    hosts: str | Sequence[str], port: int, given: bool, *, claimed: int | None = None
) -> PortClaim:
    """Claim `port` on an IPv4 or IPv6 address, or on each of several; 0 picks a free one.

    A port that was given and is busy is refused, a default one moves on to the next free one.
    `claimed`: a port whose lock our launcher holds for us. RoleError names the port and who holds it.
    """
    if not 0 <= port <= 65535:
        raise RoleError(f"port {port} does not exist; ports go from 0 (any) to 65535")
    hosts = (hosts,) if isinstance(hosts, str) else tuple(hosts)
    if port == 0:
        return _claim_any(hosts)
    for candidate in range(port, min(port + _TRIES, 65536)):
        claim = _claim(hosts, candidate, launchers=candidate == claimed)
        if claim is not None:
            return claim
        if given:
            raise RoleError(
                f"port {port} is in use by {holder(port)}; end it, or choose another port (0: any)"
            )
    raise RoleError(f"no free port between {port} and {min(port + _TRIES, 65536) - 1}; give one (0: any)")


def holder(port: int) -> str:
    """Who holds `port`: "PID 4711 (its command)", or what is known."""
    pid = _listener(port) or _lock_owner(port)
    if pid is None:
        return "a process that this user may not see"
    try:
        words = " ".join(psutil.Process(pid).cmdline()).strip()
    except psutil.Error:
        words = ""
    return f"PID {pid} ({words[:120] or 'unknown command'})"


def _claim_any(hosts: tuple[str, ...]) -> PortClaim:
    for _ in range(_TRIES):
        with _probe(hosts[0]) as probe:
            _bind(probe, hosts[0], 0)
            number = int(probe.getsockname()[1])
        claim = _claim(hosts, number)
        if claim is not None:
            return claim
    raise RoleError(f"no free port on {' and '.join(hosts)}")


def _claim(hosts: tuple[str, ...], port: int, *, launchers: bool = False) -> PortClaim | None:
    if launchers:
        return PortClaim(port, None) if _all_free(hosts, port) else None
    lock = os.open(_lock_path(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _all_free(hosts, port)
    except BlockingIOError:
        free = False
    except BaseException:
        os.close(lock)
        raise
    if not free:
        os.close(lock)
        return None
    os.truncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return PortClaim(port, lock)


def _all_free(hosts: tuple[str, ...], port: int) -> bool:
    return all(_is_free(host, port) for host in hosts)


def _is_free(host: str, port: int) -> bool:
    """Nobody listens. A port that only remembers closed connections (TIME_WAIT) is free."""
    for reuse in (False, True):
        with _probe(host) as probe:
            # Never SO_REUSEPORT: it would bind beside a listener. SO_REUSEADDR does not on Linux.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
            try:
                _bind(probe, host, port)
                probe.listen(1)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return True
    return False


def _probe(host: str) -> socket.socket:
    """A socket of the family of `host`; one of IPv6 leaves IPv4 alone, as libp2p's do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise RoleError(f"this machine has no sockets for {host}: {error.strerror or error}") from error
    if family == socket.AF_INET6:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return probe


def _bind(probe: socket.socket, host: str, port: int) -> None:
    try:
        probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise
        raise RoleError(f"cannot use port {port} on {host}: {error.strerror or error}") from error


def _lock_path(port: int) -> Path:
    folder = runtime_dir() / "ports"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{port}.lock"


def _lock_owner(port: int) -> int | None:
    try:
        text = _lock_path(port).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _listener(port: int) -> int | None:
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return connection.pid
    return None
