"""Some blocks of a wav2vec 2.0 model of transformers, as one stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distqat.models.audio_frames import Windows, convolved, field_of, fitted, frame_counts, real_frames


class SpeechStage(nn.Module):
    """A CTC model cut down to one stage; parameters have the names of the whole model.

    `x` and `lengths` -> `{"x", "lengths"}`. The first stage takes waveforms [B, L] and their samples, and
    turns the latter into frames once; from there on hidden states [B, T, H] and lengths in frames travel. The
    last stage gives logits [B, T, V]. Masks are made from the lengths in every stage, so padding never
    changes what comes out for a real frame.
    """

    def __init__(self, model: Any, windows: Windows, *, first: bool, last: bool) -> None:
        """`model` is a Wav2Vec2ForCTC of which only the stage's own modules are left."""
        super().__init__()
        self.wav2vec2 = model.wav2vec2
        self.dropout = nn.Dropout(model.config.final_dropout)
        if last:
            self.lm_head = model.lm_head
        self._config: Any = model.config
        self._windows = tuple(windows)
        self._first, self._last = first, last
        self.span = (0, int(model.config.num_hidden_layers))  # the blocks [start, stop) of the whole model

    def forward(self, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """One microbatch."""
        encoder = self.wav2vec2.encoder
        if self._first:
            x, lengths = self._frames(x, lengths)
        real_BT = real_frames(lengths, x.shape[1])
        if self._first:
            x = self._positioned(x, real_BT)
        for block in encoder.layers:
            x = block(x, attention_mask=real_BT[:, None, None, :])
        if self._last:
            if self._config.do_stable_layer_norm:
                x = encoder.layer_norm(x)
            x = self.lm_head(self.dropout(x))
        return {"x": x, "lengths": lengths}

    def _frames(self, x_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms to projected frames [B, T, H], and how many of them are real."""
        x_BL = fitted(x_BL, lengths_B, field_of(self._windows))
        extractor = self.wav2vec2.feature_extractor
        if hasattr(extractor, "conv_layers"):
            features_BCT = convolved(extractor, x_BL, lengths_B)
        else:
            features_BCT = extractor(x_BL, lengths_B)
        hidden_BTH, _ = self.wav2vec2.feature_projection(features_BCT.transpose(1, 2))
        return hidden_BTH, frame_counts(lengths_B, self._windows)

    def _positioned(self, x_BTH: Tensor, real_BT: Tensor) -> Tensor:
        """Masked (SpecAugment, in training), padding set to zero, position added."""
        encoder, config = self.wav2vec2.encoder, self._config
        if self.training and config.apply_spec_augment:
            x_BTH = self._masked(x_BTH, real_BT)
        x_BTH = x_BTH.masked_fill(~real_BT[:, :, None], 0.0)
        x_BTH = x_BTH + encoder.pos_conv_embed(x_BTH)
        if not config.do_stable_layer_norm:
            x_BTH = encoder.layer_norm(x_BTH)
        out: Tensor = encoder.dropout(x_BTH)
        return out

    def _masked(self, x_BTH: Tensor, real_BT: Tensor) -> Tensor:
        """Spans of frames and of features hidden, drawn by torch alone (SpecAugment, arXiv:1904.08779).

        transformers draws them with numpy's, which no seed of ours reaches.
        """
        config = self._config
        if config.mask_time_prob > 0:
            hidden_BT = spans(x_BTH.shape[:2], config.mask_time_prob, config.mask_time_length, x_BTH.device)
            mark_H = self.wav2vec2.masked_spec_embed.to(x_BTH.dtype)
            x_BTH = torch.where((hidden_BT & real_BT)[:, :, None], mark_H, x_BTH)
        if config.mask_feature_prob > 0:
            shape = (x_BTH.shape[0], x_BTH.shape[2])
            hidden_BH = spans(shape, config.mask_feature_prob, config.mask_feature_length, x_BTH.device)
            x_BTH = x_BTH.masked_fill(hidden_BH[:, None, :], 0.0)
        return x_BTH


def spans(shape: Any, share: float, length: int, device: torch.device) -> Tensor:
    """bool [B, N]: a place starts a span of `length` with probability share / length; they may overlap."""
    starts_BN = (torch.rand(tuple(shape), device=device) < share / length).float()
    return F.max_pool1d(F.pad(starts_BN, (length - 1, 0))[:, None], length, stride=1)[:, 0] > 0
