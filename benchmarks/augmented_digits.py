"""A data set of augmented digits, as a plugin: what benchmarks/quantization.py trains real processes on."""

from __future__ import annotations

import torch

from benchmarks.quantization_work import augmented
from distqat.data.embedded import EmbeddedSource, held_out
from distqat.data.options import DataOptions
from distqat.data.source import Source, register_dataset
from distqat.data.sources.digits import digits

VERSIONS = 40  # of every training image


@register_dataset("augmented_digits")
def augmented_digits(options: DataOptions, seed: int) -> Source:
    """Versions of the digits' training part, made for `seed`; the held-out part is as it is."""
    samples = digits(options.img_size, options.num_channels)
    plain = held_out(options.model_copy(update={"dataset_name": "digits"}), samples, seed=seed)
    images = plain.take(len(samples))  # one epoch of the training part
    x_BCHW = torch.stack([item.sample["image"] for item in images])
    generator = torch.Generator().manual_seed(seed)
    train = []
    for _ in range(VERSIONS):
        moved_BCHW = (augmented(2 * x_BCHW - 1, generator) + 1) / 2  # the task makes -1..1 of 0..1
        train += [
            {"image": x, "label": item.sample["label"]} for x, item in zip(moved_BCHW, images, strict=True)
        ]
    return EmbeddedSource(options.dataset_name, train, list(plain.heldout()), seed=seed)
