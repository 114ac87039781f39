"""Run an exported file on one image, text or recording, as its own description says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distqat.data.reading_errors import batch_of
from distqat.data.rows import Row
from distqat.data.sources.file_readers import text_lines
from distqat.errors import DataError, ExportError
from distqat.export.file_description import FileDescription
from distqat.export.onnx.onnx_graph import Array
from distqat.export.onnx.ort_session import OrtSession
from distqat.export.onnx_export import MODEL
from distqat.tasks import Batch, Sample

IMAGES, SOUNDS = (".png", ".jpg", ".jpeg", ".bmp", ".npy"), (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class Answer:
    """One answer and how sure the model is, in [0, 1]; a transcript has no number."""

    text: str
    share: float | None = None


class Predictor:
    """A loaded file. Raises ExportError for one that cannot be used."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():  # of one format, or of `distqat export --all`
            path = next((p for p in (path / MODEL, path / "onnx-int8" / MODEL) if p.is_file()), path / MODEL)
        if not path.is_file():
            raise ExportError(
                f"{path} is not a file; give the .onnx file of distqat export, or its folder (files of other "
                "formats are for other programs)"
            )
        self._session = OrtSession(path)
        self.description = FileDescription.from_metadata(self._session.metadata, str(path))
        self._task: Any = self.description.task()

    def answers(self, given: str, top: int) -> list[Answer]:
        """The best answers for a file, or for the text itself; best first."""
        kind = self.description.task_type
        if kind == "cv":
            return self._classes(given, top)
        if kind in ("llm", "nlp"):
            return self._next_tokens(given, top)
        if kind == "speech":
            return self._heard(given)
        raise ExportError(f"a model of the task {kind!r} takes neither an image, a text nor a recording")

    def _classes(self, given: str, top: int) -> list[Answer]:
        image = _image(Path(given), self.description.settings.num_channels)
        batch = self._batch({"image": image, "label": 0}, given)
        logits = self._run({name: tensor.numpy() for name, tensor in batch.inputs.items()})
        labels = self.description.labels
        return [
            Answer(labels[i] if i < len(labels) else f"class {i}", share)
            for i, share in _best(logits.reshape(-1), top)
        ]

    def _next_tokens(self, given: str, top: int) -> list[Answer]:
        from distqat.data.text.open_tokenizer import open_tokenizer

        path = Path(given)
        text = "".join(text_lines(path)) if path.suffix == ".txt" and path.is_file() else given
        tokenizer: Any = open_tokenizer(self.description.tokenizer)
        length = self.description.settings.sequence_length
        ids = tokenizer.encode(text)[-length:]
        if not ids:
            raise ExportError("the text is empty; the model goes on with a text")
        x_1T = np.zeros((1, length), dtype=np.int64)  # behind the text: no place looks ahead
        x_1T[0, : len(ids)] = ids
        logits = self._run({self._session.inputs[0]: x_1T})
        return [
            Answer(repr(tokenizer.decode([i])), share) for i, share in _best(logits[0, len(ids) - 1], top)
        ]

    def _heard(self, given: str) -> list[Answer]:
        path = Path(given)
        try:
            sample: Sample = {"audio": {"bytes": path.read_bytes()}, "text": "E"}  # a text that is not used
        except OSError as error:
            raise ExportError(f"{path} cannot be read: {error.strerror}") from error
        batch = self._batch(sample, given)
        found = self._session.run({name: batch.inputs[name].numpy() for name in self._session.inputs})
        names = ["x", *(name.removesuffix("_out") for name in list(found)[1:])]
        outputs = {n: torch.from_numpy(a) for n, a in zip(names, found.values(), strict=True)}
        return [Answer(text) for text in self._task.texts(outputs)]

    def _batch(self, sample: Sample, given: str) -> Batch:
        """As in training. Raises ExportError with the name of the file."""
        try:
            return batch_of(self._task, [Row(sample, given)])
        except DataError as error:
            raise ExportError(str(error)) from error

    def _run(self, inputs: dict[str, Array]) -> Array:
        return next(iter(self._session.run(inputs).values()))


def _image(path: Path, channels: int) -> Any:
    """The bytes of an image file, or the array of an .npy file, for a model that takes so many channels."""
    try:
        if path.suffix == ".npy":
            return _fitting(np.load(path, allow_pickle=False), path, channels)
        return {"bytes": path.read_bytes()}
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{path} is not an image ({', '.join(IMAGES)}) that can be read: {error}"
        ) from error


def _fitting(array: Array, path: Path, channels: int) -> Array:
    """An array [H, W] or [H, W, C] itself; ExportError for one whose C is not the model's."""
    if array.ndim == 3 and array.shape[2] not in (1, channels):
        takes = "[height, width]" if channels == 1 else f"[height, width, {channels}]"
        raise ExportError(
            f"{path} is an array {list(array.shape)} of {array.shape[2]} channels, and the model takes "
            f"{channels}; give an array {takes}, or a png, jpg or bmp, whose colours are converted"
        )
    return array


def _best(logits: Array, top: int) -> list[tuple[int, float]]:
    """Indices and softmax shares of the `top` largest."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    shares = shifted / shifted.sum()
    order = np.argsort(-shares, kind="stable")[:top]
    return [(int(i), float(shares[i])) for i in order]
