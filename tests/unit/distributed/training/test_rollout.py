"""The feed of a task that acts: every sample as often as there are epochs, and what comes back goes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distqat.distributed.training.rollout import RolloutFeed
from distqat.tasks.base import Batch, Experience, Task


class Counting(Task):
    """Plays by counting: the samples of rollout n are n * size, n * size + 1, ..."""

    def __init__(self, size: int, epochs: int) -> None:
        self.size, self.epochs, self.played = size, epochs, 0
        self.asked: list[tuple[int, int]] = []

    def player(self, pipeline: int, start: int) -> Counting:
        self.asked.append((pipeline, start))
        return self

    def check(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        return

    def rollout(self) -> Generator[Mapping[str, Tensor], Mapping[str, Tensor], Experience]:
        for question in range(3):
            answer = yield {"x": torch.full((2, 1), float(question))}
            assert answer["x"].tolist() == [[question + 1.0]] * 2
        numbers = torch.arange(self.size) + self.played * self.size
        self.played += 1
        return Experience(Batch({"x": numbers}, {"y": -numbers}, self.size), self.epochs, (1.0,))


TOLD: list[dict[str, Any]] = []


async def more(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {"x": inputs["x"] + 1}


def feed_of(task: Counting, seed: int = 0) -> RolloutFeed:
    assert task.plays
    return RolloutFeed(task, more, seed=seed, pipeline=2, start=5, told=TOLD.append)


async def draw(feed: RolloutFeed, count: int, batches: int) -> list[list[int]]:
    drawn = []
    for _ in range(batches):
        lease = await feed.next(count)
        assert torch.equal(lease.batch.labels["y"], -lease.batch.inputs["x"])
        drawn.append(lease.batch.inputs["x"].tolist())
        await feed.consumed(lease.batch_id)
    return drawn


@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 25))
async def test_every_sample_comes_once_per_epoch(size: int, epochs: int, count: int) -> None:
    task = Counting(size, epochs)
    per_epoch = -(-size // count)
    drawn = await draw(feed_of(task), count, per_epoch * epochs)
    assert task.played == 1
    assert Counter(n for batch in drawn for n in batch) == Counter(dict.fromkeys(range(size), epochs))
    for epoch in range(epochs):
        part = drawn[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(n for batch in part for n in batch) == list(range(size))


async def test_it_plays_when_everything_is_used_up() -> None:
    task = Counting(6, 2)
    TOLD.clear()
    drawn = await draw(feed_of(task), 3, 5)
    assert TOLD == [{"event": "rollout", "pipeline": 2, "samples": 6, "episodes": 1, "return": 1.0}] * 2
    assert task.asked == [(2, 5)]
    assert task.played == 2
    assert sorted(drawn[0] + drawn[1]) == list(range(6))
    assert min(drawn[4]) >= 6
    assert drawn[:2] != drawn[2:4]  # another order in every epoch
    assert drawn == await draw(feed_of(Counting(6, 2)), 3, 5)
    assert drawn != await draw(feed_of(Counting(6, 2), seed=1), 3, 5)


async def test_what_is_released_comes_again_first() -> None:
    task = Counting(6, 1)
    feed = feed_of(task)
    one, other = await feed.next(3), await feed.next(3)
    await feed.release(one.batch_id)
    following = await feed.next(3)  # of the first rollout, though a second would be due
    assert torch.equal(following.batch.inputs["x"], one.batch.inputs["x"])
    await feed.consumed(following.batch_id)
    await feed.consumed(other.batch_id)
    assert task.played == 1
    assert min((await feed.next(3)).batch.inputs["x"].tolist()) >= 6
    assert feed.last_position is None
    await feed.close()
