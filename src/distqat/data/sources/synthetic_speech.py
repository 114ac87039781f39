"""Sentences from a small formant synthesiser: no voice, but as hard to spell out as a clear one.

A buzz (voiced) or noise (unvoiced) goes through resonances, one set per letter, that glide from letter to
letter; pitch, tempo, loudness and resonances vary from sentence to sentence and from letter to letter. Made
by numpy's RandomState, whose streams are frozen, so every machine makes the same sentences.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distqat.tasks.base import Sample
from distqat.tasks.speech import SpeechOptions

Signal = NDArray[np.float64]

SENTENCES = 400
SEED = 2006
RATE = 8_000  # hertz
LETTER_S, GAP_S = 0.075, 0.09
GLIDE_S = 0.012  # how long resonances take from one letter to the next
VOCABULARY = (
    "after again all and answer back before begin busy call change channel close come day dial directory "
    "done door east end enter evening extension find first five follow four full go good have hear help "
    "here high hold home hour key last later leave left less line list long low mailbox main menu message "
    "minute month morning mute name new next night nine no north not now number of off on one open option "
    "order other pass phone place play please pound press quiet ready record repeat reply return right "
    "save second send seven six sorry south star start stop ten thank that the there three time today "
    "tone try two unit user valid very voice wait week welcome west when work year yes you your zero zone "
)
WORDS = tuple(VOCABULARY.split())
FORMANTS: dict[str, tuple[float, float, float]] = {  # hertz; vowels after Peterson and Barney, 1952
    "a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (280, 2250, 2890), "o": (570, 840, 2410),
    "u": (300, 870, 2240), "y": (320, 1900, 2550), "w": (290, 610, 2150), "l": (360, 1300, 2700),
    "r": (310, 1060, 1380), "m": (250, 1000, 2100), "n": (260, 1500, 2300), "v": (220, 1150, 2000),
    "z": (240, 1450, 3400), "b": (200, 800, 1750), "d": (210, 1700, 2650), "g": (230, 2050, 2350),
    "j": (260, 1800, 3100), "f": (900, 1500, 3600), "s": (2200, 2900, 3700), "h": (500, 1500, 2500),
    "p": (700, 1200, 1900), "t": (1500, 2600, 3500), "k": (1100, 1900, 2300), "c": (1300, 2100, 3000),
    "q": (900, 1700, 2000), "x": (1800, 2400, 3300),
}  # fmt: skip
UNVOICED = frozenset("fshptkcqx")
BANDWIDTHS = (90.0, 120.0, 180.0)


def utterances(options: SpeechOptions) -> list[Sample]:
    """{"audio": {"array", "sampling_rate"}, "text"}: 400 sentences of one to four words."""
    from distqat.tasks.audio_decoder import resampled

    rate = options.sampling_rate
    return [
        {"audio": {"array": resampled(sound, RATE, rate), "sampling_rate": rate}, "text": text}
        for text, sound in _sentences()
        if len(sound) / RATE <= options.max_seconds
    ]


@lru_cache(maxsize=1)
def _sentences() -> list[tuple[str, NDArray[np.float32]]]:
    random = np.random.RandomState(SEED)
    made: dict[str, NDArray[np.float32]] = {}
    while len(made) < SENTENCES:
        text = " ".join(WORDS[i] for i in random.randint(len(WORDS), size=random.randint(1, 5)))
        if text not in made:
            made[text] = spoken(text, random)
    return list(made.items())


def spoken(text: str, random: np.random.RandomState) -> NDArray[np.float32]:
    """A text of small letters and blanks as float32 [samples] at 8 kHz, in [-1, 1]."""
    tempo, voice = random.uniform(0.85, 1.2), random.uniform(0.92, 1.08)
    counts, targets, voiced, loud = [], [], [], []
    for letter in f" {text} ":
        length = GAP_S if letter == " " else LETTER_S
        counts.append(int(RATE * length * tempo * random.uniform(0.8, 1.25)))
        resonances = np.asarray(FORMANTS.get(letter, FORMANTS["h"])) * voice * random.normal(1, 0.02, 3)
        targets.append(np.minimum(resonances, 0.47 * RATE))
        voiced.append(0.0 if letter in UNVOICED else 1.0)
        loud.append(0.0 if letter == " " else (0.5 if letter in UNVOICED else 1.0))
    tracks = [_glide(np.repeat(track, counts)) for track in (*np.asarray(targets).T, voiced, loud)]
    excitation = _excitation(tracks[3], random.uniform(90, 210), random)
    sound = sum(
        _resonance(excitation, track, width) / (place + 1)
        for place, (track, width) in enumerate(zip(tracks[:3], BANDWIDTHS, strict=True))
    )
    noisy = np.asarray(sound) * tracks[4]
    noisy = noisy / (np.abs(noisy).max() + 1e-9) + random.normal(0, 0.004, len(noisy))
    return np.asarray(noisy * random.uniform(0.3, 0.9), dtype=np.float32)


def _excitation(voiced: Signal, pitch: float, random: np.random.RandomState) -> Signal:
    """A falling buzz where `voiced` is 1, noise where it is 0."""
    falling = pitch * np.linspace(1.1, 0.9, len(voiced)) * (1 + 0.02 * np.sin(np.arange(len(voiced)) / 400))
    phase = np.cumsum(falling / RATE) % 1.0
    pulses = np.where(np.diff(phase, prepend=0.0) < 0, 1.0, 0.0)
    return voiced * pulses * 8 + (1 - voiced) * random.normal(0, 1, len(voiced))


def _resonance(signal: Signal, hertz: Signal, width: float) -> Signal:
    """A resonance that moves, as its bank: the signal demodulated, smoothed, and brought back up."""
    turn = np.exp(-2j * np.pi * np.cumsum(hertz) / RATE)
    decay = np.exp(-np.pi * width / RATE * np.arange(int(RATE / width * 2)))
    smooth = _convolved(signal * turn, decay)
    return np.asarray((smooth * np.conj(turn)).real)


def _glide(track: Signal) -> Signal:
    window = np.hanning(int(GLIDE_S * RATE) + 2)[1:-1]
    padded = np.pad(track, (len(window) // 2, len(window) - 1 - len(window) // 2), mode="edge")
    return np.asarray(np.convolve(padded, window / window.sum(), mode="valid"))


def _convolved(signal: NDArray[Any], kernel: Signal) -> NDArray[Any]:
    """Causal convolution by FFT, as long as the signal."""
    size = -(-(len(signal) + len(kernel)) // 512) * 512
    product = np.fft.fft(signal, size) * np.fft.fft(kernel, size)
    return np.asarray(np.fft.ifft(product)[: len(signal)])
