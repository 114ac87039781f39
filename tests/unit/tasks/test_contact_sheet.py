"""The sheet of a first batch: every picture in its place, upright and with its colours."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distqat.tasks.contact_sheet import COLUMNS, GAP, LINE, MOST, SIDE, contact_sheet


def drawn(images: torch.Tensor, labels: list[str]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(contact_sheet(images, labels))))


def cell(sheet: np.ndarray[Any, Any], number: int) -> np.ndarray[Any, Any]:
    """The picture and the line below it."""
    left, top = GAP + number % COLUMNS * (SIDE + GAP), GAP + number // COLUMNS * (SIDE + LINE + GAP)
    return sheet[top : top + SIDE + LINE, left : left + SIDE]


def test_pixels_and_labels_are_in_their_places() -> None:
    images = torch.zeros(10, 3, 8, 8)
    images[9, 0, :4] = 1.0  # the tenth: red above, black below
    sheet = drawn(images, ["cat"] * 9 + [""])
    assert sheet.shape == (2 * (SIDE + LINE + GAP) + GAP, COLUMNS * (SIDE + GAP) + GAP, 3)
    tenth = cell(sheet, 9)
    assert (tenth[: SIDE // 2] == (255, 0, 0)).all()
    assert (tenth[SIDE // 2 : SIDE] == 0).all()
    assert (tenth[SIDE:] == tenth[-1, -1]).all()  # no label
    assert not (cell(sheet, 0)[SIDE:] == tenth[-1, -1]).all()


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (2, 5), (4, 300), (3, 112), (7, 1)])
def test_any_number_of_channels_and_any_size(channels: int, size: int) -> None:
    sheet = drawn(torch.full((70, channels, size, size), 0.5), [f"label {'long ' * 9}{i}" for i in range(70)])
    assert sheet.shape[0] == MOST // COLUMNS * (SIDE + LINE + GAP) + GAP
    assert tuple(cell(sheet, MOST - 1)[SIDE // 3, SIDE // 3]) == (128, 128, 128)
