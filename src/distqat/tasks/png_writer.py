"""Pictures as files: a sheet of samples, and PNG (ISO/IEC 15948) without a library."""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

GAP = 1  # pixels between the pictures of a sheet


def sheet(images_NCHW: Tensor, columns: int) -> Tensor:
    """Pictures in [-1, 1] side by side, row by row: uint8 [C, height, width]; white where there is none."""
    count, channels, height, width = images_NCHW.shape
    rows = -(-count // columns)
    sheet_CHW = torch.full((channels, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255)
    for number, image_CHW in enumerate(images_NCHW):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        grey_CHW = ((image_CHW + 1) * 127.5).round().clamp(0, 255).long()
        sheet_CHW[:, top : top + height, left : left + width] = grey_CHW
    return sheet_CHW.to(torch.uint8)


def png(image_CHW: Tensor) -> bytes:
    """A picture uint8 [1 or 3, H, W] as a PNG file."""
    channels, height, width = image_CHW.shape
    if channels not in (1, 3) or image_CHW.dtype != torch.uint8:
        raise ValueError(f"PNG takes uint8 [1 or 3, H, W], not {image_CHW.dtype} {list(image_CHW.shape)}")
    rows = image_CHW.permute(1, 2, 0).reshape(height, width * channels)
    unfiltered = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), rows], dim=1)  # filter type 0: none
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(unfiltered.numpy().tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
