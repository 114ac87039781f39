"""Random changes of training images that leave their labels true, and how pixels are normalised.

What is drawn for an image depends on the seed of the run and on the image's place (epoch, index) alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distqat.errors import TaskError
from distqat.options import Options
from distqat.tasks.base import Place
from distqat.tasks.image_file import Background

Augmentation = Literal["none", "shift", "crop_flip", "resized_crop"]
Statistics = Literal["half", "mnist", "cifar10", "imagenet"]

STATISTICS: dict[Statistics, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "half": ((0.5,), (0.5,)),
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Means and standard deviations of the training images' channels, pixels in [0, 1]; half: to [-1, 1]."""

AREA = (0.08, 1.0)  # shares of the image
ASPECT = (3 / 4, 4 / 3)  # width over height
TRIES = 10


class ImageOptions(Options):
    """`data.options` of task `cv`."""

    augment: Augmentation = "none"
    """Of training images: `shift` and `crop_flip` pad by `padding` black pixels and crop anywhere, the latter
    also mirrors every second one (arXiv:1512.03385, section 4.2); `resized_crop` scales a random area of 8 to
    100 % to the whole, and mirrors (arXiv:1409.4842, section 6)."""
    padding: Annotated[int, Field(ge=0, le=256)] = 4
    """Pixels that an image may be shifted by, in each direction."""
    background: Background = "white"
    """`white`, `grey` or `black`: what images with alpha are composed on where the model takes no alpha."""
    normalize: Statistics = "half"
    """Whose means and deviations the pixels are normalised with; `half` maps them to [-1, 1]."""


def chance_at(seed: int, place: Place) -> np.random.RandomState:
    """Random numbers of one sample; RandomState because its streams are frozen (NEP 19)."""
    parts = (seed, seed >> 32, *place)
    return np.random.RandomState([part & 0xFFFFFFFF for part in parts])


def shifted(image_CHW: Tensor, padding: int, chance: np.random.RandomState) -> Tensor:
    """The image moved by up to `padding` pixels each way, what comes in is black; the same size."""
    height, width = image_CHW.shape[1:]
    top, left = (int(chance.randint(2 * padding + 1)) for _ in range(2))
    padded_CHW = F.pad(image_CHW, [padding] * 4)
    return padded_CHW[:, top : top + height, left : left + width]


def mirrored(image_CHW: Tensor, chance: np.random.RandomState) -> Tensor:
    """Left and right swapped, or not."""
    return image_CHW.flip(2) if chance.randint(2) else image_CHW


def resized_crop(image_CHW: Tensor, size: int, chance: np.random.RandomState) -> Tensor:
    """A random area of a random aspect, scaled to [C, size, size]; the centre where none fits."""
    height, width = image_CHW.shape[1:]
    high, wide = min(height, width), min(height, width)
    top, left = (height - high) // 2, (width - wide) // 2
    for _ in range(TRIES):
        area = chance.uniform(*AREA) * height * width
        aspect = np.exp(chance.uniform(*np.log(ASPECT)))
        tall, broad = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < tall <= height and 0 < broad <= width:
            high, wide = tall, broad
            top, left = (int(chance.randint(free + 1)) for free in (height - high, width - wide))
            break
    area_CHW = image_CHW[:, top : top + high, left : left + wide]
    return F.interpolate(area_CHW[None], (size, size), mode="bilinear", antialias=min(high, wide) > size)[0]


def statistics(name: Statistics, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation, each [C, 1, 1]. Raises TaskError where there is not one for each channel."""
    means, deviations = STATISTICS[name]
    if len(means) not in (1, channels):
        raise TaskError(
            f"data.options.normalize: {name!r} is for images of {len(means)} channels; "
            f"data.num_channels is {channels}"
        )
    mean, deviation = (torch.tensor(values).expand(channels)[:, None, None] for values in (means, deviations))
    return mean, deviation
