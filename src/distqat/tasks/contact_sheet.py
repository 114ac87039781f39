"""A sheet of pictures with their labels, as a PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 64  # pictures on a sheet
COLUMNS = 8
SIDE = 112  # pixels that a picture is brought to: smaller ones by whole factors, so that each pixel is seen
LINE, GAP, FONT = 16, 6, 11
PAPER, INK = (244, 244, 244), (20, 20, 20)


def contact_sheet(images_BCHW: Tensor, labels: Sequence[str]) -> bytes:
    """Up to 64 pictures in [0, 1] row by row, each above its label.

    Of other numbers of channels than 1 and 3 the first is shown in grey, or the first three as colours.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = images_BCHW[:MOST].detach().float().cpu()
    width, height = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    cell = SIDE + GAP, SIDE + LINE + GAP
    sheet = Image.new("RGB", (width * cell[0] + GAP, height * cell[1] + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for number, image_CHW in enumerate(shown):
        left, top = GAP + number % COLUMNS * cell[0], GAP + number // COLUMNS * cell[1]
        picture = Image.fromarray(_colours(image_CHW).numpy())
        picture = picture.resize(_size(picture.width, picture.height), _filter(picture.size))
        sheet.paste(picture, (left, top))
        label = labels[number] if number < len(labels) else ""
        fitting = next(n for n in range(len(label), -1, -1) if draw.textlength(label[:n], font) <= SIDE)
        draw.text((left, top + SIDE + 1), label[:fitting], fill=INK, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _colours(image_CHW: Tensor) -> Tensor:
    """uint8 [H, W, 3]."""
    three = image_CHW[:3] if image_CHW.shape[0] >= 3 else image_CHW[:1].expand(3, -1, -1)
    return (three.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def _size(width: int, height: int) -> tuple[int, int]:
    longest = max(width, height)
    ratio = SIDE // longest if longest <= SIDE else SIDE / longest
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _filter(size: tuple[int, int]) -> int:
    from PIL import Image

    return Image.Resampling.NEAREST if max(size) <= SIDE else Image.Resampling.BILINEAR
