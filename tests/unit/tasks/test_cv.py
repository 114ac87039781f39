"""Image classification: samples of every kind, loss and accuracy against plain torch."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from distqat.errors import TaskError
from distqat.tasks import TaskSettings, get_task
from distqat.tasks.cv import ImageClassification
from distqat.tasks.image_augmentation import ImageOptions


def cv(**kwargs: Any) -> ImageClassification:
    return ImageClassification(**{"num_classes": 10, "num_channels": 3, "img_size": 8, **kwargs})


@pytest.mark.parametrize("label_column", ["label", "labels", "fine_label"])
@pytest.mark.parametrize("image_column", ["img", "image"])
def test_columns_of_the_hub(image_column: str, label_column: str) -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    batch = cv().collate([{image_column: pixels, label_column: 7}, {image_column: pixels, label_column: 0}])
    assert batch.size == 2
    assert batch.labels["y"].tolist() == [7, 0]
    assert batch.labels["y"].dtype == torch.int64
    x = batch.inputs["x"]
    assert x.shape == (2, 3, 8, 8)
    assert x.dtype == torch.float32
    expected = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 * 2 - 1
    torch.testing.assert_close(x[0], expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pil_images_are_converted(mode: str, channels: int) -> None:
    x = cv(num_channels=channels).collate([{"img": Image.new(mode, (8, 8), "white"), "label": 1}]).inputs["x"]
    assert x.shape == (1, channels, 8, 8)
    assert torch.equal(x, torch.ones_like(x))


@pytest.mark.parametrize(
    "image",
    [
        np.ones((8, 8), np.float32),
        np.full((8, 8), 65535, np.uint16),
        np.full((8, 8, 1), 255, np.uint8),
        np.full((8, 8), 255),
        [[255] * 8] * 8,
        torch.ones(1, 8, 8),
        torch.full((3, 8, 8), 255, dtype=torch.uint8),
    ],
)
def test_white_is_one_in_every_type(image: Any) -> None:
    x = cv().collate([{"image": image, "label": 1}]).inputs["x"]
    assert torch.equal(x, torch.ones(1, 3, 8, 8))


def test_the_background_of_alpha_is_an_option() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    for background, value in (("white", 1.0), ("black", -1.0)):
        options = ImageOptions.model_validate({"background": background})
        x = cv(options=options).collate([{"image": clear, "label": 1}]).inputs["x"]
        assert torch.equal(x, torch.full((1, 3, 8, 8), value))


@pytest.mark.parametrize("normalize", ["half", "imagenet"])
def test_pictures_are_shown_as_they_were(normalize: Any) -> None:
    task = cv(options=ImageOptions(normalize=normalize))
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    shown, labels = task.pictures(task.collate([{"image": image, "label": 4} for image in images]))
    torch.testing.assert_close(shown, images)
    assert labels == ["4", "4"]


def test_collate_does_not_change_the_sample() -> None:
    image = torch.full((3, 8, 8), 0.25)
    cv().collate([{"image": image, "label": 1}])
    assert torch.equal(image, torch.full((3, 8, 8), 0.25))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (16, 16), (5, 13), (30, 9), (1, 1)])
def test_any_size_is_scaled_and_cropped(height: int, width: int) -> None:
    x = cv().collate([{"image": torch.full((3, height, width), 0.75), "label": 1}]).inputs["x"]
    torch.testing.assert_close(x, torch.full((1, 3, 8, 8), 0.5))


def test_crop_takes_the_centre() -> None:
    image = torch.zeros(3, 8, 24)
    image[:, :, 8:16] = 1.0
    x = cv().collate([{"image": image, "label": 1}]).inputs["x"]
    assert torch.equal(x, torch.ones(1, 3, 8, 8))


@pytest.mark.parametrize("label", [10, -1, 99])
def test_labels_outside_the_classes(label: int) -> None:
    with pytest.raises(TaskError, match=rf"label {label} is outside the classes \[0, 10\)"):
        cv().collate([{"image": torch.ones(3, 8, 8), "label": label}])


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ({"text": "hello", "label": 1}, "no image.*label, text"),
        ({"image": torch.ones(3, 8, 8)}, "no label"),
        ({"image": torch.ones(3, 8, 8), "label": None}, "the label is null"),
        ({"image": torch.ones(3, 8, 8), "label": 1.5}, r"label 1\.5 is not a class index"),
        ({"image": torch.ones(3, 8, 8), "label": "cat"}, "not a class index"),
        ({"image": torch.ones(2, 8, 8), "label": 1}, "set data.num_channels to 2"),
        ({"image": np.ones((1, 2, 8, 8)), "label": 1}, r"\[1, 2, 8, 8\]"),
        ({"image": "not an image", "label": 1}, "cannot be read from str"),
        ({"image": torch.ones(8, 8), "label": 1}, r"\[C, H, W\]"),
    ],
)
def test_samples_that_are_no_labelled_images(sample: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        cv().collate([sample])


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(TaskError, match="at least one sample"):
        cv().collate([])


def test_loss_is_cross_entropy_in_float32() -> None:
    torch.manual_seed(3)
    logits = torch.randn(6, 10, dtype=torch.bfloat16, requires_grad=True)
    y = torch.randint(0, 10, (6,))
    loss = cv().loss({"x": logits}, {"y": y})
    assert loss.dtype == torch.float32
    assert torch.equal(loss, F.cross_entropy(logits.float(), y))
    loss.backward()
    assert logits.grad is not None


def test_scores_add_up_to_accuracy() -> None:
    task = cv()
    logits = torch.eye(4, 10)
    totals = {"correct": 0.0, "count": 0.0}
    for y in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 9, 9])):
        for key, value in task.score({"x": logits}, {"y": y}).items():
            totals[key] += value
    assert totals == {"correct": 6.0, "count": 8.0}
    assert task.summarize(totals) == 0.75
    with pytest.raises(TaskError, match="no samples"):
        task.summarize({"count": 0.0})


@pytest.mark.parametrize(
    "outputs", [{"z": torch.ones(2, 10)}, {"x": torch.ones(3, 10)}, {"x": torch.ones(2, 10, 1, 1)}]
)
def test_outputs_that_do_not_fit(outputs: dict[str, torch.Tensor]) -> None:
    with pytest.raises(TaskError, match="logits"):
        cv().loss(outputs, {"y": torch.zeros(2, dtype=torch.int64)})


def test_built_by_name() -> None:
    task = get_task("cv", TaskSettings(num_classes=2, num_channels=1, img_size=4))
    batch = task.collate([{"image": np.zeros((4, 4), np.uint8), "label": 1}])
    assert batch.inputs["x"].shape == (1, 1, 4, 4)
    assert (task.loss_at, task.metric) == ("last_stage", "accuracy")


class TestEncoded:
    def test_png_bytes(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (255, 255, 255)).save(buffer, format="PNG")
        x = cv().collate([{"img": {"bytes": buffer.getvalue(), "path": None}, "label": 1}]).inputs["x"]
        assert torch.equal(x, torch.ones(1, 3, 8, 8))

    @pytest.mark.parametrize("encoded", [{"bytes": b"no image"}, {"bytes": None, "path": "/tmp/x.png"}, {}])
    def test_what_cannot_be_decoded(self, encoded: dict[str, Any]) -> None:
        with pytest.raises(TaskError, match="image"):
            cv().collate([{"img": encoded, "label": 1}])
