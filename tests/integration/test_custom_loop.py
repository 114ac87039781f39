"""examples/custom_loop.py: its loop over stages in memory, and as it stands over a swarm of processes."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from examples.custom_loop import DEFAULT, batches_of, main, train
from tests.swarm_scene import MemorySwarm

from distqat.config import load_config
from distqat.distributed.model import SwarmModel
from distqat.distributed.training.event_loop_thread import EventLoopThread
from distqat.errors import Refused, SwarmError

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("one_thread")
def test_the_loop_trains_and_goes_on_when_a_server_dies() -> None:
    changes = {"diloco.inner_optim.adam_lr": 1e-2, "quant.enabled": False}
    config, loop = load_config(ROOT / DEFAULT, changes), EventLoopThread()
    swarm = loop.run(MemorySwarm(config, replicas=2).__aenter__(), 30)
    model, batches = swarm.custom_model(loop), batches_of(config)
    losses = train(model, itertools.islice(batches, 30), 30)
    used = next(server for server in swarm.stages if server.replica.step)
    asked: list[str] = []

    def dies(name: str) -> None:
        asked.append(name)
        if asked.count("call.forward") == 2:
            swarm.network.kill(used.uid)
            raise asyncio.CancelledError

    used.passage = dies
    assert sum(losses[-5:]) < 0.96 * sum(losses[:5])
    assert len(train(model, batches, 5)) == 5
    assert "call.forward" in asked
    with pytest.raises(SwarmError):
        loop.run(model._steps._driver.transport.link(swarm.hops[0].address), 5)
    model.close()
    loop.run(swarm.__aexit__(), 30)
    loop.close()


def test_no_step_at_all_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--steps=0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "custom_loop.py: --steps must be at least 1, not 0\n"


@pytest.mark.parametrize("error", [Refused, TimeoutError])
def test_an_error_of_the_swarm_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def connect(config: object) -> None:
        raise error("the run's token does not match")

    monkeypatch.setattr(SwarmModel, "connect", connect)
    assert main(["--initial-peers=/ip4/127.0.0.1/tcp/1/p2p/Qm"]) == 1
    assert capsys.readouterr().err == "custom_loop.py: the run's token does not match\n"


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_the_example_trains_a_swarm_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "examples/custom_loop.py", "--steps=100"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=140, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"trained: loss ([\d.]+) -> ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[2]) < 0.85 * float(found[1])
