"""Integer codes between stages against floats: are they the same to the bit, how many bytes, how fast?

    python benchmarks/wire.py --json PATH [--quick] [--parts exactness speed] [--steps N] [--repeats N]
        [--cases NAME ...]

First, over the in-memory transport, every model and cut runs twice from the same seed, with
`model_pipeline.activations` fp32 and auto: calibration, `steps` inner steps, a held-out batch. The largest
differences of outputs, of the gradients of all steps and of all parameters and buffers at the end must be 0,
the signs of zeros included; bytes are those of whole frames from a stage to the next, per step. The goal is
0.26 of those of floats at every boundary that the stage declares.

Then samples/s of two stages over Unix sockets and over libp2p, a process per stage and one torch thread each:
blocks of steps with floats and with codes take turns in the same processes on the same weights. A figure is
the median over blocks of the block's median step, a ratio the median of the ratios of neighbouring blocks.
"""

from __future__ import annotations

from distqat.terminal import begin, unwinding

if __name__ == "__main__":  # before all else: what follows imports torch
    begin("benchmarks/wire.py", clean=False)

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import samples_per_s, step_seconds
from benchmarks.harness import Pipeline, private_runtime
from benchmarks.report import describe, facts, output, write_json
from benchmarks.scene import CASES, QUICK_CASES, Case, config_of
from benchmarks.wire_bits import WIRES, Row, compared, good
from benchmarks.wire_cases import WIRE_CASES
from distqat.config import Config

TRANSPORTS = ("unix", "libp2p")
PARTS = ("exactness", "speed")


def speed(case: Case, pipelines: dict[str, Pipeline], repeats: int, steps: int) -> Row:
    """Blocks of both wires in turn, over each transport."""
    result: Row = {"case": case.name}
    for over, running in pipelines.items():
        running.take(case)
        blocks: dict[str, list[Row]] = {wire: [] for wire in WIRES}
        for repeat in range(repeats + 1):
            for wire in WIRES if repeat % 2 else WIRES[::-1]:
                running.send(wire)
                block = running.block(steps if repeat else 1)
                if repeat:  # the first of each warms up
                    blocks[wire].append(block)
        result[over] = {wire: _figures(got, case, steps) for wire, got in blocks.items()}
        seconds = zip(blocks["fp32"], blocks["auto"], strict=True)
        result[over]["faster"] = median(step_seconds(a) / step_seconds(b) for a, b in seconds)
        result[over]["blocks"] = blocks
    return result


def _figures(blocks: Sequence[Row], case: Case, steps: int) -> Row:
    """Of one wire: samples/s, bytes forward, CPU of the first stage's forward jobs, of loops and daemons.

    Codes are made in the forward jobs of the stage that sends them, and decoded in the loop of the next.
    """
    count = steps * len(blocks)
    loops = sum(status["loop_cpu_s"] for block in blocks for status in block["stages"])
    daemons = sum(cpu["p2pd"] for block in blocks for cpu in block["process_cpu_s"].values())
    return {
        "samples_per_s": samples_per_s(blocks, case.batch),
        "forward_bytes": sum(block["stages"][0]["link"][0] for block in blocks) / count,
        "forward_cpu_ms": 1000 * sum(b["stages"][0]["compute_cpu_s"]["forward"] for b in blocks) / count,
        "loop_cpu_ms": 1000 * loops / count,
        "p2pd_cpu_ms": 1000 * daemons / count,
    }


def exactness_table(rows: Sequence[Row]) -> Table:
    columns = ("model", "stages", "sends", "bytes, fp32", "bytes, codes", "ratio")
    table = _table("forward, per step and boundary; largest differences", columns)
    for name in ("outputs", "gradients", "parameters"):
        table.add_column(name)
    for row in rows:
        for number, ratio in enumerate(row["ratios"]):
            sends = "codes" if row["declares"][number] else f"float: {row['reason']}"
            sizes = [f"{row[key][number]:,.0f}" for key in ("fp32_bytes", "auto_bytes")]
            cut = " -> ".join(row["stages"][number : number + 2])
            apart = [str(row[name]) for name in ("outputs", "gradients", "parameters")]
            table.add_row(row["case"], cut, sends, *sizes, f"{ratio:.4f}", *apart)
    return table


def speed_table(rows: Sequence[Row]) -> Table:
    rates, sizes = ("samples/s, fp32", "codes", "times"), ("bytes forward, fp32", "codes", "ratio")
    cpu = ("CPU ms: front forward", "loops", "p2pd")
    table = _table("two stages, quantized, a process each", ("model", "over", *rates, *sizes, *cpu))
    for row in rows:
        for over in TRANSPORTS:
            floats, codes = (row[over][wire] for wire in WIRES)
            table.add_row(
                row["case"],
                over,
                *(f"{each['samples_per_s']:.1f}" for each in (floats, codes)),
                f"{row[over]['faster']:.3f}",
                *(f"{each['forward_bytes']:,.0f}" for each in (floats, codes)),
                f"{codes['forward_bytes'] / floats['forward_bytes']:.4f}",
                *(
                    " -> ".join(f"{each[key]:.1f}" for each in (floats, codes))
                    for key in ("forward_cpu_ms", "loop_cpu_ms", "p2pd_cpu_ms")
                ),
            )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if a boundary misses its goal (small frames do; so not with --quick)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=output, required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="small models, few steps: is it alive?")
    parser.add_argument("--steps", type=int, help="steps per run and block (default 3, quick 2)")
    parser.add_argument("--repeats", type=int, help="blocks of each kind (default 7, quick 2)")
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES], help="whose speed is taken")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured")
    args = parser.parse_args(argv)
    steps, repeats = args.steps or (2 if args.quick else 3), args.repeats or (2 if args.quick else 7)
    torch.set_num_threads(1)
    console, about = Console(width=170), facts()
    console.print(describe(about))
    chosen = WIRE_CASES if "exactness" in args.parts else []
    exact = [compared(case, steps, quick=args.quick) for case in chosen]
    if exact:
        console.print(exactness_table(exact))
    speeds: list[Row] = []
    write_json(args.json, about, {"exactness": exact, "speed": speeds})
    if "speed" in args.parts:
        known = QUICK_CASES if args.quick else CASES
        cases = [known[name].with_quantization(True) for name in args.cases if name in known]
        with ExitStack() as stack:
            stack.enter_context(private_runtime())
            pipelines = {over: _started(stack, over, config_of(cases[0])) for over in TRANSPORTS}
            for case in cases:
                console.print(f"{case.name} ...")
                speeds.append(speed(case, pipelines, repeats, steps))
                write_json(args.json, about, {"exactness": exact, "speed": speeds})
        console.print(speed_table(speeds))
    return int(not args.quick and not all(map(good, exact)))


def _started(stack: ExitStack, over: str, config: Config) -> Pipeline:
    running = Pipeline(config.stages, over)
    stack.callback(running.end)
    running.ready()
    return running


if __name__ == "__main__":
    sys.exit(unwinding("benchmarks/wire.py", main))
