"""Waveforms to frames: how many there are, which are real, and log-mel energies in place of convolutions.

A front end is a chain of windows (kernel, stride), in samples and then in frames. A frame is real where its
whole window lies in real samples, so no real frame ever sees padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Windows = Sequence[tuple[int, int]]
"""Kernel and stride of one reduction after the other."""

MEL_FLOOR = 1e-3  # of energies whose mean is of the order of 10: some 40 dB below speech


def frame_counts(lengths_B: Tensor, windows: Iterable[tuple[int, int]]) -> Tensor:
    """Real frames behind `windows`, int64 [B], at least one."""
    for kernel, stride in windows:
        lengths_B = torch.div(lengths_B - kernel, stride, rounding_mode="floor") + 1
    return lengths_B.clamp_min(1)


def field_of(windows: Windows) -> int:
    """How many samples one frame behind all windows sees."""
    samples, step = 1, 1
    for kernel, stride in windows:
        samples += (kernel - 1) * step
        step *= stride
    return samples


def real_frames(lengths_B: Tensor, count: int) -> Tensor:
    """Whether each of `count` frames is real, bool [B, T]."""
    return torch.arange(count, device=lengths_B.device) < lengths_B[:, None]


def fitted(x_BL: Tensor, lengths_B: Tensor, field: int) -> Tensor:
    """Padding cut down to the longest of the batch, but no shorter than `field` samples."""
    if not lengths_B.is_meta and not torch.compiler.is_exporting():  # where values are not known
        x_BL = x_BL[:, : max(int(lengths_B.max()), field)]
    return F.pad(x_BL, (0, max(0, field - x_BL.shape[1])))


def standardised(x_BCT: Tensor, lengths_B: Tensor, eps: float) -> Tensor:
    """Mean 0 and variance 1 per sample and channel over the real frames; float32."""
    x_BCT = x_BCT.float()
    real_B1T = real_frames(lengths_B, x_BCT.shape[2])[:, None]
    count_B11 = lengths_B[:, None, None]
    mean_BC1 = (x_BCT * real_B1T).sum(dim=2, keepdim=True) / count_B11
    centred_BCT = (x_BCT - mean_BC1) * real_B1T
    variance_BC1 = centred_BCT.square().sum(dim=2, keepdim=True) / count_B11
    return centred_BCT * torch.rsqrt(variance_BC1 + eps)


def convolved(extractor: Any, x_BL: Tensor, lengths_B: Tensor) -> Tensor:
    """The convolutions of transformers' Wav2Vec2FeatureEncoder, [B, C, T].

    Group norm averages over time: here over real frames, where transformers' own forward averages over the
    padding too, so that there a transcript depends on the batch that a recording is in.
    """
    hidden_BCT = x_BL[:, None]
    for layer in extractor.conv_layers:
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            hidden_BCT = layer.conv(hidden_BCT)
            lengths_B = frame_counts(lengths_B, [(layer.conv.kernel_size[0], layer.conv.stride[0])])
            scaled_BCT = standardised(hidden_BCT, lengths_B, norm.eps)
            hidden_BCT = layer.activation(scaled_BCT * norm.weight[:, None] + norm.bias[:, None])
        else:
            hidden_BCT = layer(hidden_BCT)
            lengths_B = frame_counts(lengths_B, [(layer.conv.kernel_size[0], layer.conv.stride[0])])
    return hidden_BCT


class MelFrontEnd(nn.Module):
    """Log-mel energies, 25 ms every 10 ms, standardised per recording; then convolutions over frames.

    Far cheaper than convolutions over samples, and a small model learns from it at once (Davis and
    Mermelstein, 1980). Nothing of the energies is learned or kept in the state.
    """

    def __init__(self, bins: int, sampling_rate: int, widths: Sequence[int], windows: Windows) -> None:
        """`widths` are the channels of the convolutions, `windows` their kernels and strides."""
        super().__init__()
        window, hop = mel_window(sampling_rate)
        self._window, self._hop = window, hop
        self._size = 1 << (window - 1).bit_length()
        self._hann = torch.from_numpy(np.hanning(window + 2)[1:-1].astype(np.float32))
        self._filters_FM = torch.from_numpy(mel_filters(bins, self._size, sampling_rate))
        pairs = zip([bins, *widths], widths, windows, strict=False)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel, stride) for a, b, (kernel, stride) in pairs)

    def forward(self, x_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Waveforms [B, L] and their lengths in samples -> [B, C, T]."""
        energies_BMT = self.energies(x_BL)
        lengths_B = frame_counts(lengths_B, [(self._window, self._hop)])
        hidden_BCT = standardised(energies_BMT, lengths_B, 1e-5)
        for conv in self.convs:
            hidden_BCT = F.gelu(conv(hidden_BCT))
        return hidden_BCT

    def energies(self, x_BL: Tensor) -> Tensor:
        """Logarithms of mel energies, float32 [B, M, T]."""
        kind = "cpu" if x_BL.is_meta else x_BL.device.type
        with torch.autocast(kind, enabled=False):  # bf16 has too few digits for energies
            frames_BTN = x_BL.float().unfold(1, self._window, self._hop) * self._hann.to(x_BL.device)
            power_BTF = _power(frames_BTN, self._size)
            energies_BTM: Tensor = power_BTF @ self._filters_FM.to(x_BL.device)
            return (energies_BTM + MEL_FLOOR).log().transpose(1, 2)


def _power(frames_BTN: Tensor, size: int) -> Tensor:
    """Squared magnitudes of the spectra of real frames, filled up to `size`: [B, T, size // 2 + 1].

    In a traced graph as two products, since not every engine reads ONNX's DFT as it is meant.
    """
    if not torch.compiler.is_exporting():
        power_BTF: Tensor = torch.fft.rfft(frames_BTN, n=size).abs().square()
        return power_BTF
    angles_NF = np.outer(np.arange(frames_BTN.shape[-1]), np.arange(size // 2 + 1)) * (2 * np.pi / size)
    waves = (torch.from_numpy(wave(angles_NF).astype(np.float32)) for wave in (np.cos, np.sin))
    real_BTF, imaginary_BTF = (frames_BTN @ wave_NF for wave_NF in waves)
    return real_BTF.square() + imaginary_BTF.square()


def mel_window(sampling_rate: int) -> tuple[int, int]:
    """Window and hop of the energies, in samples: 25 and 10 ms."""
    return round(0.025 * sampling_rate), round(0.010 * sampling_rate)


def mel_filters(bins: int, size: int, sampling_rate: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Triangles [size // 2 + 1, bins] on the mel scale (O'Shaughnessy, 1987), 50 hertz to half the rate."""
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (50.0, sampling_rate / 2))
    corners = 700 * (10 ** (np.linspace(lowest, highest, bins + 2) / 2595) - 1)
    hertz_F1 = np.linspace(0, sampling_rate / 2, size // 2 + 1)[:, None]
    rising = (hertz_F1 - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hertz_F1) / (corners[2:] - corners[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return np.asarray(triangles / np.maximum(triangles.sum(axis=0), 1e-9), dtype=np.float32)
