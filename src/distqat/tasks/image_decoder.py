"""Pictures of every kind to float32 [C, H, W] in [0, 1]: one decoder for training, evaluation and predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distqat.errors import TaskError
from distqat.tasks.image_file import Background, decoded, numbers_of
from distqat.tasks.pixel_ranges import Array, scaled


def picture(value: Any, channels: int, background: Background = "white") -> Tensor:
    """One picture as float32 [C, H, W] in [0, 1], for a model of `channels`.

    Args:
        value: a PIL image, the bytes of a file or `{"bytes": them}`, an array or nested lists [H, W] or
            [H, W, C], or a tensor [C, H, W].
        channels: what files and PIL images are brought to: grey, colours, colours with alpha.
        background: what alpha of those is composed on where the model takes none.

    Raises:
        TaskError: it cannot be decoded, or its numbers have no range that is known.
    """
    image_CHW = (
        _of_tensor(value) if isinstance(value, Tensor) else _of_array(_read(value, channels, background))
    )
    if image_CHW.dim() != 3 or image_CHW.numel() == 0:
        raise TaskError(f"an image has dimensions [C, H, W], not {list(image_CHW.shape)}")
    return image_CHW


def _read(value: Any, channels: int, background: Background) -> Array:
    """Numbers in [0, 1], [H, W] or [H, W, C], of anything but a tensor."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
        if value is None:
            raise TaskError("an encoded image has no bytes; paths of images are not followed")
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = decoded(bytes(value))
    if hasattr(value, "convert"):
        return numbers_of(value, channels, background)
    try:
        array = np.asarray(value)
    except ValueError as error:
        text = " ".join(str(error).split())
        raise TaskError(f"an image of nested lists has rows of different lengths: {text}") from None
    if array.dtype.kind not in "buif":
        held = f" of {array.dtype}" if isinstance(value, (list, tuple, np.ndarray)) else ""
        raise TaskError(f"an image cannot be read from {type(value).__name__}{held}")
    return scaled(array)


def _of_array(numbers: Array) -> Tensor:
    if numbers.ndim == 2:
        numbers = numbers[:, :, None]
    if numbers.ndim != 3:
        raise TaskError(f"an image array has dimensions [H, W] or [H, W, C], not {list(numbers.shape)}")
    return torch.from_numpy(np.require(numbers.transpose(2, 0, 1), requirements=["C", "W"]))


def _of_tensor(value: Tensor) -> Tensor:
    numbers = value.detach().cpu()
    if numbers.dtype == torch.float32 and numbers.numel():  # nothing to copy, mostly
        low, high = (float(bound) for bound in numbers.aminmax())
        if low >= 0 and high <= 1:
            return numbers
    return torch.from_numpy(scaled((numbers.float() if numbers.is_floating_point() else numbers).numpy()))
