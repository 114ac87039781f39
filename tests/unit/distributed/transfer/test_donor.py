"""What a donor does when more is asked of it than its rate allows, and which moments a joiner believes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch
from tests.fakes.direct_calls import answer_fields
from torch import nn

from distqat.diloco.options import DilocoOptions
from distqat.diloco.outer_optimizer import OuterState
from distqat.distributed.serving.committed_state import CommittedState
from distqat.distributed.serving.forward_precision import ForwardPrecision
from distqat.distributed.serving.replica import StageReplica
from distqat.distributed.transfer import donor as module
from distqat.distributed.transfer.donor import DonatedState, Donor
from distqat.distributed.transfer.snapshot_exchange import inner_state, load_inner_state
from distqat.distributed.transfer.token_bucket import TokenBucket
from distqat.errors import BadFrame, Busy, StageUnavailable
from distqat.protocol.calls.transfer_calls import DescribeState, FetchChunk
from distqat.quant import QuantOptions
from distqat.swarm.tensor_frame import Message

CHUNK = 1000
SHARED = CommittedState(1, {"w": torch.arange(2000.0)}, OuterState(), {}, {})
FIELDS = {"round": 1, "digest": SHARED.digest}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def held(round: int) -> DonatedState:
    return DonatedState(SHARED, 5)


async def snapshot(donor: Donor, fields: dict[str, Any]) -> Message:
    return await answer_fields(donor.handlers, DescribeState, fields)


async def chunk(donor: Donor, fields: dict[str, Any]) -> Message:
    return await answer_fields(donor.handlers, FetchChunk, fields)


@pytest.fixture
async def donor() -> AsyncIterator[Donor]:
    """1 kB per second, and as much at once after a pause; 8 kB of state."""
    made = Donor(held, None, TokenBucket(CHUNK, CHUNK, Clock()), chunk_bytes=CHUNK)
    yield made
    made.close()


async def test_who_would_wait_too_long_is_told_so(donor: Donor, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    await snapshot(donor, FIELDS)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    for index in range(7):
        await chunk(donor, {"digest": SHARED.digest, "index": index})
    assert slept == pytest.approx([1, 2, 3, 4, 5])
    for _ in range(3):
        with pytest.raises(Busy):
            await chunk(donor, {"digest": SHARED.digest, "index": 7})


async def test_what_nobody_has_is_refused(donor: Donor) -> None:
    first = {"digest": SHARED.digest, "index": 0}
    with pytest.raises(StageUnavailable, match="ask for it again"):
        await chunk(donor, first)
    with pytest.raises(StageUnavailable, match="no inner moments"):
        await snapshot(donor, {**FIELDS, "part": "moments"})
    with pytest.raises(BadFrame, match="part"):
        await snapshot(donor, {**FIELDS, "part": "everything"})
    with pytest.raises(StageUnavailable, match="round 1 stands here"):
        await snapshot(donor, {**FIELDS, "digest": "another"})
    await snapshot(donor, FIELDS)
    for index in (-1, 9, 10**12):
        with pytest.raises(BadFrame, match=r"has no chunk|index"):
            await chunk(donor, {**first, "index": index})


async def test_joiners_that_come_together_have_one_frozen_state(donor: Donor) -> None:
    frozen, freeze = [], donor._freeze

    async def counted(part: str, of: DonatedState) -> object:
        frozen.append(part)
        return await freeze(part, of)

    donor._freeze = counted  # type: ignore[method-assign, assignment]
    await asyncio.gather(*(snapshot(donor, FIELDS) for _ in range(5)))
    assert frozen == ["shared"]


def _replica() -> StageReplica:
    replica = StageReplica(
        nn.Linear(3, 2),
        DilocoOptions(),
        QuantOptions(enabled=False),
        stage="full",
        precision=ForwardPrecision(),
        task=None,
    )
    for param in replica.module.parameters():
        param.grad = torch.ones_like(param)
    replica.optimizer.step()
    return replica


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7, -1e7])
@pytest.mark.parametrize("slot", ["exp_avg", "exp_avg_sq", "step"])
def test_moments_that_no_honest_donor_has_are_not_taken(slot: str, value: float) -> None:
    good = inner_state(_replica())
    joiner = _replica()
    joiner.optimizer.state.clear()
    key = next(key for key in good if key.endswith(f"/{slot}"))
    wrong = {**good, key: torch.full_like(good[key], value)}
    if slot == "step" and value == 1e7:
        return  # a long run
    assert not load_inner_state(joiner, wrong)
    assert not joiner.optimizer.state
    assert load_inner_state(joiner, good)


def test_a_negative_mean_of_squares_is_not_taken() -> None:
    good = inner_state(_replica())
    key = next(key for key in good if key.endswith("/exp_avg_sq"))
    assert not load_inner_state(_replica(), {**good, key: -good[key]})
