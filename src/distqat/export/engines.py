"""Engines beside ONNX Runtime: each that is installed runs the exported file, and is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distqat.errors import ExportError
from distqat.export.onnx.openvino_session import OpenvinoSession
from distqat.export.output_agreement import RunsModel
from distqat.export.stress import Agreed, agreed
from distqat.tasks import Batch

OPENVINO = "OpenVINO"
ENGINES: Mapping[str, tuple[str, type[OpenvinoSession]]] = {OPENVINO: ("openvino", OpenvinoSession)}
"""By name: the package, and what loads a file."""


@dataclass(frozen=True)
class EngineResult:
    """What one engine made of the file."""

    name: str
    version: str
    integer: int
    """Convolutions and matrix products in 8 bits, those of two activations not among them."""
    quantizable: int
    heldout: Agreed | None
    stress: Agreed | None
    error: str = ""
    """Why it could not load or run the file."""

    def failures(self, agreement: float, integer_share: float) -> list[str]:
        """What falls short of what was wanted."""
        if self.error:
            return [self.error]
        found = [
            f"{each.agreement:.3%} of the answers on {what} agree in {self.name}, {agreement:.2%} were wanted"
            for what, each in (("held-out samples", self.heldout), ("the stress set", self.stress))
            if each is not None and each.agreement < agreement
        ]
        if self.integer < integer_share * self.quantizable:
            found.append(
                f"{self.name} runs {self.integer} of {self.quantizable} quantized products in 8 bits"
            )
        return found


def check_engines(
    path: Path,
    quantizable: int,
    reference: RunsModel,
    wrapped: Callable[[Any], RunsModel],
    heldout: Callable[[], Iterable[Batch]],
    stress: Callable[[], Iterable[Batch]] | None,
    answers: int,
) -> list[EngineResult]:
    """Run the file in every engine that is installed; `wrapped` makes a model of a session."""
    results = []
    for name, (package, load) in ENGINES.items():
        try:
            number = version(package)
        except PackageNotFoundError:
            continue
        try:
            session = load(path)
            engine = {name: wrapped(session)}
            easy = agreed(reference, engine, heldout())[name]
            hard = agreed(reference, engine, stress(), answers)[name] if stress else None
            integer = min(session.products[0], quantizable)
            results.append(EngineResult(name, number, integer, quantizable, easy, hard))
        except ExportError as error:
            results.append(EngineResult(name, number, 0, quantizable, None, None, str(error)))
    return results


def engine_rows(engines: Sequence[EngineResult]) -> list[str]:
    """A table for people; nothing where there are none."""
    if not engines:
        return []
    rows = ["| engine | same answer | stress set | products in 8 bits |", "|---|---:|---:|---:|"]
    for engine in engines:
        shares = (
            "-" if each is None else f"{each.agreement:.3%}" for each in (engine.heldout, engine.stress)
        )
        ran = f"{engine.integer} of {engine.quantizable}"
        rows.append(f"| {engine.name} {engine.version} | {' | '.join(shares)} | {ran} |")
    return [*rows, ""]
