"""Servers are dialled before they get a slot, and again when somebody cannot connect to them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.fakes.direct_calls import from_peer
from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from distqat.distributed.coordination import reachability as module
from distqat.distributed.coordination.commit_log import CommitLog
from distqat.distributed.coordination.reachability import ReachabilityChecks
from distqat.distributed.coordination.slot_grants import SlotGrants
from distqat.errors import RoleError, Unreachable
from distqat.protocol.calls.slot_calls import ReportUnreached
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.peer_link import gone
from distqat.topology.snapshot import SwarmSnapshot

pytestmark = pytest.mark.timeout(20)
HOME = PeerAddress(
    "home", "there", ("/ip4/203.0.113.7/tcp/50500/p2p/QmHome", "/ip4/127.0.0.1/tcp/50500/p2p/QmHome")
)
ALONE = PeerAddress("alone", "here", ("/ip4/127.0.0.1/tcp/50501/p2p/QmAlone",))
WRONG = PeerAddress("wrong", "here", ("/ip4/198.51.100.1/tcp/50502", "/ip4/127.0.0.1/tcp/50502"))
REFUSED = "/ip4/203.0.113.7/tcp/50500: connection refused, /ip4/127.0.0.1/tcp/50500: connection refused"


class Dialler(MemoryTransport):
    """Peers in `out` cannot be dialled."""

    def __init__(self) -> None:
        super().__init__(MemoryNetwork(), "client")
        self.out: dict[str, str] = {}
        self.dialled: list[str] = []

    async def prove(self, to: PeerAddress) -> None:
        self.dialled.append(to.peer)
        if self.out.get(to.peer) == "broken":
            raise RoleError("the daemon did not start")
        if to.peer in self.out:
            raise gone(to.peer, self.out[to.peer])


class Scene:
    def __init__(self, folder: Path) -> None:
        self.dialler, self.lost, self.said = Dialler(), [], []
        log = CommitLog(folder / "commit_log.jsonl", "run", resume=False)
        self.slots = SlotGrants(log, ("front", "back"), 8)
        self.reach = ReachabilityChecks(self.dialler, "here", self.slots, self._lost)

    def _lost(self, peer: str) -> None:
        self.lost.append(peer)
        self.slots.free(peer)
        self.reach.gone(peer)

    def holds(self, server: PeerAddress) -> str:
        snapshot = SwarmSnapshot(("front", "back"))
        return self.slots.grant(server.peer, Hop("any.0.0.0", server), snapshot, None).grant.uid

    async def hear(self, reporter: str, host: str, **servers: str) -> None:
        await self.reach.heard(ReportUnreached(host, servers), from_peer(reporter))

    async def looked(self) -> None:
        """All looks are over."""
        await asyncio.gather(*self.reach._looking.values(), return_exceptions=True)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    for name in ("AGAIN_S", "LOOK_S", "PERSISTS_S"):
        monkeypatch.setattr(module, name, 0.0)
    for name, seconds in (("PATIENCE_S", 0.1), ("RECENT_S", 0.05), ("FORGET_S", 0.2)):
        monkeypatch.setattr(module, name, seconds)
    made = Scene(tmp_path)
    monkeypatch.setattr(module, "notice", made.said.append)
    return made


async def test_who_can_be_dialled_is_dialled_once(scene: Scene) -> None:
    for _ in range(3):
        await scene.reach.prove(HOME, held_before=False)
    assert scene.dialler.dialled == ["home"]
    await scene.reach.prove(PeerAddress("home", "there", ("/ip4/203.0.113.8/tcp/1",)), held_before=False)
    assert scene.dialler.dialled == ["home", "home"]  # another address proves anew


async def test_who_cannot_be_dialled_hears_where_and_what_helps(scene: Scene) -> None:
    scene.dialler.out["home"] = REFUSED
    with pytest.raises(Unreachable) as refused:
        await scene.reach.prove(HOME, held_before=False)
    assert str(refused.value) == (
        "this server gets no slot: nobody can connect to it from outside (/ip4/203.0.113.7/tcp/50500: "
        "connection refused); let TCP port 50500 through to its machine (router, firewall, security group), "
        "and see whether --public-ip is the address at which others reach it"
    )
    assert len(scene.dialler.dialled) == 2  # a packet may be lost
    scene.dialler.out.clear()
    await scene.reach.prove(HOME, held_before=False)


async def test_who_announces_loopback_alone_hears_of_public_ip(scene: Scene) -> None:
    scene.dialler.out["alone"] = "/ip4/127.0.0.1/tcp/50501: connection refused"
    with pytest.raises(Unreachable, match=r"loopback alone \(/ip4/127.0.0.1/tcp/50501\).* with --public-ip"):
        await scene.reach.prove(ALONE, held_before=False)


async def test_a_dial_that_cannot_be_made_is_no_fault_of_the_server(scene: Scene) -> None:
    scene.dialler.out["home"] = "broken"
    await scene.reach.prove(HOME, held_before=False)


async def test_who_holds_a_slot_of_an_earlier_client_is_believed(scene: Scene) -> None:
    scene.dialler.out["home"] = REFUSED
    await scene.reach.prove(HOME, held_before=True)
    assert scene.dialler.dialled == []


async def test_a_holder_that_falls_out_of_reach_loses_its_slot_and_hears_why(scene: Scene) -> None:
    uid = scene.holds(HOME)
    scene.dialler.out["home"] = REFUSED
    while not scene.lost:
        await scene.hear("trainer", "here", home="no connection within 10 s")
        await asyncio.sleep(0.005)
    assert scene.lost == ["home"]
    assert scene.said == [scene.reach._out["home"]]
    with pytest.raises(Unreachable, match=rf"{uid} loses its slot: nobody can connect .* TCP port 50500"):
        await scene.reach.prove(HOME, held_before=True)
    # told once: a second question is another case
    await scene.reach.prove(PeerAddress("home", "there"), held_before=True)


async def test_a_failure_that_passes_costs_nothing(scene: Scene) -> None:
    scene.holds(HOME)
    scene.dialler.out["home"] = REFUSED
    await scene.hear("trainer", "here", home="no connection")
    await asyncio.sleep(0)  # the look has begun
    scene.dialler.out.clear()
    await scene.looked()
    assert scene.lost == []


async def test_a_reporter_that_connects_by_another_way_costs_nothing(scene: Scene) -> None:
    scene.holds(HOME)
    scene.dialler.out["home"] = REFUSED
    await scene.hear("trainer", "here", home="no connection")  # and never again
    await scene.looked()
    assert scene.lost == []


async def test_reports_about_strangers_cost_nothing(scene: Scene) -> None:
    await scene.hear("trainer", "here", stranger="no connection")
    assert scene.reach._looking == {}


async def test_a_wall_between_two_is_told_to_who_cannot_connect(scene: Scene) -> None:
    scene.holds(HOME)
    other = scene.holds(PeerAddress("other", "elsewhere", ("/ip4/203.0.113.9/tcp/50500",)))
    await scene.hear("other", "elsewhere", home=REFUSED)
    await scene.looked()
    assert scene.lost == []
    said = scene.reach.notice_for("other")
    assert said.startswith(f"{other} cannot connect to front.0.0.0 (")
    assert "but the client can: see whether a firewall lets" in said
    assert scene.reach.notice_for("home") == ""
    await scene.hear("other", "elsewhere", home=REFUSED)
    await scene.looked()
    assert scene.said == [said]  # once


@pytest.mark.parametrize(
    ("server", "advice"), [(ALONE, "start it with --public-ip"), (WRONG, "see whether --public-ip is")]
)
async def test_a_server_beside_the_client_that_others_cannot_reach_is_told(
    scene: Scene, server: PeerAddress, advice: str
) -> None:
    uid = scene.holds(server)
    other = scene.holds(HOME)
    await scene.hear("home", "there", **{server.peer: "/ip4/198.51.100.1/tcp/50502: no answer"})
    await scene.looked()
    assert scene.lost == []  # the trainers of its own host still train over it
    said = scene.reach.notice_for(server.peer)
    assert said.startswith(f"{other} cannot connect to {uid}, which shares a host with the client: ")
    assert advice in said


async def test_one_failed_dial_is_no_wall(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERSISTS_S", 10.0)
    scene.holds(HOME)
    await scene.hear("trainer", "here", home="no connection")
    await scene.looked()
    assert scene.said == []
