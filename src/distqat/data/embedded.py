"""Data sets that come with an installed package, so that training needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from distqat.data.options import DataOptions
from distqat.data.order import permutation
from distqat.data.source import Item, parse_place
from distqat.errors import DataError
from distqat.tasks.base import Sample

SPLIT_SEED = 1797  # fixed: the held-out part must not depend on the run's seed
HELDOUT_SHARE = 0.2


class EmbeddedSource:
    """Samples that lie in memory, in a new order every epoch."""

    def __init__(self, name: str, train: Sequence[Sample], heldout: Sequence[Sample], *, seed: int) -> None:
        self.name = name
        self.seed = seed
        self._train = train
        self._heldout = heldout
        self._epoch = 0
        self._index = 0
        self._order = permutation(seed, 0, 0, len(train))

    @property
    def order(self) -> str:
        return f"{self.name} seed={self.seed} samples={len(self._train)}"

    def take(self, count: int) -> list[Item]:
        if self._index == len(self._train):
            self._go_to(self._epoch + 1, 0)
        chosen = self._order[self._index : self._index + count]
        items = [Item(self._epoch, self._index + i, self._train[at]) for i, at in enumerate(chosen)]
        self._index += len(items)
        return items

    def state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "index": self._index}

    def restore(self, state: Mapping[str, Any]) -> None:
        epoch, index = parse_place(state)
        if index > len(self._train):
            raise DataError(
                f"{self.name} has {len(self._train)} training samples; position {index} is outside"
            )
        self._go_to(epoch, index)

    def heldout(self) -> Iterable[Sample]:
        return self._heldout

    def _go_to(self, epoch: int, index: int) -> None:
        if epoch != self._epoch:
            self._order = permutation(self.seed, epoch, 0, len(self._train))
        self._epoch, self._index = epoch, index


def _digits(img_size: int, num_channels: int) -> list[Sample]:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 0..16, as {"image": [C, S, S], "label"}.

    From the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
    """
    images, labels = _digits_table()
    x_B1HW = torch.from_numpy(np.asarray(images, dtype=np.float32)).view(-1, 1, 8, 8) / 16
    if img_size != 8:
        x_B1HW = F.interpolate(x_B1HW, (img_size, img_size), mode="bilinear", antialias=img_size < 8)
    x_BCHW = x_B1HW.expand(-1, num_channels, -1, -1)  # a view: the channels share their memory
    return [{"image": x, "label": int(y)} for x, y in zip(x_BCHW, labels, strict=True)]


def _digits_table() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
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


EMBEDDED: dict[str, Callable[[int, int], list[Sample]]] = {"digits": _digits}
"""Loaders `(img_size, num_channels) -> samples` of the embedded sets."""


def check_split(options: DataOptions) -> None:
    """DataError for a split or a configuration that no embedded set has."""
    if options.dataset_split != "train" or options.dataset_config is not None:
        raise DataError(
            f"the embedded data set {options.dataset_name!r} has one split, 'train', and no configurations; "
            "its held-out part is used for evaluation by itself"
        )


def open_embedded(options: DataOptions, *, seed: int) -> EmbeddedSource:
    """The embedded set that `options` names, cut into a training and a fixed held-out part."""
    name = options.dataset_name
    check_split(options)
    samples = EMBEDDED[name](options.img_size, options.num_channels)
    shuffled = permutation(SPLIT_SEED, 0, 0, len(samples))
    cut = int(len(samples) * HELDOUT_SHARE)
    heldout = [samples[i] for i in shuffled[:cut]]
    return EmbeddedSource(name, [samples[i] for i in shuffled[cut:]], heldout, seed=seed)
