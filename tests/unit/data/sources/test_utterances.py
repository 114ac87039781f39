"""Recordings of a stream: what is passed on, and what is missing is said at the start."""

from __future__ import annotations

import io
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.data.rows import LeftOut
from distqat.data.sources import utterances
from distqat.data.sources.utterances import Utterances
from distqat.errors import DataError, MissingExtra
from distqat.tasks import TaskSettings, get_task

OPTIONS = {"sampling_rate": 4000, "max_seconds": 0.5}


def wav(length: int, rate: int = 8000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.full(length, length, dtype="<i2").tobytes())
    return buffer.getvalue()


def given(**more: Any) -> DataOptions:
    return DataOptions.model_validate({"task_type": "speech", "options": OPTIONS, **more})


def test_what_is_short_enough_and_has_a_text() -> None:
    rows: list[dict[str, Any]] = [
        {"audio": {"bytes": wav(4000)}, "text": "half a second"},
        {"audio": {"bytes": wav(4001)}, "text": "longer"},
        {"audio": {"bytes": wav(800)}, "text": "?!"},
        {"audio": {"bytes": wav(800)}, "text": "a" * 16},
        {"speech": {"bytes": wav(800)}, "sentence": "a" * 15},
    ]
    rows += [
        {"audio": {"bytes": wav(0)}, "text": "no sound"},
        {"audio": None, "text": "no recording"},
        {"audio": {"bytes": wav(800)}, "text": None},
    ]
    kept, account = Utterances(given()), LeftOut("rows", len(rows))
    assert [row.get("text", row.get("sentence")) for row in kept(rows, account)] == [
        "half a second",
        "a" * 15,
    ]
    assert "max_seconds=0.5" in str(kept)
    assert account.reasons == {
        "longer than 0.5 s (data.options.max_seconds)": 1,
        "whose text has no character of data.options.alphabet": 1,
        "whose text cannot be said in 0.5 s": 1,
        "without any sound": 1,
        "with null in place of a recording": 1,
        "with null in place of text": 1,
    }
    assert str(account).startswith("6 of 8 rows left out: 1 longer than 0.5 s")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, "expected columns audio or speech and text"),
        ({"audio": {"bytes": wav(8)}}, "found: audio"),
        ({"audio": {"bytes": b"RIFF0000WAVE"}, "text": "a"}, "cannot be decoded"),
    ],
)
def test_what_is_no_utterance(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(Utterances(given())([row]))


def test_a_typo_is_told() -> None:
    with pytest.raises(DataError, match="did you mean 'max_seconds'"):
        Utterances(given(options={"max_second": 1}))


def parquet(folder: Path, rows: list[tuple[bytes, str]], split: str) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features({"audio": datasets.Audio(), "text": datasets.Value("string")})
    audio = [{"bytes": data, "path": f"{i}.wav"} for i, (data, _) in enumerate(rows)]
    table = pa.table({"audio": audio, "text": [text for _, text in rows]}, schema=features.arrow_schema)
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"{split}.parquet")


def test_a_stream_of_files_ends_in_batches(tmp_path: Path) -> None:
    parquet(tmp_path / "set", [(wav(800 * n), "abc"[:n]) for n in (1, 2, 3, 6)], "train")
    parquet(tmp_path / "set", [(wav(4000), "kept"), (wav(5000), "too long")], "test")
    source = open_source(given(dataset_name=str(tmp_path / "set")), seed=0)
    samples = [source.take(1)[0] for _ in range(4)]
    assert [item.epoch for item in samples] == [0, 0, 0, 1]
    task = get_task("speech", TaskSettings(options=OPTIONS))
    batch = task.collate([item.sample for item in samples[:3]])
    assert batch.inputs["lengths"].tolist() == [1200, 800, 400]
    assert [row["text"] for row in source.heldout()] == ["kept"]
    assert "max_seconds=0.5" in source.order


def test_a_missing_extra_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utterances, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    for name, sound in (("wav", wav(800)), ("flac", b"fLaC" + bytes(40))):
        for split in ("train", "test"):
            parquet(tmp_path / name, [(sound, "a")], split)
    open_source(given(dataset_name=str(tmp_path / "wav")), seed=0)
    with pytest.raises(MissingExtra, match=r"pip install 'distqat\[speech\]'"):
        open_source(given(dataset_name=str(tmp_path / "flac")), seed=0)
