"""Causal language modelling: cross-entropy of the next token, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distqat.errors import TaskError
from distqat.tasks.base import Batch, Sample, Task
from distqat.tasks.labels import whole
from distqat.tasks.perturbations import mixed_tokens
from distqat.tasks.soft_labels import divergence

TOKEN_COLUMNS = ("tokens", "input_ids")
NO_LABEL = -100  # what cross_entropy leaves out


class LanguageModelling(Task):
    """Tokens `{"x": int64 [B, T]}`, those one place on as labels `{"y": int64 [B, T]}`, logits `[B, T, V]`.

    A sample holds up to T + 1 token ids (column `tokens` or `input_ids`): all but the last are read, all but
    the first are predicted. A shorter one is filled up at its end; places without a next token have the label
    -100 and count for nothing. Every sample weighs the same in the loss, so that microbatches add up to it.
    """

    name = "llm"
    metric = "perplexity"

    def __init__(self, *, vocab_size: int | None = None, sequence_length: int = 128) -> None:
        self.vocab_size = vocab_size
        self.sequence_length = sequence_length

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Cut or fill up to the sequence length; TaskError for what is not a sequence of known tokens."""
        if not samples:
            raise TaskError("a batch needs at least one sample")
        length = self.sequence_length
        x_BT = torch.zeros(len(samples), length, dtype=torch.int64)
        y_BT = torch.full((len(samples), length), NO_LABEL, dtype=torch.int64)
        for row, sample in enumerate(samples):
            tokens = self._tokens(sample)[: length + 1]
            count = len(tokens) - 1
            x_BT[row, :count] = tokens[:-1]
            y_BT[row, :count] = tokens[1:]
        return Batch({"x": x_BT}, {"y": y_BT}, len(samples))

    def perturbed(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Random tokens, and tokens of the text in another order, in turns."""
        x_BT = batch.inputs["x"]
        known = self.vocab_size or int(x_BT.max()) + 1
        return replace(batch, inputs={"x": mixed_tokens(x_BT, known, generator)})

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Mean over samples of a sample's mean cross-entropy, in float32, nats per token."""
        nll_BT, seen_BT = _surprise(outputs, labels)
        return (nll_BT.sum(dim=1) / seen_BT.sum(dim=1).clamp_min(1)).mean()

    def soft_loss(
        self,
        outputs: Mapping[str, Tensor],
        teachers: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        temperature: float,
    ) -> Tensor:
        """As `loss`: over the places with a label, the mean of each sample first."""
        seen_BT = labels["y"] != NO_LABEL
        apart_BT = divergence(outputs["x"], teachers["x"], temperature) * seen_BT
        return (apart_BT.sum(dim=1) / seen_BT.sum(dim=1).clamp_min(1)).mean()

    def score(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
        """Summed cross-entropy, and the numbers of predicted tokens and of samples."""
        nll_BT, seen_BT = _surprise(outputs, labels)
        totals = {"nll": nll_BT.sum().item(), "tokens": seen_BT.sum().item(), "count": len(seen_BT)}
        return {name: float(value) for name, value in totals.items()}

    def summarize(self, totals: Mapping[str, float]) -> float:
        """Perplexity: e to the mean cross-entropy of a token."""
        if totals.get("tokens", 0.0) <= 0.0:
            raise TaskError("perplexity of no tokens is not defined; the held-out part is empty")
        mean = totals["nll"] / totals["tokens"]
        return math.exp(mean) if mean < 700 else math.inf

    def _tokens(self, sample: Sample) -> Tensor:
        value: Any = next((sample[name] for name in TOKEN_COLUMNS if sample.get(name) is not None), None)
        if value is None:
            columns = ", ".join(sorted(sample)) or "none"
            raise TaskError(
                f"a sample has no tokens: expected a column {' or '.join(TOKEN_COLUMNS)}, found: {columns}; "
                "text is cut into tokens where data.task_type is llm"
            )
        try:
            tokens = whole(torch.as_tensor(value), "tokens")
        except (ValueError, TypeError, RuntimeError) as error:
            raise TaskError(f"tokens are a list of numbers, not {str(value)[:80]}") from error
        if tokens.dim() != 1 or len(tokens) < 2:
            raise TaskError(f"a sample needs at least two tokens in a row, not {list(tokens.shape)}")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or (self.vocab_size is not None and high >= self.vocab_size):
            raise TaskError(
                f"token {high if low >= 0 else low} is outside the vocabulary of {self.vocab_size}: "
                "data.tokenizer does not belong to the model; set vocab_size of all pipeline entries to the "
                "tokenizer's number of tokens"
            )
        return tokens


def _surprise(outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every place [B, T] (0 without a label), and which places have one."""
    if "x" not in outputs or "y" not in labels:
        found = sorted(outputs), sorted(labels)
        raise TaskError(
            f"llm needs logits 'x' and labels 'y'; the last stage gave {found[0]}, labels {found[1]}"
        )
    logits_BTV, y_BT = outputs["x"], labels["y"]
    if logits_BTV.dim() != 3 or logits_BTV.shape[:2] != y_BT.shape:
        shapes = f"{list(logits_BTV.shape)} and {list(y_BT.shape)}"
        raise TaskError(
            f"llm needs logits [B, T, V] and labels [B, T], not {shapes}; does the pipeline end in a tail?"
        )
    nll = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), y_BT.flatten(), ignore_index=NO_LABEL, reduction="none"
    )
    return nll.view(y_BT.shape), y_BT != NO_LABEL
