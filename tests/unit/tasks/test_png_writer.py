"""PNG files that another decoder reads, and sheets of pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from distqat.tasks.png_writer import png, sheet


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_what_is_written_is_read_back(channels: int, mode: str) -> None:
    picture = torch.randint(0, 256, (channels, 5, 9), generator=torch.Generator().manual_seed(1)).byte()
    decoded = Image.open(io.BytesIO(png(picture)))
    decoded.load()
    assert (decoded.mode, decoded.size) == (mode, (9, 5))
    found = torch.from_numpy(np.array(decoded)).view(5, 9, channels).permute(2, 0, 1)
    assert torch.equal(found, picture)


@pytest.mark.parametrize("picture", [torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4)])
def test_other_tensors_are_refused(picture: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="PNG takes uint8"):
        png(picture)


def test_a_sheet_is_filled_row_by_row() -> None:
    images = torch.stack([torch.full((1, 2, 3), value) for value in (-1.0, 0.0, 3.0)])
    made = sheet(images, columns=2)
    assert made.shape == (1, 5, 7)
    assert made[0, 0].tolist() == [0, 0, 0, 255, 128, 128, 128]
    assert made[0, 3].tolist() == [255] * 7
    assert made.dtype == torch.uint8
