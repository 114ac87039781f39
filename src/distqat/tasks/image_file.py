"""Pictures as Pillow reads them to numbers in [0, 1]: orientation, alpha, and a range for every mode."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from distqat.errors import TaskError
from distqat.tasks.pixel_ranges import Array, in_bytes, in_unit_range

Background = Literal["white", "grey", "black"]
GREYS: dict[Background, int] = {"white": 255, "grey": 128, "black": 0}
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels of the model
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 258  # tags of EXIF and of TIFF
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""What Pillow's readers raise for files that are cut short or damaged."""

TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 3),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}
"""From how a picture is stored to how it is upright, by its EXIF orientation."""


def decoded(data: bytes) -> Any:
    """The (first) picture of an image file, decoded to its end. Raises TaskError."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise TaskError("encoded images need Pillow; pip install pillow") from None
    if not data:
        raise TaskError("an image is empty: 0 bytes")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        raise TaskError(f"it is not an image that Pillow knows; it begins with {data[:8]!r}") from None
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise TaskError(f"an image of {len(data)} bytes cannot be decoded: {error}") from error
    return image


def numbers_of(image: Any, channels: int, background: Background) -> Array:
    """A PIL image, upright, as float32 [H, W] or [H, W, C] in [0, 1].

    Colours are brought to what the model's `channels` say (1: grey, 3, 4: with alpha); alpha that it does not
    take is composed on `background`. Raises TaskError for numbers whose range is not known.
    """
    turn = TURNS.get(orientation(image))
    try:
        numbers = _numbers(image, channels, background)
    except UNREADABLE as error:
        raise TaskError(f"an image of mode {image.mode} cannot be read: {error}") from error
    return numbers if turn is None else turn(numbers)


def orientation(image: Any) -> int:
    """How the picture is to be turned, 1 to 8, from EXIF or XMP; 1, upright, where they cannot be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (*UNREADABLE, TypeError, AttributeError):
        return 1  # damaged notes beside a picture that is whole
    return found if isinstance(found, int) else 1


def _numbers(image: Any, channels: int, background: Background) -> Any:
    if image.mode.startswith("I;16"):
        numbers = np.asarray(image).astype(np.float32) / (2 ** _bits(image) - 1)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, widened by Pillow
        numbers = np.asarray(image).astype(np.float32) / 65535
    elif image.mode == "I":
        numbers = in_bytes(np.asarray(image))
    elif image.mode == "F":
        numbers = in_unit_range(np.asarray(image))
    else:
        return np.asarray(_flat(image, channels, background)).astype(np.float32) / 255
    if channels != 4:
        return numbers
    return np.stack([numbers, numbers, numbers, np.ones_like(numbers)], axis=-1)


def _bits(image: Any) -> int:
    """Bits of a grey picture of more than 8: a TIFF may have 12."""
    told = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, 16)
    bits = told[0] if isinstance(told, tuple) else told
    return bits if isinstance(bits, int) and 8 < bits <= 16 else 16


def _flat(image: Any, channels: int, background: Background) -> Any:
    """An image of 8-bit channels in the mode that the model takes; the mode itself where none fits."""
    from PIL import Image

    wanted = MODES.get(channels)
    if image.mode == "1":
        image = image.convert("L")
    if wanted is None:
        return image.convert("RGB") if image.mode == "P" else image
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if wanted != "RGBA" and (image.mode in ALPHA_MODES or "transparency" in image.info):
        ground = Image.new("RGBA", image.size, (GREYS[background],) * 3 + (255,))
        image = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    elif image.mode not in ("L", *ALPHA_MODES) and wanted != "RGBA":
        image = image.convert("RGB")
    return image.convert(wanted)
