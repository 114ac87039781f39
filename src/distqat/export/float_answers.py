"""What quantization does to answers: the fake-quantized model beside the same weights without quantizers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distqat.export.checker import FakeQuantized, batches
from distqat.export.joined_stages import JoinedStages
from distqat.export.output_agreement import FloatAnswers, OutputAgreement
from distqat.quant import Quantizer
from distqat.quant.quantized_embedding import RowQuantizer
from distqat.quant.token_quantizer import TokenQuantizer
from distqat.tasks import Sample, Task

MOST_SAMPLES = 256
POINTS = 1500
"""Pairs of outputs that are kept to be drawn."""


@torch.no_grad()
def float_answers(model: JoinedStages, task: Task, samples: Sequence[Sample]) -> FloatAnswers:
    """Run a settled model on some of the samples, with and without its quantizers."""
    agreement, run = OutputAgreement(), FakeQuantized(model.eval())
    pairs: list[Tensor] = []
    for batch in batches(task, samples[:MOST_SAMPLES]):
        quantized = next(iter(run(batch.inputs).values()))
        with _without_quantizers(model):
            floating = next(iter(run(batch.inputs).values()))
        agreement.add(floating, quantized, batch.labels)
        both_N2 = torch.stack([floating.flatten(), quantized.flatten()], 1).float()
        both_N2 = both_N2[both_N2.isfinite().all(1)]
        chosen = torch.randperm(len(both_N2), generator=torch.Generator().manual_seed(0))
        pairs.append(both_N2[chosen[: _share(len(samples), batch.size)]])
    points = torch.cat(pairs)[:POINTS].tolist() if pairs else []
    return FloatAnswers(agreement.share, agreement.places, tuple((x, y) for x, y in points))


def _share(samples: int, size: int) -> int:
    """How many of the points a batch of this size gives."""
    return -(-POINTS * size // min(samples, MOST_SAMPLES))


@contextlib.contextmanager
def _without_quantizers(model: nn.Module) -> Iterator[None]:
    """Quantizers give back what they are given; biases stay as int32 has them."""

    def given(_: nn.Module, args: tuple[Any, ...], __: Tensor) -> Tensor:
        tensor: Tensor = args[0]
        return tensor

    kinds = Quantizer | TokenQuantizer | RowQuantizer
    found = [child for child in model.modules() if isinstance(child, kinds)]
    handles = [child.register_forward_hook(given) for child in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
