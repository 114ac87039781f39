"""One decoder for pictures of every kind: the numbers that a person expects, or a refusal that says why."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from distqat.errors import TaskError
from distqat.tasks.image_decoder import picture

SIDE = 8
RAMP = np.arange(SIDE * SIDE, dtype=np.float64).reshape(SIDE, SIDE) / (SIDE * SIDE - 1)
"""Values from 0 to 1, all of them different: tells orientation and range."""


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def grey(values: np.ndarray[Any, Any] = RAMP, scale: int = 255, dtype: Any = np.uint8) -> Image.Image:
    return Image.fromarray((values * scale).round().astype(dtype))


def near_the_ramp(found: torch.Tensor, tolerance: float = 0.003) -> None:
    assert found.dtype == torch.float32
    assert found.shape[1:] == (SIDE, SIDE)
    for channel in found[:3]:
        assert np.abs(channel.numpy() - RAMP).max() < tolerance


BIG_ENDIAN = Image.frombytes("I;16B", (SIDE, SIDE), (RAMP * 65535).round().astype(">u2").tobytes())
NOISE = Image.effect_noise((64, 64), 90)
RGB = grey().convert("RGB")
OPAQUE = grey().convert("RGBA")

FILES: dict[str, bytes] = {
    "8 bit": encoded(grey()),
    "16 bit PNG": encoded(grey(scale=65535, dtype=np.uint16)),
    "16 bit TIFF": encoded(grey(scale=65535, dtype=np.uint16), "TIFF"),
    "16 bit big endian TIFF": encoded(BIG_ENDIAN, "TIFF"),
    "16 bit PGM": b"P5 8 8 65535\n" + (RAMP * 65535).round().astype(">u2").tobytes(),
    "10 bit PGM": b"P5 8 8 1023\n" + (RAMP * 1023).round().astype(">u2").tobytes(),
    "float TIFF": encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "32 bit TIFF of 8 bit": encoded(grey(dtype=np.int32), "TIFF"),
    "palette PNG": encoded(grey().convert("P")),
    "palette GIF": encoded(grey().convert("P"), "GIF"),
    "grey with alpha": encoded(grey().convert("LA")),
    "colours": encoded(RGB),
    "colours with alpha": encoded(OPAQUE),
    "WebP": encoded(RGB, "WEBP", lossless=True),
    "BMP": encoded(RGB, "BMP"),
    "CMYK TIFF": encoded(RGB.convert("CMYK"), "TIFF"),
    "two frames": encoded(grey(), "GIF", save_all=True, append_images=[grey(1 - RAMP)]),
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", FILES)
def test_files_of_every_mode_give_the_same_picture(kind: str, channels: int) -> None:
    for value in (FILES[kind], {"bytes": FILES[kind], "path": None}, bytearray(FILES[kind])):
        found = picture(value, channels)
        near_the_ramp(found, 0.01 if kind.startswith("palette") else 0.005)
        assert found.shape[0] in (1, channels)
        if found.shape[0] == 4:
            assert torch.equal(found[3], torch.ones(SIDE, SIDE))


IN_MEMORY = {
    **{mode: RGB.convert(mode) for mode in ("L", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")},
    "P": grey().convert("P"),
    "PA": OPAQUE.convert("LA").convert("PA"),
    "La": OPAQUE.convert("LA").convert("La"),
    "I;16": grey(scale=65535, dtype=np.uint16),
    "I": grey(dtype=np.int32),
    "F": Image.fromarray(RAMP.astype(np.float32)),
}


@pytest.mark.parametrize("mode", IN_MEMORY)
def test_images_in_memory_of_every_mode(mode: str) -> None:
    near_the_ramp(picture(IN_MEMORY[mode], 3), 0.02)


def test_one_bit_and_a_jpeg_of_four_inks() -> None:
    black_and_white = grey(RAMP.round()).convert("1")
    assert set(picture(encoded(black_and_white), 1).unique().tolist()) == {0.0, 1.0}
    ink = Image.fromarray(np.full((16, 16), 200, np.uint8)).convert("CMYK")
    assert abs(picture(encoded(ink, "JPEG", quality=95), 3).mean() - 200 / 255) < 0.02


@pytest.mark.parametrize(("kind", "how"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_upright_as_every_viewer_shows_it(turn: int, kind: str, how: dict[str, Any]) -> None:
    wide = Image.fromarray((np.arange(40).reshape(5, 8) * 6).astype(np.uint8)).convert("RGB")
    notes = Image.Exif()
    notes[0x0112] = turn
    data = encoded(wide, kind, exif=notes, **how)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L")) / 255
    assert expected.shape == ((5, 8) if turn < 5 else (8, 5))
    assert np.abs(picture(data, 1)[0].numpy() - expected).max() < 0.005


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_notes_that_are_damaged_turn_nothing() -> None:
    damaged = encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", quality=95)
    near_the_ramp(picture(damaged, 3), 0.05)


@pytest.mark.parametrize(("background", "empty"), [("white", 1.0), ("black", 0.0), ("grey", 128 / 255)])
@pytest.mark.parametrize("kind", ["RGBA", "LA"])
def test_what_is_only_in_alpha_is_seen(kind: str, background: Any, empty: float) -> None:
    """Strokes as in an icon: one colour everywhere, the form in the alpha channel."""
    ink = 0 if background != "black" else 255
    form = np.zeros((SIDE, SIDE), np.uint8)
    form[2:5, 1:7] = 255
    planes = [np.full_like(form, ink)] * (1 if kind == "LA" else 3)
    icon = Image.merge(kind, [Image.fromarray(plane) for plane in (*planes, form)])
    for channels in (1, 3):
        found = picture(encoded(icon), channels, background)
        assert torch.all(found[:, form > 0] == ink / 255)
        assert torch.all((found[:, form == 0] - empty).abs() < 1e-6)
    assert torch.equal(picture(encoded(icon), 4)[3], torch.from_numpy(form / 255).float())


def test_a_transparent_colour_of_a_palette_is_background() -> None:
    image = grey(RAMP.round()).convert("P")
    index = int(np.asarray(image)[0, 0])
    found = picture(encoded(image, transparency=index), 1)
    assert torch.equal(found, torch.ones_like(found))  # dark was transparent, bright is white


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_integers_are_pixels_of_8_bits(dtype: Any) -> None:
    numbers = (RAMP * 255).round().astype(dtype)
    for value in (numbers, numbers[:, :, None], numbers.tolist()):
        near_the_ramp(picture(value, 1))
    if dtype not in (np.uint32, np.uint64):
        near_the_ramp(picture(torch.from_numpy(numbers)[None], 1))


def test_types_that_have_a_range() -> None:
    near_the_ramp(picture((RAMP * 65535).round().astype(np.uint16), 1))
    for value in (RAMP, RAMP.astype(np.float16), RAMP.tolist(), RAMP.astype(np.float32)[:, :, None]):
        near_the_ramp(picture(value, 1))
    near_the_ramp(picture(torch.from_numpy(RAMP)[None].to(torch.bfloat16), 1), 0.01)
    assert picture(RAMP > 0.5, 1).unique().tolist() == [0.0, 1.0]
    slightly_off = picture(RAMP * 1.0005 - 0.0002, 1)  # of a resampling: brought back
    assert 0 <= float(slightly_off.min()) <= float(slightly_off.max()) <= 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (RAMP * 255, "floats lie in 0 to 1, these in 0 to 255"),
        ((RAMP * 255).tolist(), "floats lie in 0 to 1"),
        (RAMP - 0.5, "these in -0.5 to 0.5"),
        (np.where(np.eye(SIDE) > 0, np.nan, RAMP), "NaN or infinity"),
        (torch.full((1, 8, 8), torch.inf), "NaN or infinity"),
        ((RAMP * 4095).astype(np.int64), "lie in 0 to 255, these in 0 to 4095"),
        ((RAMP * 4095).astype(int).tolist(), "16 bits are known by their type"),
        (np.full((8, 8), -1), "these in -1 to -1"),
        (encoded(Image.fromarray((RAMP * 70000).astype(np.int32)), "TIFF"), "these in 0 to 70000"),
        (encoded(Image.fromarray((RAMP * 300).astype(np.float32)), "TIFF"), "floats lie in 0 to 1"),
        ([[1, 2], [3]], "rows of different lengths"),
        ([[1, None], [3, 4]], "cannot be read from list of object"),
        ("1.png", "cannot be read from str"),
        ({"bytes": None, "path": "1.png"}, "paths of images are not followed"),
        (b"", "empty: 0 bytes"),
        (b"GIF99a", "not an image that Pillow knows"),
        (FILES["colours"][:70], "cannot be decoded"),
        (encoded(NOISE, "JPEG")[:700], "cannot be decoded: image file is truncated"),
        (torch.ones(8, 8), r"\[C, H, W\]"),
        (np.ones((1, 8, 8, 1)), r"\[H, W\] or \[H, W, C\]"),
        (np.ones((0, 8)), r"not \[1, 0, 8\]"),
    ],
)  # fmt: skip
def test_what_has_no_known_range_or_cannot_be_decoded_is_refused(value: Any, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        picture(value, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_copy_that_was_interrupted_anywhere_is_refused_by_us(kind: str) -> None:
    data = encoded(NOISE.resize((24, 24)), kind)
    for cut in range(0, len(data), max(1, len(data) // 40)):
        try:
            picture(data[:cut], 1)
        except TaskError:
            continue
