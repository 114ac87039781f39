"""The checker of GGUF files: read back with the `gguf` package, and run in llama.cpp where it is installed.

The decoded weights go into the model that the file is of, and its answers are compared with those of the
trained weights, both with activations in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distqat.data.text.open_tokenizer import open_tokenizer
from distqat.export import llama_cpp
from distqat.export.checker import EXPORTED, FAKE, FakeQuantized, batches
from distqat.export.export_request import ExportRequest
from distqat.export.gguf_blocks import FLOAT16_ERROR, SMALLEST_SCALE
from distqat.export.gguf_tensors import GgufTensor, put_back
from distqat.export.output_agreement import Scores, compare
from distqat.extras import require
from distqat.tasks import Sample, Task

WEIGHTS_ONLY = "quantized weights, float activations"
PLACES, TEXTS = 1000, 20
"""What llama.cpp is asked: the next token at so many places at least, and the tokens of so many texts."""


@dataclass(frozen=True)
class Compared:
    """The models that a file is held to; all take token ids."""

    fake_quantized: FakeQuantized
    trained: FakeQuantized
    """Its quantized weights, and activations in float."""
    decoded: FakeQuantized
    """The same with the weights of the file."""

    def scores(self, task: Task, samples: Sequence[Sample]) -> tuple[Scores, float]:
        """Against the trained weights, and the share of answers that are the fake-quantized model's."""
        models = {FAKE: self.fake_quantized, WEIGHTS_ONLY: self.trained, EXPORTED: self.decoded}
        scores = compare(
            task, samples, batches(task, samples), models, reference=WEIGHTS_ONLY, exported=EXPORTED
        )
        del models[WEIGHTS_ONLY]
        fake = compare(task, samples, batches(task, samples), models, reference=FAKE, exported=EXPORTED)
        return scores, fake.agreement.share


def compared(request: ExportRequest, tensors: Sequence[GgufTensor], found: Sequence[Tensor]) -> Compared:
    """`found`: the tensors of the file, decoded (`read_back`)."""
    trained, decoded = request.build(), request.build()  # they calibrate, so they compute in float
    put_back(trained, {place: each.value for each in tensors for place in each.places})
    put_back(decoded, {p: t for each, t in zip(tensors, found, strict=True) for p in each.places})
    fake, *others = (FakeQuantized(model.eval()) for model in (request.model, trained, decoded))
    return Compared(fake, *others)


def read_back(path: Path, tensors: Sequence[GgufTensor]) -> list[Tensor]:
    """The tensors of the file as floats, in the model's layout."""
    gguf: Any = require("gguf", extra="gguf", why="--format gguf")
    stored = {each.name: each for each in gguf.GGUFReader(path).tensors}
    decoded = (
        gguf.quants.dequantize(stored[each.name].data, stored[each.name].tensor_type) for each in tensors
    )
    return [each.restored(torch.tensor(array)) for each, array in zip(tensors, decoded, strict=True)]


def code_error(tensors: Sequence[GgufTensor], found: Sequence[Tensor]) -> float:
    """The largest difference of a decoded weight, as a share of it; steps too small for float16 apart."""
    worst = 0.0
    for each, decoded in zip(tensors, found, strict=True):
        if each.steps is not None:
            judged = (each.value != 0) & (each.steps >= SMALLEST_SCALE)
            apart = ((decoded - each.value) / each.value)[judged].abs()
            worst = max(worst, float(apart.max()) if apart.numel() else 0.0)
    return worst


def failures(request: ExportRequest, scores: Scores, error: float) -> Iterator[str]:
    """What reading the file back showed to be wrong."""
    share, wanted = scores.agreement.share, request.expected.agreement
    if share < wanted:
        yield f"{share:.3%} of the answers agree, {wanted:.2%} were wanted"
    if error > FLOAT16_ERROR * (1 + 2**-10):
        yield f"decoded weights differ by up to {error:.1e}, float16 explains {FLOAT16_ERROR:.1e}"


@dataclass(frozen=True)
class LlamaCppAgreement:
    """llama.cpp's answers beside those of our models."""

    release: str
    places: int
    trained: float
    """Share of places with the same likeliest token as the model with quantized weights."""
    fake_quantized: float
    texts: int
    same_tokens: int
    """Of the texts, how many it cuts into the same tokens."""

    def remark(self) -> str:
        """For the report."""
        return (
            f"llama.cpp {self.release}: of {self.places:,} next tokens, {self.trained:.3%} are those of the "
            f"{WEIGHTS_ONLY}, {self.fake_quantized:.3%} those of the fake-quantized model; "
            f"{self.same_tokens} of {self.texts} texts have the same tokens"
        )

    def failures(self, wanted: float) -> Iterator[str]:
        """What is less than the wanted share."""
        if self.trained < wanted:
            yield f"{self.trained:.3%} of llama.cpp's answers agree, {wanted:.2%} were wanted"
        if self.same_tokens < self.texts:
            yield f"llama.cpp cuts {self.texts - self.same_tokens} of {self.texts} texts into other tokens"


@torch.no_grad()
def in_llama_cpp(folder: Path, path: Path, request: ExportRequest, models: Compared) -> LlamaCppAgreement:
    """Run a file that has a tokenizer on held-out sequences. Raises ExportError where llama.cpp fails."""
    ids_NT = _sequences(request)
    texts, tokens = _texts(request, ids_NT)
    ran = llama_cpp.run(folder, path, ids_NT, texts)
    trained, fake = (
        float((_top(model, ids_NT) == ran.top_NT).double().mean())
        for model in (models.trained, models.fake_quantized)
    )
    same = sum(one == other for one, other in zip(tokens, ran.tokens, strict=True))
    return LlamaCppAgreement(ran.release, ids_NT.numel(), trained, fake, len(texts), same)


def _top(model: FakeQuantized, ids_NT: Tensor) -> Tensor:
    """The likeliest next tokens, one sequence after the other."""
    logits = (next(iter(model({"x": ids_NT[n : n + 1]}).values())) for n in range(len(ids_NT)))
    return torch.cat([each.argmax(-1) for each in logits])


def _sequences(request: ExportRequest) -> Tensor:
    """Enough of the held-out samples."""
    taken: list[Tensor] = []
    for batch in batches(request.description.task(), request.samples):
        taken.append(next(iter(batch.inputs.values())))
        if sum(ids.numel() for ids in taken) >= PLACES:
            break
    ids_NT = torch.cat(taken)
    return ids_NT[: -(-PLACES // ids_NT.shape[1])]


def _texts(request: ExportRequest, ids_NT: Tensor) -> tuple[list[str], list[list[int]]]:
    """Sequences as text, and the tokens that our tokenizer has for it."""
    tokenizer: Any = open_tokenizer(request.description.tokenizer, end_token(request.config))
    texts = [tokenizer.decode(ids.tolist()) for ids in ids_NT[:TEXTS]]
    return texts, [tokenizer.encode(text) for text in texts]


def end_token(config: Mapping[str, Any]) -> str | None:
    """`data.options.end_token` of a run."""
    end = config["data"]["options"].get("end_token")
    return None if end is None else str(end)
