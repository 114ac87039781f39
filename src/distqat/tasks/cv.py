"""Image classification: cross-entropy and accuracy; training images may be augmented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distqat.errors import TaskError
from distqat.tasks.base import Batch, Place, Sample, Task
from distqat.tasks.image_augmentation import (
    ImageOptions,
    chance_at,
    mirrored,
    resized_crop,
    shifted,
    statistics,
)
from distqat.tasks.image_decoder import picture
from distqat.tasks.labels import class_index, column
from distqat.tasks.perturbations import moved_pictures
from distqat.tasks.soft_labels import divergence

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")


class ImageClassification(Task):
    """Images `{"x": float32 [B, C, H, W]}`, labels `{"y": int64 [B]}`, logits `{"x": [B, K]}`.

    A sample holds an image (column `image` or `img`; `images.picture` says what may be one) and a label
    (`label`, `labels` or `fine_label`). Pixels go to [-1, 1], or are normalised as the options say; samples
    to train on are augmented as they say, those of evaluation never.
    """

    name = "cv"
    metric = "accuracy"

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        num_channels: int = 3,
        img_size: int = 32,
        seed: int = 0,
        options: ImageOptions | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.num_channels = num_channels
        self.img_size = img_size
        self.seed = seed
        self.options = options or ImageOptions()
        self._mean, self._deviation = statistics(self.options.normalize, num_channels)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Decode, bring to shape, normalise; TaskError for what is not a labelled image."""
        return self._batch(samples, [None] * len(samples))

    def collate_at(self, samples: Sequence[Sample], places: Sequence[Place]) -> Batch:
        """For training: augmented as the options say, by seed and place."""
        if self.options.augment == "none":
            return self.collate(samples)
        return self._batch(samples, [chance_at(self.seed, place) for place in places])

    def _batch(self, samples: Sequence[Sample], chances: Sequence[np.random.RandomState | None]) -> Batch:
        if not samples:
            raise TaskError("a batch needs at least one sample")
        images = [
            self._image(column(sample, IMAGE_COLUMNS, "image"), chance)
            for sample, chance in zip(samples, chances, strict=True)
        ]
        labels = [self._label(column(sample, LABEL_COLUMNS, "label")) for sample in samples]
        x_BCHW = torch.stack(images).sub_(self._mean).div_(self._deviation)
        return Batch({"x": x_BCHW}, {"y": torch.tensor(labels, dtype=torch.int64)}, len(samples))

    def perturbed(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Rotated, scaled, moved and noisy; every eighth is noise alone."""
        black = (-self._mean / self._deviation).expand(self.num_channels, 1, 1)
        x_BCHW = moved_pictures(batch.inputs["x"], generator, black)
        x_BCHW[::8] = torch.randn(x_BCHW[::8].shape, generator=generator)
        return replace(batch, inputs={"x": x_BCHW})

    def pictures(self, batch: Batch) -> tuple[Tensor, list[str]]:
        """The pictures of a batch [B, C, S, S] in [0, 1], and the label of each."""
        shown = (batch.inputs["x"] * self._deviation + self._mean).clamp(0, 1)
        return shown, [str(label) for label in batch.labels["y"].tolist()]

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy in float32, whatever the precision of the logits."""
        logits_BK, y_B = _outputs(outputs, labels)
        return F.cross_entropy(logits_BK.float(), y_B)

    def soft_loss(
        self,
        outputs: Mapping[str, Tensor],
        teachers: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        temperature: float,
    ) -> Tensor:
        """Mean over samples."""
        return divergence(outputs["x"], teachers["x"], temperature).mean()

    def score(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
        """Numbers of correct answers and of samples."""
        logits_BK, y_B = _outputs(outputs, labels)
        correct = (logits_BK.argmax(dim=1) == y_B).sum().item()
        return {"correct": float(correct), "count": float(y_B.numel())}

    def summarize(self, totals: Mapping[str, float]) -> float:
        """Accuracy in [0, 1]."""
        if totals.get("count", 0.0) <= 0.0:
            raise TaskError("accuracy of no samples is not defined; the held-out part is empty")
        return totals["correct"] / totals["count"]

    def _label(self, value: Any) -> int:
        label = class_index(value)
        if label < 0 or (self.num_classes is not None and label >= self.num_classes):
            known = "" if self.num_classes is None else f" [0, {self.num_classes})"
            raise TaskError(
                f"label {label} is outside the classes{known}; "
                "set num_classes of the pipeline entries to the data set's number of classes "
                "(a label of -1 means an unlabelled split: choose another data.dataset_split)"
            )
        return label

    def _image(self, value: Any, chance: np.random.RandomState | None) -> Tensor:
        """One image to float32 [C, S, S] in [0, 1], augmented where there is chance."""
        image_CHW = picture(value, self.num_channels, self.options.background)
        channels = image_CHW.shape[0]
        if channels == 1:
            image_CHW = image_CHW.expand(self.num_channels, -1, -1)
        elif channels != self.num_channels:
            raise TaskError(f"an image has {channels} channels; set data.num_channels to {channels}")
        if chance is None:
            return _square(image_CHW, self.img_size)
        return self._augmented(image_CHW, chance)

    def _augmented(self, image_CHW: Tensor, chance: np.random.RandomState) -> Tensor:
        if self.options.augment == "resized_crop":
            return mirrored(resized_crop(image_CHW, self.img_size, chance), chance)
        moved_CHW = shifted(_square(image_CHW, self.img_size), self.options.padding, chance)
        return mirrored(moved_CHW, chance) if self.options.augment == "crop_flip" else moved_CHW


def _square(image_CHW: Tensor, size: int) -> Tensor:
    """Scale the shorter side to `size` (bilinear, smoothed when shrinking) and crop the centre."""
    height, width = image_CHW.shape[1:]
    if (height, width) == (size, size):
        return image_CHW
    ratio = size / min(height, width)
    scaled = (max(size, round(height * ratio)), max(size, round(width * ratio)))
    grown_CHW = F.interpolate(image_CHW[None], scaled, mode="bilinear", antialias=ratio < 1)[0]
    top, left = (scaled[0] - size) // 2, (scaled[1] - size) // 2
    return grown_CHW[:, top : top + size, left : left + size]


def _outputs(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if "x" not in outputs or "y" not in labels:
        found = sorted(outputs), sorted(labels)
        raise TaskError(
            f"cv needs logits 'x' and labels 'y'; the last stage gave {found[0]}, labels {found[1]}"
        )
    logits_BK, y_B = outputs["x"], labels["y"]
    if logits_BK.dim() != 2 or y_B.dim() != 1 or len(logits_BK) != len(y_B):
        shapes = f"{list(logits_BK.shape)} and {list(y_B.shape)}"
        raise TaskError(
            f"cv needs logits [B, K] and labels [B], not {shapes}; does the pipeline end in a head?"
        )
    return logits_BK, y_B
