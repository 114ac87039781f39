"""The digits: sizes, a fixed held-out part, orders that depend on seed and epoch alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from distqat.data.embedded import EmbeddedSource
from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.errors import DataError
from distqat.tasks import TaskSettings, get_task


def digits(seed: int = 0, **options: object) -> EmbeddedSource:
    source = open_source(DataOptions.model_validate({"img_size": 16, **options}), seed=seed)
    assert isinstance(source, EmbeddedSource)
    return source


def test_sizes_and_values() -> None:
    source = digits()
    held = list(source.heldout())
    items = source.take(10_000)
    assert (len(items), len(held)) == (1438, 359)
    image = items[0].sample["image"]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.float32
    assert 0.0 <= image.min() < image.max() <= 1.0
    assert torch.equal(image[0], image[2])


def test_every_class_is_on_both_sides() -> None:
    source = digits()
    held = Counter(sample["label"] for sample in source.heldout())
    train = Counter(item.sample["label"] for item in source.take(10_000))
    assert set(held) == set(train) == set(range(10))
    assert min(held.values()) > 25


def test_heldout_does_not_depend_on_the_seed_and_is_not_trained_on() -> None:
    one, other = digits(seed=1), digits(seed=2)
    held = [sample["image"] for sample in one.heldout()]
    assert all(torch.equal(a, b["image"]) for a, b in zip(held, other.heldout(), strict=True))
    trained = {item.sample["image"].data_ptr() for item in one.take(10_000)}
    assert not trained & {image.data_ptr() for image in held}


def test_each_sample_once_per_epoch_in_an_order_of_its_own() -> None:
    source = digits(seed=5)
    first, second = source.take(10_000), source.take(10_000)
    assert [item.place for item in first] == [(0, i) for i in range(1438)]
    assert [item.place for item in second] == [(1, i) for i in range(1438)]
    pictures = [[item.sample["image"].data_ptr() for item in epoch] for epoch in (first, second)]
    assert len(set(pictures[0])) == 1438
    assert sorted(pictures[0]) == sorted(pictures[1])
    assert pictures[0] != pictures[1]


def test_restore_goes_on_where_state_was_taken() -> None:
    source = digits(seed=5)
    for count in (1000, 438, 3):
        source.take(count)
    state = source.state()
    expected = [(item.place, item.sample["label"]) for item in source.take(50)]
    again = digits(seed=5)
    again.restore(state)
    assert [(item.place, item.sample["label"]) for item in again.take(50)] == expected
    assert again.order == source.order


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 0, "index": 99_999}, {"epoch": -1, "index": 0}, {"epoch": "0"}]
)
def test_positions_that_cannot_be(state: dict[str, object]) -> None:
    with pytest.raises(DataError, match="position"):
        digits().restore(state)


def test_digits_have_one_split() -> None:
    with pytest.raises(DataError, match="one split, 'train'"):
        digits(dataset_split="test")


@pytest.mark.parametrize(("img_size", "channels"), [(8, 1), (4, 1), (32, 3)])
def test_fits_the_task(img_size: int, channels: int) -> None:
    source = digits(img_size=img_size, num_channels=channels)
    task = get_task("cv", TaskSettings(num_classes=10, num_channels=channels, img_size=img_size))
    batch = task.collate([item.sample for item in source.take(4)])
    assert batch.inputs["x"].shape == (4, channels, img_size, img_size)
