"""Handwritten digits that come with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from distqat.tasks.base import Sample


def digits(img_size: int, num_channels: int) -> list[Sample]:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 0..16, as {"image": [C, S, S], "label"}.

    From the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
    """
    images, labels = digits_table()
    x_B1HW = torch.from_numpy(np.asarray(images, dtype=np.float32)).view(-1, 1, 8, 8) / 16
    if img_size != 8:
        x_B1HW = F.interpolate(x_B1HW, (img_size, img_size), mode="bilinear", antialias=img_size < 8)
    x_BCHW = x_B1HW.expand(-1, num_channels, -1, -1)  # a view: the channels share their memory
    return [{"image": x, "label": int(y)} for x, y in zip(x_BCHW, labels, strict=True)]


def digits_table() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels and labels from scikit-learn's file; importing scikit-learn for them would take a second."""
    package = find_spec("sklearn")
    folders = list(package.submodule_search_locations or []) if package else []
    for folder in folders:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            table = np.loadtxt(path, delimiter=",", dtype=np.float32)
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images, labels
