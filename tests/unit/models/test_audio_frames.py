"""Front ends: frames are counted as convolutions make them, and none of the real ones sees padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distqat.models.audio_frames import (
    MelFrontEnd,
    field_of,
    fitted,
    frame_counts,
    mel_filters,
    mel_window,
    real_frames,
    standardised,
)

WINDOWS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3)


@given(WINDOWS, st.integers(0, 60))
def test_frames_are_those_of_convolutions(windows: list[tuple[int, int]], more: int) -> None:
    length = field_of(windows) + more
    x = torch.zeros(1, 1, length)
    for kernel, stride in windows:
        x = nn.functional.conv1d(x, torch.ones(1, 1, kernel), stride=stride)
    assert frame_counts(torch.tensor([length]), windows).tolist() == [x.shape[2]]


def test_the_field_is_what_one_frame_needs() -> None:
    assert field_of([(10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)]) == 400  # wav2vec 2.0: 25 ms
    assert frame_counts(torch.tensor([1, 400, 719, 720]), [(400, 320)]).tolist() == [1, 1, 1, 2]


def test_padding_is_cut_but_one_frame_stays() -> None:
    x = torch.ones(2, 9)
    assert fitted(x, torch.tensor([4, 6]), 3).shape == (2, 6)
    assert fitted(x, torch.tensor([1, 2]), 5).shape == (2, 5)
    short = fitted(x, torch.tensor([1, 2]), 12)
    assert short.shape == (2, 12)
    assert not short[:, 9:].any()
    assert fitted(torch.empty(2, 9, device="meta"), torch.empty(2, device="meta"), 3).shape == (2, 9)


def test_standardised_is_that_of_the_real_part() -> None:
    x, lengths = torch.randn(2, 3, 8) * 4 + 1, torch.tensor([8, 5])
    got = standardised(x, lengths, 1e-5)
    for row, length in enumerate(lengths.tolist()):
        alone = nn.functional.instance_norm(x[row : row + 1, :, :length])
        assert torch.allclose(got[row, :, :length], alone[0], atol=1e-5)
        assert not got[row, :, length:].any()
    assert real_frames(lengths, 6).sum(dim=1).tolist() == [6, 5]


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 3000.0])
def test_a_tone_is_loudest_in_the_band_that_holds_it(hertz: float) -> None:
    front = MelFrontEnd(40, 8000, [8], [(3, 2)])
    tone = torch.sin(2 * np.pi * hertz * torch.arange(4000) / 8000)
    band = int(front.energies(tone[None])[0].mean(dim=1).argmax())
    filters = mel_filters(40, 256, 8000)
    assert filters.shape == (129, 40)
    assert np.allclose(filters.sum(axis=0), 1)
    assert abs(filters[:, band].argmax() * 4000 / 128 - hertz) < 0.1 * hertz + 32


def test_energies_keep_their_digits_under_autocast() -> None:
    front, x = MelFrontEnd(20, 8000, [8], [(3, 2)]), torch.randn(1, 2000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front.energies(x), front.energies(x.float()))
        low = front.energies(x)
    assert torch.equal(low, front.energies(x))


def test_mel_frames_do_not_depend_on_padding() -> None:
    torch.manual_seed(0)
    front, x = MelFrontEnd(20, 8000, [8, 6], [(3, 2), (3, 1)]), torch.randn(1, 3000)
    windows = [mel_window(8000), (3, 2), (3, 1)]
    count = int(frame_counts(torch.tensor([2500]), windows))
    alone = front(x[:, :2500], torch.tensor([2500]))
    padded = front(torch.nn.functional.pad(x[:, :2500], (0, 700)), torch.tensor([2500]))
    assert alone.shape == (1, 6, count)
    assert torch.allclose(padded[:, :, :count], alone, atol=1e-6)
    assert not list(front.buffers())


def test_a_traced_spectrum_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    front = MelFrontEnd(20, 8000, (8,), ((3, 2),))
    x = torch.randn(2, 1000)
    expected = front.energies(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.allclose(front.energies(x), expected, atol=1e-4)
    monkeypatch.setattr(torch.fft, "rfft", None)
    front.energies(x)  # no DFT is traced
