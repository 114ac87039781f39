"""Integer codes between stages change nothing: the same bits as with floats, over a quarter of the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.golden.test_exactness import TWO, batches, config_of
from tests.swarm_scene import MemorySwarm
from torch import Tensor

from distqat.config import Config
from distqat.protocol.calls.step_calls import EvaluateBatch
from distqat.swarm.call_messages import exchange
from distqat.swarm.tensor_frame import Message

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4


@dataclass
class Run:
    """What a run left: every parameter and buffer, losses, held-out outputs, bytes of each boundary."""

    floats: dict[str, Tensor]
    losses: list[float]
    outputs: Tensor
    forward_bytes: list[int]
    back_bytes: list[int]


async def run(config: Config, activations: str, *, disturbed: bool = False) -> Run:
    """Calibrate, train `STEPS` steps (one of them twice, where `disturbed`), evaluate."""
    pipeline = config.model_pipeline.model_copy(update={"activations": activations})
    config = config.model_copy(update={"model_pipeline": pipeline})
    data = batches(config, 2 + STEPS)
    async with MemorySwarm(config) as swarm:
        while swarm.calibrating():
            for batch in data[:2]:
                await swarm.calibrate(batch)
        stages, hops = swarm.stages, swarm.hops
        links = [await s.transport.link(hop.address) for s, hop in zip(stages[:-1], hops[1:], strict=True)]
        before = [(link.bytes_out(), link.bytes_in()) for link in links]
        losses = []
        for number, batch in enumerate(data[2:]):
            if disturbed and number == 2:
                await swarm.abort_a_step(batch)
            losses.append((await swarm.step(batch)).loss)
        out, back = zip(
            *((k.bytes_out() - o, k.bytes_in() - i) for k, (o, i) in zip(links, before, strict=True)),
            strict=True,
        )
        link = await swarm.trainer.link(hops[0].address)
        request = EvaluateBatch(tuple(hops[1:]), 5.0)
        _, reply = await exchange(link, request, Message(tensors=data[0][0].inputs), timeout=5.0)
        return Run(swarm.floats(), losses, reply.tensors["x"], list(out), list(back))


def same_bits(one: Run, other: Run) -> bool:
    """Of everything that a run computed, the signs of zeros included."""
    pairs = [(one.floats[name], other.floats[name]) for name in one.floats]
    pairs.append((one.outputs, other.outputs))
    return one.losses == other.losses and all(
        torch.equal(a, b) and torch.equal(a.signbit(), b.signbit()) for a, b in pairs
    )


CASES: list[Any] = [
    pytest.param("mlp", TWO, {"hidden": 256}, {}, id="mlp"),
    pytest.param(
        "mlp",
        ("head", "body1", "body2", "tail"),
        {"hidden": 256, "depth": 4},
        {"weight": {"bits": 4}, "activation": {"method": "lsq+"}},
        id="mlp-four-stages-shifted",
    ),
    pytest.param(
        "mlp", TWO, {"hidden": 256}, {"activation": {"signed": True, "method": "pact"}}, id="mlp-signed"
    ),
    pytest.param("resnet18", TWO, {"width": 0.25}, {}, id="resnet18"),
    pytest.param(
        "resnet18",
        ("head", "body", "tail"),
        {"width": 0.125},
        {},
        id="resnet18-three-stages",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("model", "stages", "keys", "quant"), CASES)
async def test_codes_change_no_bit_and_take_a_quarter_of_the_bytes(
    model: str, stages: tuple[str, ...], keys: dict[str, Any], quant: dict[str, Any]
) -> None:
    config = with_settings(config_of(model, quantize=True, stages=stages, keys=keys), quant, {})
    floats, codes = await run(config, "fp32"), await run(config, "auto")
    assert same_bits(floats, codes)
    assert codes.back_bytes == floats.back_bytes
    ratios = [a / b for a, b in zip(codes.forward_bytes, floats.forward_bytes, strict=True)]
    print(f"{model} {stages}: forward bytes {[f'{ratio:.4f}' for ratio in ratios]}")
    headers = 400 * STEPS * config.model_pipeline.microbatches  # of these small frames
    pairs = zip(codes.forward_bytes, floats.forward_bytes, strict=True)
    assert all(a <= 0.25 * b + headers for a, b in pairs)
    if model == "resnet18":
        assert ratios[0] <= 0.26


async def test_a_step_that_was_aborted_and_run_again_has_the_same_bits() -> None:
    config = config_of("resnet18", quantize=True, keys={"width": 0.125})
    assert same_bits(await run(config, "fp32"), await run(config, "auto", disturbed=True))


async def test_short_floats_are_kept_too() -> None:
    """Under autocast the boundary is bfloat16: 8 bits of 16."""
    config = with_settings(config_of("mlp", quantize=True, keys={"hidden": 256}), {}, {"precision": "bf16"})
    floats, codes = await run(config, "fp32"), await run(config, "auto")
    assert same_bits(floats, codes)
    assert codes.forward_bytes[0] < 0.6 * floats.forward_bytes[0]


@pytest.mark.parametrize(("activations", "ratio"), [("fp16", 0.52), ("int8", 0.29)])
async def test_a_lossy_wire_trains_nearly_the_same(activations: str, ratio: float) -> None:
    config = config_of("resnet18", quantize=False, keys={"width": 0.25})
    floats, short = await run(config, "fp32"), await run(config, activations)
    assert short.forward_bytes[0] < ratio * floats.forward_bytes[0]
    assert not same_bits(floats, short)
    assert short.losses == pytest.approx(floats.losses, abs=0.02)


def with_settings(config: Config, quant: dict[str, Any], data: dict[str, Any]) -> Config:
    """The same run with other keys of two sections."""
    dumped = config.model_dump(mode="json")
    for name, value in quant.items():
        dumped["quant"][name] = {**dumped["quant"][name], **value}
    dumped["data"] |= data
    return Config.model_validate(dumped)
