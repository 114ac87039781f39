"""`SwarmModel` in a custom loop is the unsplit model: autograd, a loss of the user's own, `step()`."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.golden.test_exactness import batches, config_of, largest_relative_difference
from tests.swarm_scene import MemorySwarm
from torch import Tensor

from distqat.distributed.model import SwarmModel
from distqat.distributed.network.role_peer import RolePeer
from distqat.distributed.training import custom_steps
from distqat.distributed.training.baseline_trainer import BaselineTrainer
from distqat.distributed.training.event_loop_thread import EventLoopThread
from distqat.errors import ProtocolMismatch, Refused, StaleAttempt, SwarmError
from distqat.protocol.hop import PeerAddress
from distqat.tasks.base import Batch
from distqat.topology.snapshot import SwarmSnapshot


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
    model = swarm.custom_model(loop)
    for batch in batches(config, 5):
        plain.step(batch)
        samples = sum(part.size for part in batch)
        for part in batch:
            logits = model(part.inputs["x"])
            loss = torch.nn.functional.cross_entropy(logits, part.labels["y"]) * (part.size / samples)
            loss.backward()
        assert not model.step().skipped
    expected = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
    difference = largest_relative_difference(expected, swarm.floats())
    loop.run(swarm.__aexit__(), 30)
    assert difference <= 1e-5


def test_inputs_get_their_gradient_and_eval_takes_no_step(loop: EventLoopThread) -> None:
    config = config_of("mlp", quantize=False)
    plain = BaselineTrainer(config, torch.device("cpu"))
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    model = swarm.custom_model(loop)
    images = batches(config, 1)[0][0].inputs["x"].clone().requires_grad_()
    model(images).square().sum().backward()
    assert images.grad is not None
    model.abort()
    local = images.detach().clone().requires_grad_()
    output = plain.model(local)
    assert isinstance(output, torch.Tensor)
    output.square().sum().backward()
    assert torch.equal(images.grad, local.grad)
    before = swarm.floats()
    assert torch.equal(model.eval()(images), plain.model.eval()(local))
    assert all(torch.equal(tensor, before[name]) for name, tensor in swarm.floats().items())
    assert swarm.stages[0].replica.step == 0
    loop.run(swarm.__aexit__(), 30)


def mean_loss(model: torch.nn.Module, parts: list[Batch]) -> Tensor:
    """The mean over a batch in microbatches, with its gradient."""
    samples, total = sum(part.size for part in parts), torch.zeros(())
    for part in parts:
        loss = torch.nn.functional.cross_entropy(model(part.inputs["x"]), part.labels["y"])
        loss = loss * (part.size / samples)
        loss.backward()
        total = total + loss.detach()
    return total


@pytest.mark.parametrize("method", ["open", "forward", "backward", "prepare", "decide"])
def test_a_server_that_dies_is_gone_around(loop: EventLoopThread, method: str) -> None:
    """In the middle of a batch: the step is undone everywhere, and the closure runs it over the others."""
    config = config_of("mlp", quantize=False)
    plain = BaselineTrainer(config, torch.device("cpu"))
    swarm = loop.run(MemorySwarm(config, replicas=2).__aenter__(), 30)
    model = swarm.custom_model(loop)
    (batch,) = batches(config, 1)
    at = "front.0.0.0" if method == "decide" else "back.0.0.0"
    dies_at, passed, runs = (2 if method in ("forward", "backward") else 1), [0], [0]

    def passage(name: str) -> None:
        passed[0] += name == f"call.{method}"
        if passed[0] == dies_at:
            swarm.network.kill(at)
            raise asyncio.CancelledError

    swarm.stage(at).passage = passage

    def closure() -> Tensor:
        runs[0] += 1
        return mean_loss(model, batch)

    result = model.step(closure)
    assert result.loss == pytest.approx(plain.step(copy.deepcopy(batch)), rel=1e-5)
    steps = {server.uid: server.replica.step for server in swarm.stages}
    if method == "decide":  # the stage behind it resolves what its trainer could not learn
        assert result.lost == ("front.0.0.0",)
        assert steps["back.0.0.0"] == 1
    else:
        assert runs[0] == (1 if method == "open" else 2)  # the first call of a step is repeated in itself
        assert (steps["front.0.0.0"], steps["back.0.1.0"]) == (1, 1)
    loop.run(swarm.__aexit__(), 30)


def test_without_a_closure_a_failure_undoes_the_step_and_is_raised(loop: EventLoopThread) -> None:
    config = config_of("mlp", quantize=False)
    plain = BaselineTrainer(config, torch.device("cpu"))
    swarm = loop.run(MemorySwarm(config, replicas=2).__aenter__(), 30)
    model = swarm.custom_model(loop)
    (batch,) = batches(config, 1)
    early = model(batch[0].inputs["x"])
    swarm.fail.add("forward")
    with pytest.raises(SwarmError, match="fails forward"):
        model(batch[1].inputs["x"])
    with pytest.raises(StaleAttempt, match="call the model again"):
        early.sum().backward()
    mean_loss(model, batch)
    model.step()
    plain.step(copy.deepcopy(batch))
    assert [server.steps.tally.counts["aborted"] for server in swarm.stages] == [1, 1, 0, 0]
    theirs = {n.removeprefix("stages."): t for n, t in plain.model.state_dict().items()}
    stepped = [server for server in swarm.stages if server.replica.step]
    assert len(stepped) == 2
    found = {
        f"{server.replica.stage}.{name}": tensor
        for server in stepped
        for name, tensor in server.replica.module.state_dict().items()
    }
    assert largest_relative_difference(theirs, found) <= 1e-5
    loop.run(swarm.__aexit__(), 30)


def test_a_call_without_its_way_back_is_the_users_mistake(loop: EventLoopThread) -> None:
    config = config_of("mlp", quantize=False)
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    model = swarm.custom_model(loop)
    (batch,) = batches(config, 1)
    with pytest.raises(RuntimeError, match="there is no step to commit"):
        model.step()
    model(batch[0].inputs["x"])
    with pytest.raises(RuntimeError, match="1 of 1 calls of the model were not followed by backward"):
        model.step()
    mean_loss(model, batch)  # over the same servers at once: they are not to blame
    model.step()
    assert [server.replica.step for server in swarm.stages] == [1, 1]
    loop.run(swarm.__aexit__(), 30)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StaleAttempt])
def test_whatever_a_closure_raises_undoes_the_step(loop: EventLoopThread, error: type[BaseException]) -> None:
    config = config_of("mlp", quantize=False)
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    model = swarm.custom_model(loop)
    (batch,) = batches(config, 1)
    runs = [0]

    def closure() -> Tensor:
        runs[0] += 1
        logits = model(batch[0].inputs["x"])
        if runs[0] == 1:
            raise error("no labels")
        loss = torch.nn.functional.cross_entropy(logits, batch[0].labels["y"])
        loss.backward()
        return loss

    if error is not StaleAttempt:  # a SwarmError: the closure runs again by itself
        with pytest.raises(error, match="no labels"):
            model.step(closure)
        assert [server.steps.tally.counts["aborted"] for server in swarm.stages] == [1, 1]
    model.step(closure)
    assert [server.replica.step for server in swarm.stages] == [1, 1]
    loop.run(swarm.__aexit__(), 30)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_input_that_is_not_finite_is_named_at_once(loop: EventLoopThread, value: float) -> None:
    config = config_of("mlp", quantize=False)
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    model = swarm.custom_model(loop)
    images = batches(config, 1)[0][0].inputs["x"].clone()
    images[-1, -1] = value
    for mode in (model.train(), model.eval()):
        with pytest.raises(ValueError, match="input 'x' of the model has values that are not finite"):
            mode(images)
    assert all(server.steps.tally.counts["aborted"] == 0 for server in swarm.stages)
    loop.run(swarm.__aexit__(), 30)


def test_a_closure_must_return_the_loss(loop: EventLoopThread) -> None:
    config = config_of("mlp", quantize=False)
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    model = swarm.custom_model(loop)
    (batch,) = batches(config, 1)

    def no_loss() -> Any:
        mean_loss(model, batch)

    with pytest.raises(TypeError, match="must return the loss as a tensor, not NoneType"):
        model.step(no_loss)
    assert [server.steps.tally.counts["aborted"] for server in swarm.stages] == [1, 1]
    loop.run(swarm.__aexit__(), 30)


@pytest.mark.parametrize("error", [Refused, ProtocolMismatch])
def test_servers_that_do_not_let_the_loop_in_end_connect(
    loop: EventLoopThread, monkeypatch: pytest.MonkeyPatch, error: type[SwarmError]
) -> None:
    """Another token or version; one server that refuses alone is gone around."""
    config = config_of("mlp", quantize=False)
    swarm = loop.run(MemorySwarm(config, replicas=2).__aenter__(), 30)
    refusing, dialled = {"front.0.0.0", "front.0.1.0"}, []

    async def link(to: PeerAddress, *, prompt: bool = False) -> None:
        dialled.append(to.peer)
        if to.peer in refusing:
            raise error(f"{to.peer} refused the connection: set DISTQAT_TOKEN as the others have it")

    async def start(*_: object, **__: object) -> SimpleNamespace:
        async def snapshot() -> SwarmSnapshot:
            return swarm.snapshot()

        async def stop() -> None:
            return

        directory = SimpleNamespace(snapshot=snapshot)
        return SimpleNamespace(
            transport=SimpleNamespace(link=link, peer="loop"), directory=directory, stop=stop
        )

    monkeypatch.setattr(RolePeer, "start", start)
    with pytest.raises(error, match="set DISTQAT_TOKEN as the others have it"):
        SwarmModel.connect(config, timeout=10)
    assert dialled == ["front.0.0.0", "front.0.1.0"]
    refusing.remove("front.0.1.0")
    SwarmModel.connect(config, timeout=10).close()
    loop.run(swarm.__aexit__(), 30)


def test_out_of_time_names_the_stage_that_nobody_serves(loop: EventLoopThread) -> None:
    config = config_of("mlp", quantize=False)
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    whole, swarm.stages = swarm.stages, swarm.stages[:1]
    model = swarm.custom_model(loop, timeout=0.2)
    model._steps._routes._watch.next_change = lambda: asyncio.Event().wait()  # type: ignore[method-assign]
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.2 s: .*back"):
        model(batches(config, 1)[0][0].inputs["x"])
    swarm.stages = whole
    loop.run(swarm.__aexit__(), 30)


def test_quantizers_are_calibrated_by_the_first_call(loop: EventLoopThread) -> None:
    config = config_of("mlp", quantize=True)
    swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
    model = swarm.custom_model(loop)
    assert swarm.calibrating()
    (batch,) = batches(config, 1)
    losses = [model.step(lambda: mean_loss(model, batch)).loss for _ in range(8)]
    assert not swarm.calibrating()
    assert losses[-1] < losses[0]
    assert [server.replica.step for server in swarm.stages] == [8, 8]
    loop.run(swarm.__aexit__(), 30)


def test_a_loss_scale_leaves_no_trace(loop: EventLoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("mlp", quantize=False, max_grad_norm=0.5)
    states = []
    for wanted in (False, True):
        monkeypatch.setattr(custom_steps, "wants_scaling", lambda servers, wanted=wanted: wanted)
        swarm = loop.run(MemorySwarm(config).__aenter__(), 30)
        model = swarm.custom_model(loop)
        (batch,) = batches(config, 1)
        x = batch[0].inputs["x"].clone().requires_grad_()
        model(x).square().mean().backward()
        result = model.step()
        assert x.grad is not None
        states.append({**swarm.floats(), "input": x.grad, "norm": torch.tensor(result.norm)})
        loop.run(swarm.__aexit__(), 30)
    assert largest_relative_difference(*states) <= 1e-5
