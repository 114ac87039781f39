"""The checker: the exported file beside the fake-quantized model it came from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from distqat.data.reading_errors import batch_of
from distqat.export.agreement_report import ExportReport, Operations, Sizes
from distqat.export.engines import check_engines
from distqat.export.joined_stages import JoinedStages
from distqat.export.latency import LatencyMedians, latency
from distqat.export.layer_agreement import LayerAgreement, compare_layers, first_apart
from distqat.export.onnx.integer_products import ATTENTION
from distqat.export.onnx.onnx_model import OnnxModels
from distqat.export.onnx.openvino_session import OpenvinoSession
from distqat.export.onnx.ort_session import ExecutedOperations, OrtSession, executed
from distqat.export.onnx.trace import OPSET
from distqat.export.output_agreement import Scores, compare
from distqat.export.stress import ANSWERS, Agreed, agreed, perturbed
from distqat.tasks import Batch, Sample, Task

BATCH, TOKENS = 64, 2048
NUMBERS = 2**20
"""In the inputs of a batch of repeated samples, at most."""
FLOAT, FAKE, EXPORTED = "float", "fake-quantized", "exported"


@dataclass(frozen=True)
class Expectations:
    """What an export is held to, and how long latency is measured."""

    agreement: float = 0.999
    integer_share: float = 1.0
    latency_s: float = 2.0
    exact: bool = False
    """Biases in float: slower, and codes are those of the fake-quantized model but for ties."""
    opset: int = OPSET
    """Of ONNX files: an older one for older runtimes."""
    stress: int = ANSWERS
    """Answers on the stress set, at least; 0: none."""


@dataclass(frozen=True)
class ExportFiles:
    """Where the models are."""

    integer: Path
    float: Path


def check_onnx(
    model: JoinedStages,
    models: OnnxModels,
    files: ExportFiles,
    task: Task,
    samples: Sequence[Sample],
    *,
    source: str,
    expected: Expectations = Expectations(),
) -> ExportReport:
    """Run everything that the report says, from the files as they were written."""
    model.eval()
    integer, floating = OrtSession(files.integer), OrtSession(files.float)
    scores = compare(
        task,
        samples,
        batches(task, samples),
        {FLOAT: _Ran(floating, model), FAKE: FakeQuantized(model), EXPORTED: _Ran(integer, model)},
        reference=FAKE,
        exported=EXPORTED,
    )
    reference, stress = FakeQuantized(model), _stress(task, samples, expected)
    hard = agreed(reference, {EXPORTED: _Ran(integer, model)}, stress(), expected.stress) if stress else {}
    first = next(batches(task, samples))
    layers = compare_layers(model, OrtSession(models.probed), models.activations, first.inputs)
    operations = _operations(models, executed(files.integer))
    engines = check_engines(
        files.integer, operations.quantizable, reference, lambda session: _Ran(session, model),
        lambda: batches(task, samples), stress, expected.stress,
    )  # fmt: skip
    failures = [*_failures(scores, operations, layers, expected), *_hard_failures(hard, expected)]
    for engine in engines:
        failures += engine.failures(expected.agreement, expected.integer_share)
    return ExportReport(
        model=files.integer.name,
        source=source,
        format="onnx-int8",
        task=task.name,
        samples=scores.samples,
        places=scores.agreement.places,
        agreement=scores.agreement.share,
        threshold=expected.agreement,
        largest_error=scores.agreement.largest_error,
        mean_error=scores.agreement.mean_error,
        largest_output=scores.agreement.spread,
        metric=task.metric,
        metrics=scores.metrics,
        operations=operations,
        sizes=_sizes(models, files),
        latencies=tuple(_latencies(files, first, expected.latency_s)),
        layers=tuple(layers),
        failures=tuple(failures),
        versions=versions(),
        unseen=model.unseen,
        stress=hard.get(EXPORTED),
        engines=tuple(engines),
    )


def _stress(
    task: Task, samples: Sequence[Sample], expected: Expectations
) -> Callable[[], Iterator[Batch]] | None:
    """Few small samples are repeated to fill a batch: else there would be a pass for every few answers."""
    if not expected.stress or not samples:
        return None
    numbers = sum(tensor.numel() for tensor in task.collate(samples[:1]).inputs.values())
    times = min(-(-BATCH // len(samples)), NUMBERS // (numbers * len(samples)))
    repeated = [*samples] * max(times, 1)
    return lambda: perturbed(task, lambda: batches(task, repeated))


def _hard_failures(hard: Mapping[str, Agreed], expected: Expectations) -> Iterator[str]:
    for found in hard.values():
        if found.agreement < expected.agreement:
            yield (
                f"{found.agreement:.3%} of {found.places:,} answers on the stress set agree, "
                f"{expected.agreement:.2%} were wanted"
            )


def batches(task: Task, samples: Sequence[Sample]) -> Iterator[Batch]:
    """The samples in batches that the task makes."""
    at_once = max(1, min(BATCH, TOKENS // max(int(getattr(task, "sequence_length", 1)), 1)))
    iterator = iter(samples)
    while part := list(itertools.islice(iterator, at_once)):
        yield batch_of(task, part)


class _Ran:
    """A session in place of the model; outputs get back the names that the last stage gave them."""

    def __init__(self, session: OrtSession | OpenvinoSession, model: JoinedStages) -> None:
        self._session, self._model = session, model
        self._names: list[str] = []

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self._names:
            self._names = list(self._model.outputs(*(tensor[:1] for tensor in inputs.values())))
        given = {name: inputs[name].numpy() for name in self._session.inputs}
        found = self._session.run(given)
        return {n: torch.from_numpy(a) for n, a in zip(self._names, found.values(), strict=True)}


class FakeQuantized:
    """The fake-quantized model, called as tasks call a model."""

    def __init__(self, model: JoinedStages) -> None:
        self._model = model

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named outputs of the fake-quantized model, without gradients."""
        with torch.no_grad():
            return self._model.outputs(*inputs.values())


def _operations(models: OnnxModels, ran: ExecutedOperations) -> Operations:
    wanted = [product for product in models.products if product.weight_bits]
    weighted = [p for p in models.products if not p.form and p.reason != ATTENTION]
    return Operations(
        quantizable=len(wanted),
        integer=min(ran.integer_count, len(wanted)),
        by_operator=ran.integer,
        in_float={product.layer: product.reason for product in weighted},
        attention=ran.attention,
    )


def _sizes(models: OnnxModels, files: ExportFiles) -> Sizes:
    return Sizes(
        float_file=files.float.stat().st_size,
        integer_file=files.integer.stat().st_size,
        float_weights=4 * sum(p.weights + p.biases for p in models.products if p.form),
        integer_weights=models.integer_bytes,
    )


def _latencies(files: ExportFiles, batch: Batch, seconds: float) -> Iterator[LatencyMedians]:
    """On one thread each: what several do depends on what else the machine does."""
    floating, integer = OrtSession(files.float, threads=1), OrtSession(files.integer, threads=1)
    for size in sorted({1, batch.size}):
        inputs = {name: batch.inputs[name][:size].numpy() for name in integer.inputs}
        yield latency(floating, integer, inputs, seconds / 2)


def _failures(
    scores: Scores, operations: Operations, layers: Sequence[LayerAgreement], expected: Expectations
) -> Iterator[str]:
    share = scores.agreement.share
    if share < expected.agreement:
        apart = first_apart(layers)
        where = (
            f"the first layer that disagrees is {apart.name}: {apart.share_apart:.1%} of its codes differ, "
            f"by up to {apart.steps_apart}"
            if apart is not None
            else "no layer stands out, so the answers are close to ties"
        )
        yield f"{share:.3%} of the answers agree, {expected.agreement:.2%} were wanted; {where}"
    if operations.share < expected.integer_share:
        floats = ", ".join(operations.in_float) or "none by name"
        yield (
            f"{operations.integer} of {operations.quantizable} quantized products run on integers; "
            f"in float: {floats}"
        )
    if operations.quantizable == 0:
        yield "the model has no quantized product; train it with quant.enabled"


def versions(*engine: str) -> dict[str, str]:
    """Of the packages that an export depends on; `engine` are those that ran the file."""
    found = {}
    for package in ("distqat", "torch", *(engine or ("onnx", "onnxruntime"))):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "?"
    return found
