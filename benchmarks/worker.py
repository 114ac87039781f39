"""The processes of a benchmark: a stage, a trainer, or a plain training loop. Started by `harness.py`.

Commands come as JSON lines on standard input, answers leave as JSON lines on standard output; the end of the
input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import torch

from benchmarks.driver import Driver
from benchmarks.scene import Case, any_config, batches, config_of
from benchmarks.stage import Stage
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.process import run_role
from distqat.protocol.call_schema import fields_of, parse
from distqat.protocol.hop import Hop, PeerAddress
from distqat.swarm.call_channel import IncomingCall
from distqat.swarm.tensor_frame import Message
from distqat.tasks.base import Batch

BATCHES = 4  # different ones, in turn

Answer = dict[str, Any]
Reader = asyncio.StreamReader


async def stage(name: str, commands: Reader) -> None:
    """Serve one stage, of one case after the other, in whatever form its output is to be sent."""
    peer = await RolePeer.start(any_config(), port=0, port_given=False, initial_peers=[])
    serving: list[Stage] = []

    async def answer(call: IncomingCall) -> Message:
        return await serving[0].answer(call)

    await peer.transport.serve(answer)
    hop = Hop(f"{name}.0.0.0", PeerAddress(peer.identity.peer, peer.host, peer.maddrs))
    say(fields_of(hop))
    while line := await commands.readline():
        command = json.loads(line)
        if "case" in command:
            for ended in serving:
                await ended.close()
            serving[:] = [Stage(config_of(Case.loads(command["case"])), name, peer.transport)]
        else:
            serving[0].send(command["activations"])
        say({})
    await peer.stop()


async def trainer(name: str, commands: Reader) -> None:
    """Drive the stages that a command names, block after block."""
    peer = await RolePeer.start(any_config(), port=0, port_given=False, initial_peers=[])
    say({})
    driver: Driver | None = None
    data: list[list[Batch]] = []
    while line := await commands.readline():
        command = json.loads(line)
        if "case" in command:
            config = config_of(Case.loads(command["case"]))
            data = batches(config, BATCHES)
            driver = Driver(config, peer.transport, [parse(Hop, hop) for hop in command["hops"]])
            while await driver.calibrating():
                await driver.calibrate(data[0])
            say({})
        elif driver is not None:
            say(await _block(driver, data, int(command["count"])))
    await peer.stop()


async def _block(driver: Driver, data: list[list[Batch]], count: int) -> Answer:
    """`count` steps; what they took here and at the stages. Counters of links leave the questions out."""
    before = await driver.statuses()
    links, cpu = await driver.link_bytes(), time.thread_time()
    steps = [await driver.clocked_step(data[n % len(data)]) for n in range(count)]
    cpu, now = time.thread_time() - cpu, await driver.link_bytes()
    after = await driver.statuses()
    return {
        "steps": steps,
        "loop_cpu_s": cpu,
        "links": [[b - a for a, b in zip(x, y, strict=True)] for x, y in zip(links, now, strict=True)],
        "stages": [difference(new, old) for new, old in zip(after, before, strict=True)],
    }


async def plain(name: str, commands: Reader) -> None:
    """The unsplit model in an ordinary loop, over microbatches or over the whole batch at once."""
    say({})
    loop: BaselineTrainer | None = None
    cuts: dict[str, list[list[Batch]]] = {}
    while line := await commands.readline():
        command = json.loads(line)
        if "case" in command:
            config = config_of(Case.loads(command["case"]))
            cuts = {"microbatches": batches(config, BATCHES), "whole": batches(config, BATCHES, cut=1)}
            loop = BaselineTrainer(config, torch.device("cpu"))
            while loop.model.calibrating:
                loop.calibrate(cuts["microbatches"][0])
            say({})
        elif loop is not None:
            say({"steps": [_plain_step(loop, cuts[command["cut"]], n) for n in range(command["count"])]})


def _plain_step(loop: BaselineTrainer, data: list[list[Batch]], number: int) -> dict[str, float]:
    began = time.perf_counter()
    loop.step(data[number % len(data)])
    return {"step": time.perf_counter() - began}


def difference(new: Answer, old: Answer) -> Answer:
    """New minus old, of numbers in nested maps and lists; what was not there before counts from 0."""
    result: Answer = {}
    for key, value in new.items():
        if isinstance(value, dict):
            result[key] = difference(value, old.get(key, {}))
        elif isinstance(value, list):
            result[key] = [b - a for a, b in zip(old[key], value, strict=True)]
        elif not isinstance(value, bool):
            result[key] = value - old.get(key, 0)
    return result


def say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


async def _input() -> Reader:
    reader = asyncio.StreamReader(limit=2**20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


KINDS: dict[str, Callable[[str, Reader], Coroutine[Any, Any, None]]] = {
    "stage": stage,
    "trainer": trainer,
    "plain": plain,
}


def main() -> int:
    kind, name = sys.argv[1], sys.argv[2]
    torch.set_num_threads(1)

    async def role(stop: asyncio.Event) -> int:
        work = asyncio.ensure_future(KINDS[kind](name, await _input()))
        asked = asyncio.ensure_future(stop.wait())
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        work.cancel() if stop.is_set() else work.result()
        return 0

    return run_role(f"benchmark {kind}", role)


if __name__ == "__main__":
    sys.exit(main())
