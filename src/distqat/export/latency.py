"""How long ONNX Runtime takes for the float and for the integer model, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

from distqat.export.onnx.onnx_graph import Array
from distqat.export.onnx.ort_session import OrtSession

WARM_UP, LEAST, MOST = 3, 10, 200


@dataclass(frozen=True)
class LatencyMedians:
    """Medians of one batch size, in milliseconds."""

    batch: int
    float_ms: float
    integer_ms: float
    runs: int

    @property
    def ratio(self) -> float:
        """Integer over float; below 1 is faster."""
        return self.integer_ms / self.float_ms if self.float_ms else 1.0


def latency(
    floating: OrtSession, integer: OrtSession, inputs: Mapping[str, Array], seconds: float
) -> LatencyMedians:
    """Run both in turns for about `seconds`, so that what else the machine does meets both alike."""
    for _ in range(WARM_UP):
        floating.run(inputs)
        integer.run(inputs)
    times: dict[str, list[float]] = {"float": [], "integer": []}
    ends = time.perf_counter() + seconds
    while len(times["float"]) < LEAST or (time.perf_counter() < ends and len(times["float"]) < MOST):
        for name, session in (("float", floating), ("integer", integer)):
            began = time.perf_counter()
            session.run(inputs)
            times[name].append(time.perf_counter() - began)
    medians = {name: 1e3 * statistics.median(taken) for name, taken in times.items()}
    batch = len(next(iter(inputs.values())))
    return LatencyMedians(batch, medians["float"], medians["integer"], len(times["float"]))
