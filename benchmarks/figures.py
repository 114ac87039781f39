"""From the blocks of one case to its figures: samples/s, share of the limit, bytes, where the time goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.schedule import StageSeconds, makespan

Block = Mapping[str, Any]


def step_seconds(block: Block) -> float:
    """The median step of a block."""
    return float(median(step["step"] for step in block["steps"]))


def samples_per_s(blocks: Sequence[Block], samples: int) -> float:
    """Samples over the median of the blocks' median steps."""
    return samples / median(map(step_seconds, blocks))


def stage_seconds(block: Block, microbatches: int, *, control: bool = False) -> list[StageSeconds]:
    """CPU seconds of the stages' compute threads per job of this block.

    `control` counts what a step needs besides its mathematics (begin, prepare) to its closing.
    """
    steps = len(block["steps"])
    stages = []
    for status in block["stages"]:
        cpu = status["compute_cpu_s"]
        closing = cpu.get("optimizer", 0.0) + (cpu.get("control", 0.0) if control else 0.0)
        jobs = steps * microbatches
        stages.append(
            StageSeconds(cpu.get("forward", 0.0) / jobs, cpu.get("backward", 0.0) / jobs, closing / steps)
        )
    return stages


def limit_seconds(block: Block, microbatches: int, *, control: bool = False) -> float:
    """What a step of this block would have taken with free communication (`schedule.makespan`)."""
    return makespan(stage_seconds(block, microbatches, control=control), microbatches)


def share_of_limit(blocks: Sequence[Block], microbatches: int, *, control: bool = False) -> float:
    """Median over the blocks of makespan / measured step."""
    return median(limit_seconds(b, microbatches, control=control) / step_seconds(b) for b in blocks)


def phases_ms(blocks: Sequence[Block]) -> dict[str, float]:
    """Median milliseconds of the phases of a step, as the trainer sees them."""
    steps = [step for block in blocks for step in block["steps"]]
    return {name: 1000 * median(step[name] for step in steps) for name in steps[0]}


def cpu_ms_per_step(blocks: Sequence[Block], stages: Sequence[str]) -> dict[str, dict[str, float]]:
    """Where CPU time went, milliseconds per step: compute by kind, the event loop, the libp2p daemon."""
    steps = sum(len(block["steps"]) for block in blocks)
    found: dict[str, dict[str, float]] = {place: {} for place in (*stages, "trainer")}

    def add(place: str, kind: str, seconds: float) -> None:
        found[place][kind] = found[place].get(kind, 0.0) + 1000 * seconds / steps

    for block in blocks:
        for stage, status in zip(stages, block["stages"], strict=True):
            for kind, seconds in status["compute_cpu_s"].items():
                add(stage, kind, seconds)
            add(stage, "loop", status["loop_cpu_s"])
        add("trainer", "loop", block["loop_cpu_s"])
        for place, cpu in block["process_cpu_s"].items():
            add(place, "p2pd", cpu["p2pd"])
    return found


def link_figures(blocks: Sequence[Block], tensors: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Bytes per step on each link, both ways, against the bytes of the tensors that must cross it."""
    steps = sum(len(block["steps"]) for block in blocks)
    front, back = (_per_step((block["links"][n] for block in blocks), steps) for n in (0, -1))
    between = _per_step((block["stages"][0]["link"] for block in blocks), steps)
    needed = {
        "trainer -> front": (front, tensors["inputs"]),
        "front <-> back": (between, tensors["activations"] + tensors["gradients"]),
        "trainer -> back": (back, tensors["labels"]),
    }
    return {
        name: {"out": out, "in": into, "tensors": size, "ratio": (out + into) / size}
        for name, ((out, into), size) in needed.items()
    }


def _per_step(counts: Iterable[Sequence[int]], steps: int) -> tuple[float, float]:
    pairs = list(counts)
    return sum(pair[0] for pair in pairs) / steps, sum(pair[1] for pair in pairs) / steps
