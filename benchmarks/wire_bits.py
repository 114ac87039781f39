"""One case over the in-memory transport, with floats and with codes between its stages: what differs?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import torch
from tests.swarm_scene import MemorySwarm
from torch import Tensor

from benchmarks.wire_cases import WireCase, wire_batches
from distqat.protocol.calls.step_calls import EvaluateBatch
from distqat.quant import leaving
from distqat.swarm.call_messages import exchange
from distqat.swarm.tensor_frame import Message

GOAL = 0.26
WIRES = ("fp32", "auto")
Row = dict[str, Any]


@dataclass
class Passed:
    """What a run computed, and what crossed each boundary per step."""

    outputs: Tensor
    state: dict[str, Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)  # step/stage.name
    forward_bytes: list[float] = field(default_factory=list)
    declares: list[bool] = field(default_factory=list)


async def passed(case: WireCase, activations: str, steps: int, *, quick: bool) -> Passed:
    """Calibrate, train, evaluate; in this process."""
    config = case.config(quick=quick)
    pipeline = config.model_pipeline.model_copy(update={"activations": activations})
    config = config.model_copy(update={"model_pipeline": pipeline})
    data = wire_batches(config, steps + 1)
    gradients: dict[str, Tensor] = {}
    async with MemorySwarm(config) as swarm:
        while swarm.calibrating():
            await swarm.calibrate(data[0])
        for stage in swarm.stages:
            _watch_gradients(stage.replica, gradients)
        hops, stages = swarm.hops, swarm.stages
        links = [await s.transport.link(hop.address) for s, hop in zip(stages, hops[1:], strict=False)]
        before = [link.bytes_out() for link in links]
        for batch in data[:steps]:
            await swarm.step(batch)
        sent = [(link.bytes_out() - old) / steps for link, old in zip(links, before, strict=True)]
        link = await swarm.trainer.link(hops[0].address)
        request = EvaluateBatch(tuple(hops[1:]), 60.0)
        _, reply = await exchange(link, request, Message(tensors=data[-1][0].inputs), timeout=60.0)
        declares = [leaving(stage.replica.module) is not None for stage in stages[:-1]]
        outputs = next(iter(reply.tensors.values()))
        return Passed(outputs, swarm.floats(), gradients, sent, declares)


def _watch_gradients(replica: Any, found: dict[str, Tensor]) -> None:
    """Copy them when a step is prepared: they are those of the whole batch then."""
    prepare = replica.prepare

    def prepared() -> Any:
        for name, parameter in replica.module.named_parameters():
            if parameter.grad is not None:
                found[f"{replica.step}/{replica.stage}.{name}"] = parameter.grad.clone()
        return prepare()

    replica.prepare = prepared


def compared(case: WireCase, steps: int, *, quick: bool) -> Row:
    """Both wires of one case."""
    floats, codes = (asyncio.run(passed(case, wire, steps, quick=quick)) for wire in WIRES)
    pairs = zip(codes.forward_bytes, floats.forward_bytes, strict=True)
    return {
        "case": case.name,
        "stages": list(case.stages),
        "declares": codes.declares,
        "reason": case.reason,
        "fp32_bytes": floats.forward_bytes,
        "auto_bytes": codes.forward_bytes,
        "ratios": [ours / theirs for ours, theirs in pairs],
        "outputs": apart({"": codes.outputs}, {"": floats.outputs}),
        "gradients": apart(codes.gradients, floats.gradients),
        "parameters": apart(codes.state, floats.state),
    }


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference; infinite for other names, and for a zero of another sign."""
    if ours.keys() != theirs.keys():
        return float("inf")
    worst = 0.0
    for name, tensor in theirs.items():
        if not torch.equal(tensor.signbit(), ours[name].signbit()):
            return float("inf")
        worst = max(worst, float((ours[name].double() - tensor.double()).abs().max()))
    return worst


def good(row: Row) -> bool:
    """Whether a row meets the goals; a case that gives a reason must send floats."""
    exact = row["outputs"] == row["gradients"] == row["parameters"] == 0.0
    return exact and all(
        ratio <= GOAL if declared else row["reason"] != "" and ratio == 1.0
        for ratio, declared in zip(row["ratios"], row["declares"], strict=True)
    )
