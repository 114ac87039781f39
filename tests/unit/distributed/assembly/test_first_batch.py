"""A look at the first batch: the file, the names of classes, and what is said where it holds nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distqat.distributed.assembly import first_batch
from distqat.distributed.assembly.first_batch import SHEET, look_at, oddities, write_sheet
from distqat.tasks import Batch, TaskSettings, get_task

TASK = get_task("cv", TaskSettings(num_classes=2, num_channels=1, img_size=8))
GAN = get_task("image_gen", TaskSettings(num_channels=3, img_size=8))


def batch(*greys: float) -> Batch:
    return TASK.collate(
        [{"image": torch.full((1, 8, 8), grey), "label": i % 2} for i, grey in enumerate(greys)]
    )


def test_the_sheet_is_written_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    monkeypatch.setattr(
        first_batch, "contact_sheet", lambda images, given: labels.extend(given) or bytes([len(images)])
    )
    config: Any = SimpleNamespace(log_dir=str(tmp_path / "logs" / "run"))
    source: Any = SimpleNamespace(classes=("ant", "bee"))
    with caplog.at_level(logging.INFO):
        look_at(config, TASK, source, batch(0.1, 0.9, 0.5))
    assert labels == ["0 ant", "1 bee", "0 ant"]
    assert (tmp_path / "logs" / "run" / SHEET).read_bytes() == b"\3"
    assert f"as the model sees it: {tmp_path}/logs/run/{SHEET}" in caplog.text


def test_generated_pictures_have_a_sheet_too_and_tokens_have_none(tmp_path: Path) -> None:
    pictures = GAN.collate([{"image": torch.rand(3, 8, 8)} for _ in range(3)])
    path = write_sheet(GAN, pictures, (), tmp_path)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    text = get_task("llm", TaskSettings(vocab_size=9, sequence_length=4))
    assert write_sheet(text, text.collate([{"tokens": [1, 2, 3]}]), (), tmp_path / "text") is None


def test_a_sheet_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert write_sheet(TASK, batch(0.1, 0.9), (), tmp_path / "file") is None
    broken: Any = SimpleNamespace(pictures=lambda _: 1 / 0)
    assert write_sheet(broken, batch(0.1, 0.9), (), tmp_path) is None
    assert "samples.png is not written" in caplog.text
    assert "samples.png is not made: ZeroDivisionError" in caplog.text


def test_samples_that_cannot_be_told_apart_are_said() -> None:
    assert oddities(batch(0.1, 0.9)) == []
    assert oddities(batch(0.5)) == []  # one alone
    (said,) = oddities(batch(0.5, 0.5, 0.5))
    assert said.startswith("the first batch of 3 samples holds nothing but the number 0: the model can")
    image = torch.rand(1, 8, 8)
    (said,) = oddities(TASK.collate([{"image": image, "label": label} for label in (0, 1)]))
    assert said.startswith("the 2 samples of the first batch are equal and their labels are not: ")
    assert oddities(TASK.collate([{"image": image, "label": 0}] * 2)) == []  # one sample, drawn twice
    assert oddities(Batch({"x": torch.ones(2, 4, dtype=torch.int64)}, {}, 2)) == []  # tokens may be alike
