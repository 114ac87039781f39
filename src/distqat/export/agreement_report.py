"""What the checker found, as JSON for programs and Markdown for people."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distqat.environment import SPELL
from distqat.export.engines import EngineResult, engine_rows
from distqat.export.latency import LatencyMedians
from distqat.export.layer_agreement import LayerAgreement
from distqat.export.output_agreement import FloatAnswers
from distqat.export.report_pictures import answers_picture, latency_picture, weights_picture
from distqat.export.stress import Agreed
from distqat.quant.weight_health import WeightHealth, sentences

JSON_NAME, MARKDOWN_NAME = "report.json", "report.md"
WEIGHTS, ANSWERS, LATENCY = "weights.svg", "answers.svg", "latency.svg"


@dataclass(frozen=True)
class Operations:
    """Convolutions and matrix products as they really run."""

    quantizable: int
    """Those of the model with a quantized weight."""
    integer: int
    by_operator: dict[str, int]
    in_float: dict[str, str]
    """Layers with a weight that run in float, and why."""
    attention: int
    """Products of two activations; they stay in float and count for nothing above."""

    @property
    def share(self) -> float:
        """Share of the quantizable operations that run on integers, 0 to 1."""
        return self.integer / self.quantizable if self.quantizable else 0.0


@dataclass(frozen=True)
class Sizes:
    """Sizes of the files and of the parameters, in bytes."""

    float_file: int
    integer_file: int
    float_weights: int
    """The weights and biases of the quantized layers, in float32."""
    integer_weights: int
    """Their codes, scales and biases."""

    @property
    def weights_ratio(self) -> float:
        """Bytes of the integer weights over those of the float ones."""
        return self.integer_weights / self.float_weights if self.float_weights else 1.0


@dataclass(frozen=True)
class ExportReport:
    """One export and its check; `failures` is empty where all is well."""

    model: str
    source: str
    format: str
    task: str
    samples: int
    places: int
    agreement: float
    threshold: float
    largest_error: float
    mean_error: float
    largest_output: float
    metric: str
    metrics: dict[str, float]
    operations: Operations | None
    """None where nothing was executed but torch itself."""
    sizes: Sizes
    latencies: tuple[LatencyMedians, ...]
    layers: tuple[LayerAgreement, ...]
    failures: tuple[str, ...]
    versions: dict[str, str]
    unseen: tuple[str, ...] = ()
    """Quantizers to which no values came in training, so nothing confirms their steps."""
    weights: tuple[WeightHealth, ...] = ()
    against_float: FloatAnswers | None = None
    reference: str = "the fake-quantized model"
    """What the file is compared with."""
    remarks: tuple[str, ...] = ()
    """What a format has to say besides, in sentences."""
    stress: Agreed | None = None
    """On the stress set; None where it was not asked for."""
    engines: tuple[EngineResult, ...] = ()
    """Further engines that ran the file."""

    @property
    def size_ratio(self) -> float:
        """Bytes of the exported file over those of the float one."""
        return self.sizes.integer_file / max(self.sizes.float_file, 1)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        fields = dataclasses.asdict(self)
        fields["passed"] = self.passed
        if self.operations is not None:
            fields["operations"]["share"] = self.operations.share
        fields["sizes"]["weights_ratio"] = self.sizes.weights_ratio
        for entry, row in zip(fields["latencies"], self.latencies, strict=True):
            entry["ratio"] = row.ratio
        for entry, layer in zip(fields["layers"], self.layers, strict=True):
            entry["agrees"] = layer.agrees
        for entry, weight in zip(fields["weights"], self.weights, strict=True):
            entry["ailment"] = weight.ailment
        if fields["against_float"] is not None:
            del fields["against_float"]["points"]
        return fields

    def to_markdown(self) -> str:
        """The report as a Markdown page."""
        lines = [f"# Export of {self.source}", "", self.verdict(), ""]
        lines += [f"- {each}" for each in (*self.failures, *self.notes())]
        lines += ["", *self._answers(), *self._speed(), *self._weights(), *self._layers()]
        used = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return "\n".join([*lines, "", f"Made with {used}.", ""])

    def verdict(self) -> str:
        """One sentence."""
        state = "passed" if self.passed else "**failed**"
        agreed = f"{self.agreement:.3%} of {self.places:,} answers are those of {self.reference}"
        if self.operations is None:
            return f"The check {state}: {agreed}."
        ran = f"{self.operations.integer} of {self.operations.quantizable}"
        return (
            f"The check {state}: {agreed}, {ran} quantized convolutions and matrix products run on integers."
        )

    def notes(self) -> list[str]:
        """What else is to be said."""
        said = [*self.remarks, *sentences(self.weights).values()]
        if self.unseen:
            said.append(
                f"no values came in training (unused layers, or zeros only): {', '.join(self.unseen)}; their "
                "steps stand for values up to 1"
            )
        return said

    def pictures(self) -> dict[str, str]:
        """SVG files by name, those for which there are figures."""
        drawn = {}
        if self.weights:
            drawn[WEIGHTS] = weights_picture(self.weights)
        if self.against_float is not None and self.against_float.points:
            drawn[ANSWERS] = answers_picture(self.against_float)
        if self.latencies:
            drawn[LATENCY] = latency_picture(self.latencies)
        return drawn

    def write(self, folder: Path) -> None:
        """Write the report into `folder`, as JSON, and as Markdown with its pictures. Raises OSError."""
        for name, picture in self.pictures().items():
            (folder / name).write_text(picture, encoding="utf-8", errors=SPELL)
        text = json.dumps(self.to_json(), indent=2, sort_keys=True)
        (folder / JSON_NAME).write_text(text + "\n", encoding="utf-8")
        (folder / MARKDOWN_NAME).write_text(self.to_markdown(), encoding="utf-8", errors=SPELL)

    def _answers(self) -> list[str]:
        metrics = " | ".join(f"{value:.4f}" for value in self.metrics.values())
        names = " | ".join(self.metrics)
        return [
            f"| {self.metric}, {self.samples:,} held-out sample{'s' * (self.samples != 1)} | {names} |",
            f"|---|{'---:|' * len(self.metrics)}",
            f"| | {metrics} |",
            "",
            f"| outputs, exported against {self.reference} | |",
            "|---|---:|",
            f"| same answer | {self.agreement:.3%} (at least {self.threshold:.2%}) |",
            f"| largest error | {self.largest_error:.3g} |",
            f"| mean error | {self.mean_error:.3g} |",
            f"| largest output | {self.largest_output:.3g} |",
            *([] if self.stress is None else self.stress.rows()),
            "",
            *engine_rows(self.engines),
            *self._without_quantizers(),
        ]

    def _without_quantizers(self) -> list[str]:
        beside = self.against_float
        if beside is None:
            return []
        return [
            f"The same weights without quantization give the same answer in {beside.agreement:.2%} of "
            f"{beside.places:,} places.",
            "",
            *([f"![outputs: quantized against float]({ANSWERS})", ""] if beside.points else []),
        ]

    def _speed(self) -> list[str]:
        ops, sizes = self.operations, self.sizes
        lines = self._executed(ops) if ops is not None else []
        lines += [
            "| | float | integer | ratio |",
            "|---|---:|---:|---:|",
            f"| file, bytes | {sizes.float_file:,} | {sizes.integer_file:,} | {self.size_ratio:.3f} |",
            f"| quantized layers, bytes | {sizes.float_weights:,} | {sizes.integer_weights:,} "
            f"| {sizes.weights_ratio:.3f} |",
        ]
        for row in self.latencies:
            lines.append(
                f"| latency of a batch of {row.batch}, ms (one thread, median of {row.runs}) "
                f"| {row.float_ms:.3f} | {row.integer_ms:.3f} | {row.ratio:.2f} |"
            )
        picture = [f"![latency of the float and of the integer model]({LATENCY})", ""]
        return [*lines, "", *(picture if self.latencies else [])]

    def _weights(self) -> list[str]:
        if not self.weights:
            return []
        lines = [
            f"![error and use of codes of each layer's weights]({WEIGHTS})",
            "",
            "| quantized weight | bits | error | clipped | largest code | codes used | |",
            "|---|---:|---:|---:|---:|---:|---|",
        ]
        for x in self.weights:
            lines.append(
                f"| {x.name} | {x.bits} | {x.error:.2%} | {x.clipped:.2%} | {x.largest_code:.0f} "
                f"| {x.codes_used:.0%} | {x.ailment or ''} |"
            )
        return [*lines, ""]

    def _executed(self, ops: Operations) -> list[str]:
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(ops.by_operator.items())) or "none"
        return [
            "| what ONNX Runtime executes | |",
            "|---|---|",
            f"| integer products | {ops.integer} of {ops.quantizable} ({ops.share:.1%}): {kinds} |",
            f"| products of two activations, in float | {ops.attention} |",
            *(f"| in float: {name} | {why} |" for name, why in ops.in_float.items()),
            "",
        ]

    def _layers(self) -> list[str]:
        if not self.layers:
            return []
        lines = ["| quantized tensor, in order | codes that differ | by at most |", "|---|---:|---:|"]
        return lines + [f"| {x.name} | {x.share_apart:.3%} | {x.steps_apart} |" for x in self.layers]
