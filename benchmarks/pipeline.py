"""Samples/s of a two-stage pipeline against one plain process, and how near it comes to its limit.

    python benchmarks/pipeline.py --json PATH [--quick] [--repeats N] [--steps N] [--cases NAME ...]

Everything has one torch thread: the plain process, and each server's compute thread. The pipeline is a
trainer and two stages, each in a process of its own, over Unix sockets and over libp2p. For each case all
processes run at once but take turns: a block of steps of the plain loop, of the pipeline over Unix sockets,
of the pipeline over libp2p, and again, `repeats` times; a first block of each warms up and does not count.
They start once and take one case after the other. A figure is the median over blocks of the median step of
each block.

The share of the limit is measured in place, block by block:

    share = makespan / measured step

    makespan = (end of the last backward job) + max over stages of the optimizer's seconds

where the jobs are scheduled as 1F1B over M microbatches with free communication (`schedule.py`) and last as
long as the compute threads' own CPU time says that they lasted in this very block: forward, backward and
optimizer, as `compute_cpu_s` in a server's status. What a step costs besides (begin, prepare) counts as
overhead in `share`; `share_with_control` counts it as work.

Bytes are those of whole frames on both streams of a link, heartbeats included, against the bytes of the
tensors that have to cross it, a byte per element where integer codes travel; the goal between stages is 1.02.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/pipeline.py", clean=False)

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import figures
from benchmarks.harness import Pipeline, Worker, processes
from benchmarks.report import describe, facts, output, write_json
from benchmarks.scene import CASES, Case, boundary_bytes, chosen_cases, config_of

TRANSPORTS = ("unix", "libp2p")
WARM_UP_STEPS = 2
PHASES = ("step", "open", "microbatches", "prepare", "decide", "commit")
KINDS = ("forward", "backward", "optimizer", "control", "loop", "p2pd")
CUTS = ("microbatches", "whole")  # of the batch, in the plain loop


def measure(
    case: Case, loop: Worker, pipelines: dict[str, Pipeline], repeats: int, steps: int
) -> dict[str, Any]:
    """All blocks of one case, and the figures made of them."""
    blocks: dict[str, list[Any]] = {}
    loop.ask(case=case.dumps())
    for running in pipelines.values():
        running.take(case)
    for repeat in range(repeats + 1):
        count = WARM_UP_STEPS if repeat == 0 else steps
        taken: dict[str, Any] = {f"plain, {cut}": loop.ask(cut=cut, count=count) for cut in CUTS}
        taken |= {over: running.block(count) for over, running in pipelines.items()}
        if repeat > 0:
            for name, block in taken.items():
                blocks.setdefault(name, []).append(block)
    return {**summarize(case, blocks), "blocks": blocks}


def summarize(case: Case, blocks: dict[str, list[Any]]) -> dict[str, Any]:
    """The figures of one case."""
    config = config_of(case)
    tensors = boundary_bytes(config)
    plain = {name: figures.samples_per_s(blocks[f"plain, {name}"], case.batch) for name in CUTS}
    result: dict[str, Any] = {
        "case": case.name,
        "quantized": case.quantize,
        "plain_samples_per_s": plain,
        "tensor_bytes_per_step": tensors,
    }
    for over in TRANSPORTS:
        rate = figures.samples_per_s(blocks[over], case.batch)
        count = case.microbatches
        result[over] = {
            "samples_per_s": rate,
            "times_plain": rate / plain["microbatches"],
            "share_of_limit": figures.share_of_limit(blocks[over], count),
            "share_with_control": figures.share_of_limit(blocks[over], count, control=True),
            "phases_ms": figures.phases_ms(blocks[over]),
            "cpu_ms_per_step": figures.cpu_ms_per_step(blocks[over], config.stages),
            "links": figures.link_figures(blocks[over], tensors),
        }
    return result


def speed_table(results: Sequence[dict[str, Any]]) -> Table:
    names = ("samples/s", "x plain", "share of limit", "with control")
    table = _table("samples/s, one torch thread per process (medians)", names)
    for result in results:
        for name, cut in (("plain", "microbatches"), ("plain, whole", "whole")):
            table.add_row(*_head(result, name), f"{result['plain_samples_per_s'][cut]:.1f}")
        for over in TRANSPORTS:
            got = result[over]
            shares = [f"{got[key]:.3f}" for key in ("times_plain", "share_of_limit", "share_with_control")]
            table.add_row(*_head(result, over), f"{got['samples_per_s']:.1f}", *shares)
    return table


def bytes_table(results: Sequence[dict[str, Any]]) -> Table:
    names = ("out", "in", "tensors", "ratio")
    table = _table("bytes per inner step and link (goal between stages: 1.02)", ("link", *names))
    for result in results:
        for over in TRANSPORTS:
            for link, got in result[over]["links"].items():
                counts = [f"{got[key]:,.0f}" for key in ("out", "in", "tensors")]
                table.add_row(*_head(result, over), link, *counts, f"{got['ratio']:.4f}")
    return table


def phases_table(results: Sequence[dict[str, Any]]) -> Table:
    table = _table("milliseconds of a step on the trainer's clock (medians)", PHASES)
    for result in results:
        for over in TRANSPORTS:
            got = result[over]["phases_ms"]
            table.add_row(*_head(result, over), *(f"{got[name]:.1f}" for name in PHASES))
    return table


def cpu_table(results: Sequence[dict[str, Any]]) -> Table:
    table = _table("CPU milliseconds per step", ("process", *KINDS))
    for result in results:
        for over in TRANSPORTS:
            for place, got in result[over]["cpu_ms_per_step"].items():
                cells = (f"{got[kind]:.1f}" if kind in got else "" for kind in KINDS)
                table.add_row(*_head(result, over), place, *cells)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("case", "quant", "over", *columns):
        table.add_column(name)
    return table


def _head(result: dict[str, Any], over: str) -> list[str]:
    return [result["case"], "on" if result["quantized"] else "off", over]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="small models, few steps: is it alive?")
    parser.add_argument("--repeats", type=int, help="blocks of each kind (default 5, quick 2)")
    parser.add_argument("--steps", type=int, default=5, help="steps per block")
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES], metavar="NAME")
    args = parser.parse_args(argv)
    console, about = Console(), facts()
    console.print(describe(about))
    results = []
    cases = chosen_cases(args.cases, args.quick)
    repeats = args.repeats or (2 if args.quick else 5)
    with processes(config_of(cases[0]).stages, TRANSPORTS) as (loop, pipelines):
        for case in cases:
            console.print(f"{case.name}, quantization {'on' if case.quantize else 'off'} ...")
            results.append(measure(case, loop, pipelines, repeats, args.steps))
            write_json(args.json, about, results)
    for table in (speed_table(results), bytes_table(results), phases_table(results), cpu_table(results)):
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/pipeline.py", main))
