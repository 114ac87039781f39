"""Integer codes between processes, over Unix sockets and libp2p: the bits of floats in one process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch
from benchmarks.driver import Driver
from benchmarks.exactness import in_memory
from benchmarks.harness import Stages, private_runtime
from benchmarks.scene import QUICK_CASES, any_config, batches, config_of
from torch import Tensor

from distqat.distributed.network.role_peer import RolePeer
from distqat.process.runtime_folder import HOST_ID

pytestmark = [
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="roles watch their parent as Linux lets them"),
]
CASE = replace(QUICK_CASES["resnet18"], quantize=True)
STEPS = 3


@pytest.fixture(params=["unix", "libp2p"])
async def stages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stages]:
    """Two processes that serve; on libp2p they and this one claim different hosts."""
    apart = request.param == "libp2p"
    if apart:
        monkeypatch.setenv(HOST_ID, "test-trainer")
    with private_runtime():
        started = Stages(config_of(CASE).stages, apart=apart)
        try:
            await asyncio.to_thread(started.ready)
            yield started
        finally:
            started.end()


async def trained(driver: Driver) -> tuple[list[dict[str, Tensor]], int]:
    """Calibrate and train; the state of each stage, and the bytes from the first to the second."""
    config = config_of(CASE)
    (calibration,) = batches(config, 1)
    while await driver.calibrating():
        await driver.calibrate(calibration)
    before = (await driver.statuses())[0]["link"][0]
    for batch in batches(config, STEPS):
        await driver.step(batch)
    sent = (await driver.statuses())[0]["link"][0] - before
    return [await driver.state(position) for position in range(len(config.stages))], sent


@pytest.mark.usefixtures("one_thread")
async def test_processes_that_send_codes_train_to_the_same_bits(stages: Stages) -> None:
    config = config_of(CASE)
    pipeline = config.model_pipeline.model_copy(update={"activations": "fp32"})
    floats = config.model_copy(update={"model_pipeline": pipeline})
    async with in_memory(floats) as driver:
        expected, _ = await trained(driver)
    peer = await RolePeer.start(any_config(), port=0, port_given=False, initial_peers=[])
    try:
        sent: dict[str, int] = {}
        for activations in ("fp32", "auto"):
            await asyncio.to_thread(stages.take, CASE)
            await asyncio.to_thread(stages.send, activations)
            states, sent[activations] = await trained(Driver(config, peer.transport, stages.hops))
            for ours, theirs in zip(states, expected, strict=True):
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[name], theirs[name]) for name in theirs), activations
    finally:
        await peer.stop()
    print(f"bytes forward per step: {sent['fp32'] / STEPS:.0f}, as codes {sent['auto'] / STEPS:.0f}")
    assert sent["auto"] < 0.28 * sent["fp32"]  # small frames, and the heartbeats of the link
