"""Batches made ahead: the order of a plain loop, with any number of threads and any accidents."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch

from distqat.data.serving.prefetch import Prefetch
from distqat.data.source import Item, parse_place
from distqat.errors import DataError, HubUnavailable
from distqat.tasks import Batch, Sample, TaskSettings, get_task
from distqat.tasks.cv import ImageClassification


class Numbers:
    """Samples 0..size-1 as images of one pixel; fails on the draws named in `fail_at`."""

    def __init__(self, size: int, *, fail_at: Iterable[int] = ()) -> None:
        self.size, self.fail_at, self.draws = size, set(fail_at), 0
        self.place = (0, 0)

    @property
    def order(self) -> str:
        return f"numbers {self.size}"

    def take(self, count: int) -> list[Item]:
        self.draws += 1
        if self.draws in self.fail_at:
            raise HubUnavailable("the hub is away")
        epoch, index = self.place
        if index >= self.size:
            epoch, index = epoch + 1, 0
        stop = min(self.size, index + count)
        self.place = (epoch, stop)
        return [Item(epoch, i, {"image": torch.zeros(1, 1, 1), "label": i}) for i in range(index, stop)]

    def state(self) -> dict[str, int]:
        return {"epoch": self.place[0], "index": self.place[1]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.place = parse_place(state)

    def heldout(self) -> Sequence[Sample]:
        return []


def prefetch(source: Numbers, workers: int = 0, num_classes: int = 1000) -> Prefetch:
    task = get_task("cv", TaskSettings(num_classes=num_classes, num_channels=1, img_size=1))
    return Prefetch(source, task, workers=workers)


def labels(batch: Batch) -> list[int]:
    return [int(y) for y in batch.labels["y"]]


@pytest.mark.parametrize("workers", [0, 1, 3])
async def test_order_is_that_of_the_source(workers: int) -> None:
    ahead = prefetch(Numbers(50), workers)
    seen = [label for _ in range(10) for label in labels((await ahead.next(10))[1])]
    assert seen == [*range(50), *range(50)]
    ahead.close()


async def test_batches_span_the_end_of_an_epoch() -> None:
    ahead = prefetch(Numbers(5))
    items, _ = await ahead.next(4)
    items, batch = await ahead.next(4)
    assert [item.place for item in items] == [(0, 4), (1, 0), (1, 1), (1, 2)]
    assert labels(batch) == [4, 0, 1, 2]
    ahead.close()


async def test_what_is_given_back_is_next_also_for_another_batch_size() -> None:
    ahead = prefetch(Numbers(100))
    first, _ = await ahead.next(4)
    second, _ = await ahead.next(4)
    ahead.consume(second)
    ahead.give_back(first)
    assert labels((await ahead.next(4))[1]) == [0, 1, 2, 3]
    third, batch = await ahead.next(6)
    assert labels(batch) == [8, 9, 10, 11, 12, 13]
    ahead.give_back(third)
    assert labels((await ahead.next(3))[1]) == [8, 9, 10]
    assert labels((await ahead.next(4))[1]) == [11, 12, 13, 14]
    ahead.close()


@pytest.mark.parametrize("seed", range(6))
async def test_each_sample_once_per_epoch_with_random_accidents(seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    source = Numbers(37, fail_at=[chance.randint(2, 30) for _ in range(3)])
    ahead = prefetch(source, workers=seed % 3)
    leases: list[list[Item]] = []
    consumed: Counter[tuple[int, int]] = Counter()
    for _ in range(150):
        event = chance.random()
        if event < 0.5 and len(leases) < 4:
            try:
                leases.append((await ahead.next(chance.choice([3, 8])))[0])
            except HubUnavailable:
                continue
        elif event < 0.8 and leases:
            items = leases.pop(0)
            ahead.consume(items)
            consumed.update(item.place for item in items)
        elif event < 0.97 and leases:
            ahead.give_back(leases.pop())
        elif event >= 0.97:
            state = ahead.state()
            ahead.close()
            ahead, leases = prefetch(Numbers(37)), []
            ahead.restore(state)
    complete = ahead.state()["epoch"]
    assert set(consumed.values()) == {1}
    assert all((epoch, i) in consumed for epoch in range(complete) for i in range(37))
    assert complete >= 2
    ahead.close()


async def test_a_failed_draw_loses_nothing() -> None:
    ahead = prefetch(Numbers(10, fail_at=[1]))
    with pytest.raises(HubUnavailable):
        await ahead.next(4)
    assert labels((await ahead.next(4))[1]) == [0, 1, 2, 3]
    ahead.close()


async def test_samples_that_do_not_fit_the_task_are_told_each_time() -> None:
    ahead = prefetch(Numbers(10), num_classes=2)
    for _ in range(2):
        with pytest.raises(DataError, match=r"sample 2 of epoch 0 .*: label 2 is outside"):
            await ahead.next(4)
    ahead.close()


async def test_a_position_of_other_data_is_refused() -> None:
    ahead, other = prefetch(Numbers(10)), prefetch(Numbers(11))
    with pytest.raises(DataError, match="belongs to 'numbers 10'"):
        other.restore(ahead.state())
    ahead.close()
    other.close()


class Draws(ImageClassification):
    """Labels are the places that it was told."""

    def collate_at(self, samples: Sequence[Sample], places: Sequence[tuple[int, int]]) -> Batch:
        batch = self.collate(samples)
        return Batch(batch.inputs, {"y": torch.tensor(places)}, batch.size)


async def test_a_task_that_draws_is_told_the_place_of_each_sample_also_when_it_comes_again() -> None:
    made = Prefetch(Numbers(5), Draws(num_channels=1, img_size=1))
    items, first = await made.next(3)
    assert first.labels["y"].tolist() == [[0, 0], [0, 1], [0, 2]]
    made.give_back(items)
    _, again = await made.next(4)
    assert again.labels["y"].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    _, last = await made.next(3)
    assert last.labels["y"].tolist() == [[0, 4], [1, 0], [1, 1]]
    made.close()
