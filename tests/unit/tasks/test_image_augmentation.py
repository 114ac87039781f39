"""Training images change at random, the same way whenever a sample comes again; held-out ones never do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distqat.errors import TaskError
from distqat.tasks import Batch, Task, TaskSettings, get_task
from distqat.tasks.image_augmentation import chance_at, mirrored, resized_crop, shifted

KINDS = ("shift", "crop_flip", "resized_crop")
SAMPLES = [
    {"image": torch.rand(3, 10, 8, generator=torch.Generator().manual_seed(i)), "label": i} for i in range(6)
]
PLACES = [(0, i) for i in range(6)]


def cv(seed: int = 1, channels: int = 3, **options: Any) -> Any:
    settings = TaskSettings(num_classes=10, num_channels=channels, img_size=8, seed=seed, options=options)
    task: Task = get_task("cv", settings)
    return task


def pixels(batch: Batch) -> torch.Tensor:
    return batch.inputs["x"]


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_place_settle_what_is_drawn(kind: str) -> None:
    task = cv(augment=kind)
    x = pixels(task.collate_at(SAMPLES, PLACES))
    assert torch.equal(x, pixels(cv(augment=kind).collate_at(SAMPLES, PLACES)))
    alone = [pixels(task.collate_at([s], [p])) for s, p in zip(SAMPLES, PLACES, strict=True)]
    assert torch.equal(x, torch.cat(alone))  # whatever else is in the batch
    assert not torch.equal(x, pixels(cv(seed=2, augment=kind).collate_at(SAMPLES, PLACES)))
    assert not torch.equal(x, pixels(task.collate_at(SAMPLES, [(1, i) for _, i in PLACES])))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_trained_on_stays_as_it_is(kind: str) -> None:
    plain = pixels(cv().collate(SAMPLES))
    assert torch.equal(pixels(cv(augment=kind).collate(SAMPLES)), plain)
    assert torch.equal(pixels(cv().collate_at(SAMPLES, PLACES)), plain)  # none is the default
    assert not torch.equal(pixels(cv(augment=kind).collate_at(SAMPLES, PLACES)), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_keep_their_pixels_and_labels(kind: str) -> None:
    before = [s["image"].clone() for s in SAMPLES]
    batch = cv(augment=kind).collate_at(SAMPLES, PLACES)
    assert batch.labels["y"].tolist() == list(range(6))
    assert all(torch.equal(a, s["image"]) for a, s in zip(before, SAMPLES, strict=True))


def test_an_image_is_moved_by_up_to_the_padding_in_all_directions() -> None:
    image = torch.zeros(1, 9, 9)
    image[0, 4, 4] = 1.0
    seen = set()
    for index in range(400):
        moved = shifted(image, 2, chance_at(0, (0, index)))
        assert moved.shape == image.shape
        assert moved.sum() == 1.0
        seen.add(tuple(moved[0].nonzero()[0].tolist()))
    assert seen == {(row, column) for row in range(2, 7) for column in range(2, 7)}
    assert torch.equal(shifted(image, 0, chance_at(0, (0, 0))), image)


def test_what_comes_in_at_the_edge_is_black() -> None:
    x = pixels(
        cv(augment="shift", padding=3).collate_at([{"image": torch.ones(3, 8, 8), "label": 0}], [(0, 0)])
    )
    assert set(x.unique().tolist()) == {-1.0, 1.0}


def test_every_second_image_is_mirrored() -> None:
    image = torch.arange(6.0).view(1, 2, 3)
    flips = [torch.equal(mirrored(image, chance_at(3, (0, i))), image.flip(2)) for i in range(400)]
    assert 160 < sum(flips) < 240


@pytest.mark.parametrize(("height", "width"), [(40, 30), (8, 8), (3, 100), (1, 1), (100, 5)])
def test_a_resized_crop_shows_a_part_of_the_image(height: int, width: int) -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([rows, columns])
    areas = []
    for index in range(60):
        crop = resized_crop(image, 8, chance_at(0, (0, index)))
        assert crop.shape == (2, 8, 8)
        assert crop.min() >= -1e-6
        assert crop.max() <= 1 + 1e-6
        assert (crop[0].diff(dim=0) >= -1e-6).all()  # neither turned nor mirrored
        assert (crop[1].diff(dim=1) >= -1e-6).all()
        areas.append(float((crop[0, -1, 0] - crop[0, 0, 0]) * (crop[1, 0, -1] - crop[1, 0, 0])))
    if min(height, width) > 10:
        assert 0.05 < float(np.median(areas)) < 0.75


@pytest.mark.parametrize(
    ("name", "channels", "white", "black"),
    [
        ("half", 3, [1.0] * 3, [-1.0] * 3),
        ("mnist", 1, [2.8215], [-0.4242]),
        ("mnist", 3, [2.8215] * 3, [-0.4242] * 3),
        ("cifar10", 3, [2.0591, 2.1265, 2.1159], [-1.9895, -1.9803, -1.7071]),
        ("imagenet", 3, [2.2489, 2.4286, 2.6400], [-2.1179, -2.0357, -1.8044]),
    ],
)
def test_pixels_are_normalised(name: str, channels: int, white: list[float], black: list[float]) -> None:
    task = cv(channels=channels, normalize=name)
    images = [torch.full((channels, 8, 8), value) for value in (1.0, 0.0)]
    x = pixels(task.collate([{"image": image, "label": 0} for image in images]))
    torch.testing.assert_close(x[:, :, 3, 5], torch.tensor([white, black]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"augmentation": "shift"}, "no key 'augmentation'.*did you mean 'augment'"),
        ({"augment": "rotate"}, "data.options.augment of task cv.*'crop_flip'"),
        ({"padding": -1}, "data.options.padding"),
        ({"normalize": "imagenet"}, "is for images of 3 channels; data.num_channels is 1"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        cv(channels=1, **options)
