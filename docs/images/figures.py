"""The diagrams of the pages: `python docs/images/figures.py` draws them, a test holds them to the files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from svg import Picture, Sequence

HERE = Path(__file__).parent


def architecture() -> Picture:
    """The roles of a run and what flows between them."""
    picture = Picture(860, 470, "The roles of a run")
    picture.box(14, 14, 330, 442, "the host of the trainer client", fill="host", top=True)
    picture.box(500, 14, 346, 442, "hosts of volunteers", fill="host", top=True)
    picture.box(40, 56, 270, 62, "monitor\nbootstrap of the DHT, live table", fill="role")
    picture.box(
        40, 158, 270, 84, "client\nslots, rounds, commit log,\nmirror of the parameters", fill="accent"
    )
    picture.box(40, 286, 270, 58, "data server\none order of samples for all trainers", fill="role")
    picture.box(40, 384, 125, 52, "trainer 0", fill="role")
    picture.box(185, 384, 125, 52, "trainer 1", fill="role")
    for column, replica in enumerate("01"):
        x = 520 + 160 * column
        picture.box(x, 130, 146, 66, f"server\nfront.0.{replica}.0", fill="server")
        picture.box(x, 300, 146, 66, f"server\nback.0.{replica}.0", fill="server")
        picture.arrow(x + 30, 198, x + 30, 298, both=True)
        picture.text(x + 38, 242, "activations down,", size=12, anchor="start")
        picture.text(x + 38, 258, "gradients up", size=12, anchor="start")
    picture.arrow(668, 152, 678, 152, both=True)
    picture.arrow(668, 344, 678, 344, both=True)
    picture.text(673, 118, "outer rounds: replicas exchange changes", size=12)
    picture.arrow(312, 182, 518, 166, "slots, rounds, beat", both=True, at=(420, 160))
    picture.arrow(312, 222, 518, 318, "", both=True)
    picture.arrow(312, 394, 518, 192, "inputs", at=(366, 322), anchor="end")
    picture.arrow(312, 418, 518, 352, "labels", at=(420, 402))
    picture.arrow(175, 156, 175, 120, "status", at=(182, 143), anchor="start", both=True)
    picture.arrow(90, 346, 90, 382)
    picture.arrow(240, 346, 240, 382)
    picture.text(165, 369, "shared memory", size=12)
    picture.arrow(175, 244, 175, 284, "starts it, and the trainers", at=(182, 269), anchor="start")
    picture.text(673, 430, "each step takes one server of each stage", size=12)
    return picture


def node_arrangement() -> Picture:
    """Hosts, ports and how replicas are spread."""
    picture = Picture(860, 400, "Hosts, ports and replicas")
    hosts = [
        (
            "public host",
            ["monitor|TCP 50000", "client|TCP 51000", "data server, trainers|no port of their own"],
        ),
        (
            "GPU box",
            [
                "front.0.0.0|TCP 50500, cuda:0",
                "back.0.0.0|TCP 50501, cuda:1",
                "front.0.2.0|TCP 50502, cuda:0",
            ],
        ),
        ("workstation", ["front.0.1.0|TCP 50500, cpu", "back.0.1.0|TCP 50501, cpu"]),
    ]
    for column, (name, roles) in enumerate(hosts):
        x = 14 + 282 * column
        picture.box(x, 14, 268, 262, name, fill="host", top=True)
        for row, role in enumerate(roles):
            kind = "role" if column == 0 else "server"
            picture.box(x + 24, 46 + 76 * row, 220, 58, role.replace("|", "\n"), fill=kind)
    picture.box(14, 292, 832, 92, "", fill="host")
    picture.text(30, 316, "stage front", anchor="start", bold=True)
    picture.text(
        130,
        316,
        "front.0.0.0, front.0.1.0, front.0.2.0: three replicas, a round has three members",
        anchor="start",
    )
    picture.text(30, 342, "stage back", anchor="start", bold=True)
    picture.text(
        130, 342, "back.0.0.0, back.0.1.0: two replicas; the next server is given this stage", anchor="start"
    )
    picture.text(30, 368, "pipelines", anchor="start", bold=True)
    picture.text(
        130,
        368,
        "0 and 1 are complete, so two trainers run; any front may work with any back",
        anchor="start",
    )
    return picture


def step() -> Picture:
    """The calls of one inner step."""
    sequence = Sequence(
        "One inner step over two stages",
        {"T": "trainer", "F": "server\nfront.0.0.0", "B": "server\nback.0.0.0"},
        spacing=260,
    )
    sequence.send("T", "F", "open (step, route)")
    sequence.send("T", "B", "open")
    sequence.send("T", "F", "train (inputs of a microbatch)")
    sequence.send("T", "B", "labels")
    sequence.note("F", "forward")
    sequence.send("F", "B", "train (activations)")
    sequence.note("B", "forward, loss, backward")
    sequence.send("B", "F", "gradients, scores", reply=True)
    sequence.note("F", "backward on the graph that it kept")
    sequence.send("F", "T", "scores", reply=True)
    sequence.note("T", "the same for every microbatch, several in flight")
    sequence.send("T", "F", "prepare")
    sequence.send("T", "B", "prepare")
    sequence.note("T", "clip factor from all squared norms, or skip")
    sequence.send("T", "F", "decide (recorded: the step stands)")
    sequence.send("T", "F", "commit")
    sequence.send("T", "B", "commit")
    sequence.note("F", "each stage steps its optimizer once")
    return sequence.picture()


def step_timing() -> Picture:
    """A step in time: jobs of the two stages, milliseconds measured by benchmarks/pipeline.py."""
    picture = Picture(860, 250, "One inner step in time")
    begin, scale = 96.0, 5.6
    for row, name in enumerate(("trainer", "front", "back")):
        picture.text(84, 62 + 50 * row, name, anchor="end", bold=True)
        picture.line(begin, 78 + 50 * row, 850, 78 + 50 * row, dashed=True)

    def bar(row: int, start: float, end: float, words: str, fill: str) -> None:
        picture.box(begin + scale * start, 40 + 50 * row, scale * (end - start), 34, fill=fill)
        picture.text(begin + scale * (start + end) / 2, 61 + 50 * row, words, size=11)

    phases = [("", 0, 3.3), ("microbatches, 113.9 ms", 3.3, 117.2), ("", 117.2, 122.6), ("", 122.6, 128.5)]
    for (words, start, end), fill in zip(phases, ("accent", "plain", "accent", "bad"), strict=True):
        bar(0, start, end, words, fill)
    picture.text(begin + 2, 32, "open 3.3", size=11, anchor="start")
    picture.text(begin + scale * 112, 32, "prepare 5.4", size=11, anchor="end")
    picture.text(850, 32, "decide, commit 5.9", size=11, anchor="end")
    for number, (start, end, backward) in enumerate(FRONT):
        words = f"{'B' if backward else 'F'}{[0, 1, 2, 0, 1, 3, 2, 3][number] + 1}"
        bar(1, 3.3 + start, 3.3 + end, words, "role" if backward else "server")
    for number, (start, end) in enumerate(BACK):
        bar(2, 3.3 + start, 3.3 + end, f"F, loss, B of {number + 1}", "server")
    bar(1, 122.8, 125.2, "", "done")
    bar(2, 122.8, 127.1, "", "done")
    for tick in range(0, 140, 20):
        picture.text(begin + scale * tick, 212, f"{tick} ms", size=11)
        picture.line(begin + scale * tick, 188, begin + scale * tick, 198)
    picture.text(
        430,
        236,
        "F forward, B backward of a microbatch, grey: optimizer. 32 samples in four microbatches.",
        size=12,
    )
    return picture


FRONT = [
    (0, 12.0, False), (12.0, 24.0, False), (24.0, 36.0, False), (36.0, 49.4, True), (49.4, 62.8, True),
    (62.8, 74.8, False), (74.8, 88.2, True), (93.0, 106.4, True),
]  # fmt: skip
BACK = [(12.0, 30.2), (30.2, 48.4), (48.4, 66.6), (74.8, 93.0)]


def outer_round() -> Picture:
    """The calls of joining and of an outer round."""
    sequence = Sequence(
        "Joining, and one outer round",
        {"M": "member (server)", "C": "client", "N": "other members"},
        spacing=290,
    )
    sequence.send("M", "C", "slot")
    sequence.send("M", "C", "zero (who is first publishes round 0)")
    sequence.send("M", "C", "members (who joins waits for a donor)")
    sequence.send("M", "N", "snapshot (in pieces, checked by its digest)")
    sequence.send("M", "C", "joined")
    sequence.note("M", "inner steps, diloco.inner_steps of them")
    sequence.send("M", "C", "ready")
    sequence.send("C", "M", "the round opens: number, attempt, members", reply=True)
    sequence.send("M", "C", "contribute (digest, samples, bytes)")
    sequence.send("C", "M", "the set to fetch", reply=True)
    sequence.send("M", "N", "contribution")
    sequence.note("M", "decode, average, outer step: the same bits at every member")
    sequence.send("M", "C", "vote (digest of the result)")
    sequence.note("C", "more than half agree: append to the commit log")
    sequence.send("C", "M", "committed, or discarded", reply=True)
    sequence.note("M", "merge between two inner steps")
    return sequence.picture()


def failover_states() -> Picture:
    """What a server can be, and what moves it on."""
    picture = Picture(860, 330, "The states of a server")
    boxes = {
        "asks": (30, 60, "asks for a slot"),
        "joins": (320, 60, "joins\nfetches and checks the state"),
        "serves": (610, 60, "serves\nsteps and rounds"),
        "behind": (610, 210, "behind\nmissed a committed round"),
        "waits": (320, 210, "waits\nno client, keeps its state"),
        "ends": (30, 210, "has ended"),
    }
    for name, (x, y, words) in boxes.items():
        fill = {"serves": "server", "ends": "bad", "waits": "accent", "behind": "accent"}.get(name, "role")
        picture.box(x, y, 220, 66, words, fill=fill)
    picture.arrow(252, 93, 318, 93, "granted", at=(285, 86))
    picture.arrow(542, 93, 608, 93, "joined", at=(575, 86))
    picture.arrow(700, 128, 700, 208, "commit missed", at=(692, 160), anchor="end")
    picture.arrow(750, 208, 750, 128, "state fetched", at=(758, 190), anchor="start")
    picture.arrow(610, 120, 520, 208, "client silent", at=(554, 160), anchor="end")
    picture.arrow(320, 226, 220, 128, "client answers: asks again", at=(282, 162), anchor="start")
    picture.arrow(110, 128, 110, 208, "refused, finished,", at=(118, 164), anchor="start")
    picture.text(118, 180, "asked to leave", size=12, anchor="start")
    picture.text(
        415, 46, "move: the client asks a server with siblings to take a stage that has nobody", size=12
    )
    picture.arrow(690, 58, 690, 30)
    picture.line(690, 30, 140, 30)
    picture.arrow(140, 30, 140, 58)
    picture.text(
        430,
        308,
        "A server that dies is started again by its launcher; its inner steps since the last round are lost.",
        size=12,
    )
    return picture


def failover_timeline() -> Picture:
    """The quick drill as it was measured."""
    picture = Picture(860, 270, "The quick drill in time")
    begin, scale = 60.0, 35.0
    picture.line(begin, 130, begin + scale * 22, 130)
    for tick in range(0, 23, 2):
        picture.line(begin + scale * tick, 126, begin + scale * tick, 134)
        picture.text(begin + scale * tick, 150, f"{tick} s", size=11)
    events = [
        (5.6, "all servers serve", -1, 0, "middle"),
        (6.8, "two pipelines train", -1, 1, "middle"),
        (12.8, "SIGKILL front.0.1.0", -1, 0, "middle"),
        (12.82, "trains again, 0.02 s later", 1, 0, "middle"),
        (14.9, "a new server starts", -1, 1, "middle"),
        (17.03, "it trains, 2.13 s later", 1, 1, "end"),
        (17.4, "rounds of two members again", 1, 2, "middle"),
        (19.4, "SIGKILL front.0.0.0, back.0.1.0", -1, 2, "middle"),
        (19.47, "trains again, 0.07 s later", 1, 0, "middle"),
        (21.5, "end", -1, 0, "middle"),
    ]
    for at, words, side, level, anchor in events:
        x, red = begin + scale * at, words.startswith("SIGKILL")
        y = 130 - 30 - 26 * level if side < 0 else 130 + 50 + 26 * level
        picture.line(x, 130, x, y + (4 if side < 0 else -12))
        color = "#b42318" if red else "#1f2933"
        picture.text(x, y, words, size=12, anchor=anchor, bold=red, color=color)
    return picture


def failover_topology() -> Picture:
    """Who works with whom before the deaths of the drill, and after."""
    picture = Picture(860, 330, "Pipelines before and after two deaths")
    for column, title in enumerate(("before", "after the SIGKILL of front.0.0.0 and back.0.1.0")):
        left = 14 + 423 * column
        picture.box(left, 14, 409, 300, title, fill="host", top=True)
        for number in (0, 1):
            x = left + 30 + 190 * number
            dead_front, dead_back = column == 1 and number == 0, column == 1 and number == 1
            picture.box(x, 52, 160, 44, f"trainer {number}", fill="role")
            picture.box(
                x,
                142,
                160,
                50,
                f"front.0.{number}.0" + ("\ngone" if dead_front else ""),
                fill="bad" if dead_front else "server",
            )
            picture.box(
                x,
                240,
                160,
                50,
                f"back.0.{number}.0" + ("\ngone" if dead_back else ""),
                fill="bad" if dead_back else "server",
            )
            if column == 0:
                picture.arrow(x + 80, 98, x + 80, 140)
                picture.arrow(x + 80, 194, x + 80, 238, both=True)
        if column == 1:
            picture.arrow(left + 150, 98, left + 260, 140)
            picture.arrow(left + 300, 98, left + 300, 140)
            picture.arrow(left + 250, 194, left + 140, 238, both=True)
    return picture


FIGURES: dict[str, Callable[[], Picture]] = {
    "architecture.svg": architecture,
    "node-arrangement.svg": node_arrangement,
    "step.svg": step,
    "step-timing.svg": step_timing,
    "round.svg": outer_round,
    "failover-states.svg": failover_states,
    "failover-timeline.svg": failover_timeline,
    "failover-topology.svg": failover_topology,
}


if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (HERE / name).write_text(draw().svg(), encoding="utf-8")
        sys.stdout.write(f"{HERE / name}\n")
