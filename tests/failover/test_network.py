"""Networks that lose packets, are far away or narrow: training is slower, and nobody is taken for dead."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import torch
from tests.failover.memory_scene import mlp
from tests.failover.network_scene import NetworkSwarm, RelayStreams, quiet_titles, until
from tests.failover.relay import BadNetwork

from distqat.protocol.hop import PeerAddress
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.handshake import Admission
from distqat.swarm.tensor_frame import Message
from distqat.swarm.transport import StreamTransport

pytestmark = [pytest.mark.timeout(120), pytest.mark.enable_socket, pytest.mark.faults]
MEGABIT = 1e6 / 8
NETWORKS = {
    "loss 1 %": {"loss": 0.01, "delay_s": 0.01},
    "loss 5 %": {"loss": 0.05, "delay_s": 0.01},
    "loss 10 %": {"loss": 0.1, "delay_s": 0.01},
    "delay 50 ms": {"delay_s": 0.05, "jitter_s": 0.01},
    "delay 200 ms": {"delay_s": 0.2, "jitter_s": 0.02},
    "10 Mbit/s": {"bytes_per_s": 10 * MEGABIT},
}


@pytest.fixture(autouse=True)
def titles(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_titles(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
async def test_training_on_a_bad_network(tmp_path: Path, network: str) -> None:
    config = mlp(inner_steps=4, outer_steps=100000, averaging_timeout=20.0)
    async with NetworkSwarm(config, tmp_path) as running:
        running.network.shape(**NETWORKS[network])
        began = time.monotonic()
        before = {stage: running.committed(stage) for stage in config.stages}
        await until(
            lambda: all(running.committed(s) >= before[s] + 2 for s in config.stages), "two rounds", 80.0
        )
        steps = [step for trainer in (0, 1) for step in running.steps(trainer, began)]
        seconds = sorted(step["seconds"] for step in steps)
        retries = sum(running.steps(trainer)[-1]["retries"] for trainer in (0, 1))
        lost = sum(way.lost for way in running.network.ways.values())
        print(
            f"{network}: {len(steps)} steps in {time.monotonic() - began:.1f} s, median "
            f"{seconds[len(seconds) // 2]:.3f} s, {retries} run again, {lost} segments lost"
        )
        assert lost > 10 or "loss" not in network  # the fault fired
        assert retries <= len(steps) // 20
        assert not [r for log in running.logs.values() for r in log.of("lease") if r["at"] > began]
        assert not [step for step in steps if step["lost"]]
        assert all(running.holder_of(name) for name in running.servers)
        running.check()


@pytest.mark.parametrize("megabytes", [2])
async def test_a_narrow_line_is_used(megabytes: int) -> None:
    """At least 70 % of 10 Mbit/s, and a peer that is behind a full line is not in doubt."""
    network = BadNetwork()
    network.shape(bytes_per_s=10 * MEGABIT, delay_s=0.02)
    near, far = (
        StreamTransport(Admission("run", name), [RelayStreams(network, name)]) for name in ("near", "far")
    )

    async def answer(call: IncomingCall) -> Message:
        return Message({"got": sum(t.nbytes for t in call.message.tensors.values())})

    try:
        await near.serve(answer)
        await far.serve(answer)
        link = await near.link(PeerAddress("far"))
        tensor = torch.zeros(megabytes * 1_000_000, dtype=torch.uint8)
        began = time.monotonic()
        calls = [link.call("take", Message({}, {"x": tensor}), timeout=30, prompt=True) for _ in range(3)]
        replies = await asyncio.gather(*calls)
        took = time.monotonic() - began
        bound = 3 * tensor.nbytes / (10 * MEGABIT)
        print(
            f"{3 * megabytes} MB at 10 Mbit/s: {took:.2f} s, the bound is {bound:.2f} s: {bound / took:.0%}"
        )
        assert [reply.fields["got"] for reply in replies] == [tensor.nbytes] * 3
        assert bound / took >= 0.7
    finally:
        await near.close()
        await far.close()
        await network.close()
