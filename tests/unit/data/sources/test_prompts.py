"""Spoken prompts: which are taken, and that the synthesised ones are the same everywhere."""

from __future__ import annotations

import gzip
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.data.source import Source
from distqat.data.sources import prompts
from distqat.data.sources.synthetic_speech import spoken, utterances
from distqat.errors import DataError
from distqat.tasks import TaskSettings, get_task
from distqat.tasks.speech import SpeechOptions

OPTIONS = {"sampling_rate": 8000, "max_seconds": 4.0}
FIRST = [("home", 4684, 0.0908), ("order week call", 9503, 0.0719), ("thank reply", 7597, 0.0818)]
TEXTS = """\
; a comment: of the file
activated: Activated.
again: activated!
beep: [a simple beep tone]
call/number: Call number 12.
gone: Gone.
greeting: Thank you.  (tone)
hold/on: Please hold on.
long: A very long prompt.
one: Press 1 now.
rest: The rest of it.
star: Press * now
two: Press 2 now.
"""


def open_prompts(seed: int = 0, **options: Any) -> Source:
    given = {"dataset_name": "speech_prompts", "task_type": "speech", "options": {**OPTIONS, **options}}
    return open_source(DataOptions.model_validate(given), seed=seed)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [line.partition(":")[0] for line in TEXTS.splitlines() if not line.startswith((";", "gone"))]
    for count, name in enumerate(names, 1):
        path = tmp_path / "sounds" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            length = 40_000 if name == "long" else 800 * count
            file.writeframes(np.full(length, 100 * count, dtype="<i2").tobytes())
        path.write_bytes(buffer.getvalue())
    transcripts = tmp_path / "texts.gz"
    transcripts.write_bytes(gzip.compress(TEXTS.encode()))
    monkeypatch.setattr(prompts, "SOUNDS", tmp_path / "sounds")
    monkeypatch.setattr(prompts, "TRANSCRIPTS", transcripts)


@pytest.mark.usefixtures("installed")
def test_recordings_of_what_is_said_once_and_short_enough() -> None:
    source = open_prompts()
    taken = [*(item.sample for item in source.take(10)), *source.heldout()]
    texts = {"Activated.", "Thank you.", "Please hold on.", "Press 1 now.", "The rest of it.", "Press 2 now."}
    assert {sample["text"] for sample in taken} == texts
    assert source.order == "speech_prompts recorded max_seconds=4.0 seed=0 samples=5"
    by_text = {sample["text"]: sample["audio"] for sample in taken}
    assert len(by_text["Activated."]["array"]) == 800
    assert set(source.left_out[0].reasons) <= {
        "without words",
        "with numbers or signs whose reading is not written out",
        "without a recording",
        "recorded twice",
        "longer than 4 s (data.options.max_seconds)",
    }
    assert source.left_out[0].read - source.left_out[0].count == 6
    assert by_text["Activated."]["array"][0] == pytest.approx(100 / 32768)
    twice = open_prompts(sampling_rate=16_000).take(1)[0].sample["audio"]
    assert twice["sampling_rate"] == 16_000


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any) -> None:
    monkeypatch.setattr(prompts, "SOUNDS", tmp_path / "none")
    with pytest.raises(DataError, match="apt-get install asterisk-core-sounds-en"):
        open_prompts(prompts="recorded")
    with caplog.at_level("INFO"):
        source = open_prompts()
    assert "400 synthesised sentences" in caplog.text
    assert "synthesised" in source.order
    assert len(list(source.heldout())) == 80
    for wrong, said in (({"rate": 8000}, "no key 'rate'"), ({"max_seconds": 0.01}, "raise max_seconds")):
        with pytest.raises(DataError, match=said):
            open_prompts(**wrong)


def test_the_held_out_part_does_not_depend_on_the_seed() -> None:
    one, other = (open_prompts(seed, prompts="synthesised") for seed in (1, 2))
    held = [sample["text"] for sample in one.heldout()]
    assert held == [sample["text"] for sample in other.heldout()]
    first, again = ([i.sample["text"] for i in source.take(320)] for source in (one, other))
    assert first != again
    assert sorted(first) == sorted(again)
    assert not set(first) & set(held)


def test_synthesised_speech_is_the_same_everywhere_and_a_batch() -> None:
    samples = utterances(SpeechOptions.model_validate(OPTIONS))
    sound = samples[0]["audio"]["array"]
    assert 0.2 < np.abs(sound).max() <= 1.0
    assert len({sample["text"] for sample in samples}) == 400
    for sample, (text, length, loudness) in zip(samples, FIRST, strict=False):
        array = sample["audio"]["array"]
        assert (sample["text"], len(array)) == (text, length)
        assert np.sqrt(np.mean(array**2)) == pytest.approx(loudness, abs=1e-4)
    batch = get_task("speech", TaskSettings(options=OPTIONS)).collate(samples[:4])
    assert batch.inputs["x"].isfinite().all()


def test_letters_sound_different_and_alike_each_time() -> None:
    """The average spectrum of a letter is nearer to another one of it than to any other letter."""

    def spectrum(letter: str, seed: int) -> Any:
        sound = spoken(letter * 6, np.random.RandomState(seed))[1500:4500]
        power = np.abs(np.fft.rfft(sound, 4096)) ** 2
        return np.log(np.convolve(power, np.ones(100), mode="same")[50::100])

    letters = "aeisfmt"
    known = {letter: spectrum(letter, 1) for letter in letters}
    for letter in letters:
        heard = spectrum(letter, 2)
        heard, distances = heard - heard.mean(), {}
        for other, reference in known.items():
            distances[other] = np.abs(heard - (reference - reference.mean())).mean()
        assert min(distances, key=lambda name: float(distances[name])) == letter
