"""Speech recognition: CTC over characters, and the character error rate."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distqat.errors import TaskError
from distqat.options import Options
from distqat.tasks.audio_decoder import AUDIO_COLUMNS, TEXT_COLUMNS, Waveform, waveform
from distqat.tasks.base import Batch, Sample, Task
from distqat.tasks.ctc_alphabet import BLANK, WAV2VEC2, Alphabet, collapse, edit_distance
from distqat.tasks.labels import column
from distqat.tasks.perturbations import noisy

CHARACTERS_PER_SECOND = 30  # twice what the fastest speakers reach; bounds the labels of a batch
ALIGNMENT = 64  # bytes that each of the four tensors may be filled up by
HELDOUT_SECONDS = 120.0  # of sound in one evaluation batch, padding included


class SpeechOptions(Options):
    """`data.options` of the task, and of its data sets."""

    sampling_rate: Annotated[int, Field(ge=1000, le=192_000)] = 16_000
    """Hertz that the model hears; recordings are brought to it."""
    max_seconds: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """Longer recordings are left out by the data sets, and refused by the task."""
    pad_seconds: Annotated[float, Field(gt=0, le=60)] = 0.25
    """Batches are filled up with silence to a multiple of this."""
    alphabet: str = WAV2VEC2
    """Characters in the order of the model's classes, from class 4 on."""
    prompts: Literal["auto", "recorded", "synthesised"] = "auto"
    """Which `speech_prompts`: the recorded ones where they are installed, or always the one or the other."""


class SpeechRecognition(Task):
    """Waveforms `{"x": float32 [B, L], "lengths": int64 [B]}`, text `{"y": int64 [B, U], "y_lengths": [B]}`.

    A waveform has mean 0 and variance 1 over its own samples, and silence behind them; `lengths` counts its
    samples, `y_lengths` its characters. The last stage gives logits `x` [B, T, V] and `lengths`, in frames.
    Longest first within a batch, so that the microbatches cut from it need less padding.
    """

    name = "speech"
    metric = "cer"

    def __init__(self, options: SpeechOptions, *, vocab_size: int | None = None) -> None:
        """Raises TaskError where the alphabet has more classes than the model."""
        self.options = options
        self.heldout_batch = max(1, int(HELDOUT_SECONDS / options.max_seconds))
        self.alphabet = Alphabet(options.alphabet)
        if vocab_size is not None and vocab_size < len(self.alphabet):
            raise TaskError(
                f"the model has {vocab_size} classes, the alphabet needs {len(self.alphabet)} (4 special "
                "ones and its characters); set vocab_size of the model, or data.options.alphabet"
            )

    def batch_bytes(self, count: int) -> int:
        """No batch of `count` samples takes more."""
        longest = self._padded(int(self.options.max_seconds * self.options.sampling_rate))
        return count * (4 * longest + 8 * self._most_characters + 16) + 4 * ALIGNMENT

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Decode, bring to rate, normalise, pad; TaskError for what is not a recording with a text."""
        if not samples:
            raise TaskError("a batch needs at least one sample")
        pairs = [(self._waveform(sample), self._text(sample)) for sample in samples]
        pairs.sort(key=lambda pair: -len(pair[0]))
        lengths = [len(sound) for sound, _ in pairs]
        counts = [len(text) for _, text in pairs]
        x_BL = torch.zeros(len(pairs), self._padded(lengths[0]))
        y_BU = torch.full((len(pairs), max(counts)), BLANK, dtype=torch.int64)
        for row, (sound, text) in enumerate(pairs):
            x_BL[row, : len(sound)] = torch.from_numpy(sound)
            y_BU[row, : len(text)] = torch.tensor(text)
        labels = {"y": y_BU, "y_lengths": torch.tensor(counts)}
        return Batch({"x": x_BL, "lengths": torch.tensor(lengths)}, labels, len(pairs))

    def perturbed(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Waveforms with noise of 0.3, moved by up to a tenth, each in a circle."""
        x_BL = noisy(batch.inputs["x"], 0.3, generator)
        most = max(x_BL.shape[1] // 10, 1)
        by = torch.randint(-most, most + 1, (len(x_BL),), generator=generator).tolist()
        moved = torch.stack([row_L.roll(count) for row_L, count in zip(x_BL, by, strict=True)])
        return replace(batch, inputs={**batch.inputs, "x": moved})

    def loss(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """Mean over samples of a sample's CTC loss per character, in float32, nats (Graves et al., 2006).

        A text that does not fit into its frames cannot be aligned: its loss is infinite, its gradient NaN,
        and either would end the training of everything else. Such a sample counts as zero (`zero_infinity`),
        and `score` counts it as unaligned.
        """
        logits_BTV, frames_B = _logits(outputs)
        y_BU, counts_B = labels["y"], labels["y_lengths"]
        log_probs_TBV = logits_BTV.float().log_softmax(dim=2).transpose(0, 1)
        nll_B = F.ctc_loss(
            log_probs_TBV, y_BU, frames_B, counts_B, blank=BLANK, reduction="none", zero_infinity=True
        )
        return (nll_B / counts_B.clamp_min(1)).mean()

    def score(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, float]:
        """Edits from the best path's text to the reference, its characters, unaligned samples, samples."""
        logits_BTV, frames_B = _logits(outputs)
        best, frames = logits_BTV.argmax(dim=2).tolist(), frames_B.tolist()
        totals = dict.fromkeys(("edits", "characters", "unaligned", "count"), 0.0)
        for classes, length, row, count in zip(
            best, frames, labels["y"].tolist(), labels["y_lengths"].tolist(), strict=True
        ):
            said = row[:count]
            repeats = sum(a == b for a, b in itertools.pairwise(said))
            totals["edits"] += edit_distance(collapse(classes[:length]), said)
            totals["characters"] += count
            totals["unaligned"] += float(count + repeats > length)
            totals["count"] += 1
        return totals

    def summarize(self, totals: Mapping[str, float]) -> float:
        """Character error rate: 0 where all is right; above 1 where more is made up than was said."""
        if totals.get("characters", 0.0) <= 0.0:
            raise TaskError("the error rate of no characters is not defined; the held-out part is empty")
        return totals["edits"] / totals["characters"]

    def texts(self, outputs: Mapping[str, Tensor]) -> list[str]:
        """What the model heard: the best class of each frame, collapsed."""
        logits_BTV, frames_B = _logits(outputs)
        best = logits_BTV.argmax(dim=2).tolist()
        return [
            self.alphabet.decode(collapse(row[:n])) for row, n in zip(best, frames_B.tolist(), strict=True)
        ]

    @property
    def _most_characters(self) -> int:
        return max(1, int(self.options.max_seconds * CHARACTERS_PER_SECOND))

    def _padded(self, length: int) -> int:
        step = max(1, round(self.options.pad_seconds * self.options.sampling_rate))
        return -(-length // step) * step

    def _waveform(self, sample: Sample) -> Waveform:
        options = self.options
        sound = waveform(column(sample, AUDIO_COLUMNS, "recording"), options.sampling_rate)
        longest = int(options.max_seconds * options.sampling_rate)
        if len(sound) > longest + options.sampling_rate // 100:  # another rate may round up
            raise TaskError(
                f"a recording lasts {len(sound) / options.sampling_rate:.1f} s, the longest allowed is "
                f"{options.max_seconds} s; raise data.options.max_seconds"
            )
        sound = sound[:longest]
        centred = sound - sound.mean()
        return np.asarray(centred / np.sqrt(centred.var() + 1e-7), dtype=np.float32)

    def _text(self, sample: Sample) -> list[int]:
        text = str(column(sample, TEXT_COLUMNS, "text"))
        ids = self.alphabet.encode(text)
        if not ids:
            raise TaskError(f"the text {text[:80]!r} holds no character of data.options.alphabet")
        if len(ids) > self._most_characters:
            raise TaskError(
                f"a text of {len(ids)} characters cannot be said in {self.options.max_seconds} s; "
                "raise data.options.max_seconds"
            )
        return ids


def _logits(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits, frames = outputs.get("x"), outputs.get("lengths")
    if logits is None or frames is None or logits.dim() != 3 or frames.shape != logits.shape[:1]:
        found = {name: list(tensor.shape) for name, tensor in outputs.items()}
        raise TaskError(
            f"speech needs logits x [B, T, V] and lengths [B] in frames, not {found}; does the pipeline end "
            "in wav2vec2.tail or wav2vec2.full?"
        )
    return logits, frames
