"""Noise by place, two phases, their losses, and the distance of what is generated."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distqat.errors import TaskError
from distqat.tasks import Sample, TaskSettings, get_task
from distqat.tasks.image_gen import DISCRIMINATOR, GENERATOR, ImageGeneration

LOGITS = {"fake": torch.tensor([-1.0, 2.0]), "real": torch.tensor([0.5, -0.5]), "image": torch.zeros(2)}


def gan(seed: int = 0, **options: Any) -> ImageGeneration:
    settings = TaskSettings(num_channels=1, img_size=8, latent=5, seed=seed, options=options)
    task = get_task("image_gen", settings)
    assert isinstance(task, ImageGeneration)
    return task


def samples(count: int) -> list[Sample]:
    """Bars, horizontal or vertical: two classes that are easy to tell apart."""
    made: list[Sample] = []
    for number in range(count):
        image = torch.zeros(1, 8, 8)
        place = number // 2 % 8
        image[:, place] = 1.0
        made.append({"image": image if number % 2 else image.transpose(1, 2), "label": number % 2})
    return made


def phase(which: int) -> dict[str, Tensor]:
    return {"phase": torch.full((2,), which)}


def test_noise_depends_on_seed_and_place_alone() -> None:
    task, two = gan(), samples(2)
    batch = task.collate_at(two, [(3, 7), (0, 1)])
    assert batch.inputs["z"].shape == (2, 5)
    other_way = task.collate_at(two[:1] * 3, [(0, 1), (1, 0), (3, 7)]).inputs["z"]
    assert torch.equal(other_way[[2, 0]], batch.inputs["z"])
    assert len({tuple(row.tolist()) for row in other_way}) == 3
    assert not torch.equal(gan(seed=1).collate_at(two, [(3, 7), (0, 1)]).inputs["z"], batch.inputs["z"])
    torch.manual_seed(5)
    assert torch.equal(task.collate(two).inputs["z"], task.collate(two).inputs["z"])


def test_pictures_need_no_label() -> None:
    batch = gan().collate([{"img": np.zeros((8, 8), dtype=np.uint8)}])
    assert torch.equal(batch.inputs["real"], -torch.ones(1, 1, 8, 8))
    with pytest.raises(TaskError, match="has no image"):
        gan().collate([{"label": 3}])


def test_the_discriminator_learns_first_and_the_generator_sees_no_real_pictures() -> None:
    task = gan()
    assert task.phased
    batch = task.collate(samples(4))
    (first, one), (second, two) = task.phases(batch)
    assert (first.trains, second.trains) == ("last", "before_last")
    assert one is batch
    assert list(two.inputs) == list(batch.inputs)
    assert two.inputs["real"].shape == (4, 0, 8, 8)
    assert torch.equal(two.inputs["z"], batch.inputs["z"])
    assert [b.labels["phase"].unique().item() for b in (one, two)] == [DISCRIMINATOR, GENERATOR]
    assert [part.inputs["real"].shape[0] for part in two.microbatches(3)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("loss", "which", "expected"),
    [
        ("non_saturating", DISCRIMINATOR, (0.47407698 + 0.97407698) / 2 + (0.31326169 + 2.12692801) / 2),
        ("non_saturating", GENERATOR, (1.31326169 + 0.12692801) / 2),
        ("hinge", DISCRIMINATOR, (0.5 + 1.5) / 2 + (0.0 + 3.0) / 2),
        ("hinge", GENERATOR, -0.5),
    ],
)
def test_losses(loss: str, which: int, expected: float) -> None:
    """-log sigmoid and max(0, 1 -+ x), written out."""
    assert gan(loss=loss).loss(LOGITS, phase(which)).item() == pytest.approx(expected, rel=1e-6)


def test_scores_count_what_the_discriminator_found() -> None:
    assert gan().score(LOGITS, phase(DISCRIMINATOR)) == {"fake_found": 1, "real_found": 1, "count": 2}
    assert gan().score(LOGITS, phase(GENERATOR)) == {"fake_found": 1, "count": 2}


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TaskError, match=r"data\.options has no key 'los' .* did you mean 'loss'"):
        gan(los="hinge")
    with pytest.raises(TaskError, match="needs outputs 'fake', 'real' and 'image'"):
        gan().loss({"x": torch.zeros(2)}, phase(GENERATOR))
    with pytest.raises(TaskError, match="judge"):
        gan().summarize({"count": 3.0})
    with pytest.raises(TaskError, match="held-out part is empty"):
        gan().judge([], lambda inputs: inputs)


def makes(images: Tensor) -> Any:
    """A model that makes one of these pictures at random, whatever the noise."""

    def forward(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        count = len(inputs["z"])
        chosen = torch.randint(len(images), (count,), generator=torch.Generator().manual_seed(count))
        return {"image": images[chosen], "fake": torch.zeros(count), "real": torch.zeros(count)}

    return forward


def test_the_distance_tells_good_pictures_from_bad_ones() -> None:
    task, heldout = gan(), samples(64)
    assert task.judges
    real = task.collate(heldout).inputs["real"]
    noisy = (real + 0.5 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    before = torch.random.get_rng_state()
    found = [
        task.judge(heldout, makes(images))[0] for images in (real, noisy, real[:2], torch.zeros_like(real))
    ]
    assert found == sorted(found)
    assert found[0] < 0.1 * found[1]
    assert torch.equal(before, torch.random.get_rng_state())
    metric, loss, count = task.judge(heldout, makes(real))
    assert (metric, count) == (found[0], 64)
    assert loss == pytest.approx(2 * math.log(2))


def test_without_labels_there_is_a_distance_too() -> None:
    task, heldout = gan(), [{"image": sample["image"]} for sample in samples(32)]
    real = task.collate(heldout).inputs["real"]
    near, far = (task.judge(heldout, makes(images))[0] for images in (real, torch.zeros_like(real)))
    assert near < 0.1 * far


def test_a_sheet_of_pictures_is_shown() -> None:
    task = gan()
    real = task.collate(samples(16)).inputs["real"]
    shown = Image.open(io.BytesIO(task.show(makes(real))["generated.png"]))
    assert shown.size == (71, 71)  # 8 x 8 pictures of 8 pixels, 7 gaps of one
    assert set(np.asarray(shown)[:8, :8].flatten()) == {0, 255}
