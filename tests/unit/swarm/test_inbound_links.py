"""The accepting side of links: which peers give no sign of life."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from distqat.protocol.peer_silence import Heartbeat
from distqat.swarm import handshake
from distqat.swarm.handshake import Hello
from distqat.swarm.peer_link import InboundLinks

HEARTBEAT = Heartbeat(interval_s=1.0, silence_s=6.0, doubt_s=2.5)


class Loop:
    """The running loop, with a clock of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)


def channel(peer: str, last_heard: float) -> Any:
    closed = asyncio.get_running_loop().create_future()
    ends = {"overdue": lambda: False, "abort": lambda reason: None}
    return SimpleNamespace(peer=peer, last_heard=last_heard, closed=closed, **ends)


async def test_a_peer_is_doubtful_while_all_its_links_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    links = InboundLinks(HEARTBEAT, lambda peer, silent: None)
    clock = Loop(monkeypatch)
    assert not links.doubtful("server0")  # nobody of that name has a link here: that says nothing
    quiet = channel("server0", 100.0)
    links._links[("server0", b"1")] = {0: quiet, 1: channel("server0", 97.0)}
    links._links[("server1", b"2")] = {0: channel("server1", 99.0)}
    clock.now = 102.4
    assert not links.doubtful("server0")
    assert links.doubtful("server1")
    clock.now = 102.5
    assert links.doubtful("server0")
    quiet.last_heard = 102.5
    assert not links.doubtful("server0")


async def test_our_own_absence_is_nobodys_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    links = InboundLinks(HEARTBEAT, lambda peer, silent: None)
    clock = Loop(monkeypatch)
    links._links[("server0", b"1")] = {0: channel("server0", 100.0)}
    links._listening_since = clock.now = 130.0  # as the sweep notes when it was late
    assert not links.doubtful("server0")
    clock.now = 132.5
    assert links.doubtful("server0")


async def test_the_sweep_goes_on_when_the_role_fails_over_a_peer(caplog: pytest.LogCaptureFixture) -> None:
    noticed = asyncio.Queue[str]()

    def gone(peer: str, silent: bool) -> None:
        noticed.put_nowait(peer)
        raise KeyError(peer)

    links = InboundLinks(Heartbeat(interval_s=0.01, silence_s=0.02, doubt_s=0.01), gone)
    now = asyncio.get_running_loop().time()
    for number, lives_s in enumerate((0.0, 0.1)):  # the second falls silent after the first was noticed
        hello = Hello(f"server{number}", handshake.DATA)
        links.add(hello, channel(hello.peer, now + lives_s))
    assert [await asyncio.wait_for(noticed.get(), 5) for _ in range(2)] == ["server0", "server1"]
    assert "KeyError: 'server0'" in caplog.text
    links.close()
