"""The accepting side of links: which peers give no sign of life."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from distqat.protocol.peer_silence import Heartbeat
from distqat.swarm.peer_link import InboundLinks

HEARTBEAT = Heartbeat(interval_s=1.0, silence_s=6.0, doubt_s=2.5)


class Loop:
    """The running loop, with a clock of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)


def channel(peer: str, last_heard: float) -> Any:
    closed = asyncio.get_running_loop().create_future()
    return SimpleNamespace(peer=peer, last_heard=last_heard, closed=closed)


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
