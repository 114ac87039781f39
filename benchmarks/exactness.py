"""A pipeline of stages against a plain loop over the unsplit model: how far apart the parameters end.

    python benchmarks/exactness.py --json PATH [--steps 20] [--quick]

Both take the same inner steps on the same microbatches from the same seed, float32, one torch thread. The
pipeline runs over the in-memory transport (this process), and over Unix sockets (a process per stage). The
figure is the largest over all floating tensors of max|a - b| / max|a|, buffers and quantizers included; the
goal is 1e-5.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fakes.memory_transport import MemoryNetwork, MemoryTransport

from benchmarks.driver import Driver
from benchmarks.harness import Stages, private_runtime
from benchmarks.report import describe, facts, output, write_json
from benchmarks.scene import QUICK_CASES, Case, any_config, batches, chosen_cases, config_of
from benchmarks.stage import Stage
from distqat.config import Config
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.process import run_role
from distqat.protocol.hop import Hop, PeerAddress
from distqat.tasks.base import Batch

T = TypeVar("T")

GOAL = 1e-5
CLIP = 0.5
NAMES = ("resnet18", "mlp")


@asynccontextmanager
async def in_memory(config: Config) -> AsyncIterator[Driver]:
    """All stages in this process."""
    network = MemoryNetwork()
    stages = []
    for name in config.stages:
        transport = MemoryTransport(network, f"{name}.0.0.0")
        stages.append(Stage(config, name, transport))
        await transport.serve(stages[-1].answer)
    hops = [Hop(stage.uid, PeerAddress(stage.uid)) for stage in stages]
    try:
        yield Driver(config, MemoryTransport(network, "trainer"), hops)
    finally:
        for stage in stages:
            await stage.close()


@asynccontextmanager
async def over_unix_sockets(
    case: Case, config: Config, stages: Stages, peer: RolePeer
) -> AsyncIterator[Driver]:
    """A process per stage; they are reused from case to case."""
    await asyncio.to_thread(stages.take, case)
    yield Driver(config, peer.transport, stages.hops)


async def difference(config: Config, driver: Driver, steps: int) -> dict[str, Any]:
    """Train both and compare."""
    plain = BaselineTrainer(config, torch.device("cpu"))
    calibration = batches(config, 1)[0]
    while plain.model.calibrating:
        await asyncio.to_thread(_alone, plain.calibrate, calibration)
        await driver.calibrate(calibration)
    worst_loss = 0.0
    for batch in batches(config, steps):
        expected = await asyncio.to_thread(_alone, plain.step, copy.deepcopy(batch))
        result = await driver.step(batch)
        worst_loss = max(worst_loss, abs(result.loss - expected) / abs(expected))
    worst, at = 0.0, ""
    for position, stage in enumerate(config.stages):
        reference = plain.model.stages[stage].state_dict()
        for name, tensor in (await driver.state(position)).items():
            apart = relative(reference[name], tensor)
            if apart > worst:
                worst, at = apart, f"{stage}.{name}"
    return {"parameters": worst, "at": at, "loss": worst_loss}


def _alone(work: Callable[[list[Batch]], T], batch: list[Batch]) -> T:
    """Compute beside the event loop, which answers heartbeats meanwhile, with one thread as stages have."""
    torch.set_num_threads(1)
    return work(batch)


def relative(reference: torch.Tensor, other: torch.Tensor) -> float:
    """max|a - b| / max|a|; 0 for tensors of integers that are equal."""
    a, b = reference.double(), other.double()
    if torch.equal(a, b):
        return 0.0
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))


async def measure(
    cases: Sequence[Case], steps: int, results: list[dict[str, Any]], tell: Callable[[str], None]
) -> None:
    """Every case over both transports, appended to `results` one by one."""
    stages = Stages(config_of(cases[0]).stages)
    try:
        await asyncio.to_thread(stages.ready)
        peer = await RolePeer.start(any_config(), port=0, port_given=False, initial_peers=[])
        try:
            for case in cases:
                config = config_of(case)
                for over, open_ in (
                    ("memory", in_memory(config)),
                    ("unix", over_unix_sockets(case, config, stages, peer)),
                ):
                    async with open_ as driver:
                        found = await difference(config, driver, steps)
                    results.append(
                        {
                            "case": case.name,
                            "quantized": case.quantize,
                            "max_grad_norm": case.max_grad_norm,
                            "over": over,
                            "steps": steps,
                            **found,
                        }
                    )
                    tell(f"{case.name} over {over}: {found['parameters']:.2e} at {found['at'] or 'none'}")
        finally:
            await peer.stop()
    finally:
        stages.end()


def table_of(results: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"largest relative difference (goal {GOAL:g})", title_justify="left", box=None)
    for name in ("case", "quant", "clipping", "over", "steps", "parameters", "loss"):
        table.add_column(name)
    for result in results:
        table.add_row(
            result["case"],
            "on" if result["quantized"] else "off",
            "on" if result["max_grad_norm"] else "off",
            result["over"],
            str(result["steps"]),
            f"{result['parameters']:.2e}",
            f"{result['loss']:.2e}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a difference is above the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--cases", nargs="+", choices=list(QUICK_CASES), default=list(NAMES), metavar="NAME")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console, about = Console(), facts()
    console.print(describe(about))
    cases = [
        replace(case, max_grad_norm=clip)
        for case in chosen_cases(args.cases, args.quick)
        for clip in (None, CLIP)
    ]
    results: list[dict[str, Any]] = []

    async def role(stop: asyncio.Event) -> int:
        await measure(cases, args.steps, results, console.print)
        return 0

    with private_runtime():
        code = run_role("benchmark exactness", role)
    write_json(args.json, about, results)
    console.print(table_of(results))
    return code or int(any(result["parameters"] > GOAL for result in results))


if __name__ == "__main__":
    sys.exit(main())
