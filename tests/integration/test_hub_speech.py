"""Recordings from a stand-in of the hub on loopback, laid out as LibriSpeech is."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.test_hub import hub, run

__all__ = ["hub"]  # the fixture

NAME = "acme/read"
TEXTS = ["SAY", "THESE WORDS", "TO ME", "AND NOT THESE", "MORE"]

CODE = """
from distqat.tasks.ctc_alphabet import Alphabet
given = dict(dataset_name="acme/read", dataset_split="train.100", task_type="speech",
             options={"sampling_rate": 8000, "max_seconds": 1.0})
source = open_source(options(**given), seed=1)
task = get_task("speech", TaskSettings(options=given["options"], vocab_size=32))
batch = task.collate([item.sample for item in drain(source, 4)])
said = [Alphabet().decode(row) for row in batch.labels["y"].tolist()]
held = [row["text"] for row in source.heldout()]
print(json.dumps([said, batch.inputs["lengths"].tolist(), held, source.state()]))
"""


def recording(seconds: float) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        tone = 8000 * np.sin(np.arange(int(16_000 * seconds)) / 9)
        file.writeframes(tone.astype("<i2").tobytes())
    return buffer.getvalue()


def parquet(rows: list[tuple[float, str]]) -> bytes:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features(
        {"file": datasets.Value("string"), "audio": datasets.Audio(16_000), "text": datasets.Value("string")}
    )
    audio = [{"bytes": recording(length), "path": None} for length, _ in rows]
    columns = {"file": [""] * len(rows), "audio": audio, "text": [text for _, text in rows]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=features.arrow_schema), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def repositories() -> dict[str, dict[str, bytes]]:
    train = [(0.2 + 0.4 * (i == 3) * 3 + 0.1 * i, text) for i, text in enumerate(TEXTS)]
    files = {
        "data/train.100-00000-of-00001.parquet": parquet(train),
        "data/validation-00000-of-00001.parquet": parquet([(0.5, "HELD"), (1.5, "OUT")]),
    }
    return {NAME: files}


def test_recordings_stream_into_batches(hub: Any, tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for split in ("train.100", "validation"):
        card += f"  - split: {split}\n    path: data/{split}-*\n"
    hub.repositories[NAME]["README.md"] = (card + "---\n").encode()
    said, lengths, held, state = run(CODE, hub.address, tmp_path)
    assert sorted(said) == sorted(text for text in TEXTS if text != "AND NOT THESE")
    assert lengths == [4800, 3200, 2400, 1600]
    assert held == ["HELD"]
    assert state == {"epoch": 0, "index": 4}
    assert json.dumps(hub.seen).count("train.100") > 0
