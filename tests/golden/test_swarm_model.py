"""`SwarmModel` in a custom loop is the unsplit model: autograd, a loss of the user's own, `step()`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.golden.test_exactness import batches, config_of, largest_relative_difference
from tests.swarm_scene import MemorySwarm

from distqat.distributed.baseline import BaselineTrainer
from distqat.distributed.model import EventLoopThread, SwarmModel


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    thread = EventLoopThread()
    yield thread
    thread.close()
    torch.set_num_threads(before)


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_a_custom_loop_trains_the_servers(loop: EventLoopThread, max_grad_norm: float | None) -> None:
    config = config_of("mlp", quantize=False, max_grad_norm=max_grad_norm)
    plain = BaselineTrainer(config, torch.device("cpu"))
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    model = SwarmModel(swarm.trainer, swarm.hops, loop)
    for batch in batches(config, 5):
        plain.step(batch)
        samples = sum(part.size for part in batch)
        for part in batch:
            logits = model(part.inputs["x"])
            loss = torch.nn.functional.cross_entropy(logits, part.labels["y"]) * (part.size / samples)
            loss.backward()
        told = model.step(max_grad_norm)
        assert told["skipped"] == 0.0
    expected = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
    difference = largest_relative_difference(expected, swarm.floats())
    loop.run(swarm.__aexit__(), 30)
    assert difference <= 1e-5


def test_inputs_get_their_gradient_and_eval_takes_no_step(loop: EventLoopThread) -> None:
    config = config_of("mlp", quantize=False)
    plain = BaselineTrainer(config, torch.device("cpu"))
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    model = SwarmModel(swarm.trainer, swarm.hops, loop)
    images = batches(config, 1)[0][0].inputs["x"].clone().requires_grad_()
    model(images).square().sum().backward()
    assert images.grad is not None
    model.abort()
    twin = images.detach().clone().requires_grad_()
    output = plain.model(twin)
    assert isinstance(output, torch.Tensor)
    output.square().sum().backward()
    assert torch.equal(images.grad, twin.grad)
    before = swarm.floats()
    assert torch.equal(model.eval()(images), plain.model.eval()(twin))
    assert all(torch.equal(tensor, before[name]) for name, tensor in swarm.floats().items())
    assert swarm.stages[0].replica.step == 0
    loop.run(swarm.__aexit__(), 30)
