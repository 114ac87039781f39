"""What benchmarks/story.py reads from a run, and the picture that it draws of it."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from benchmarks import story_picture as picture
from benchmarks.canvas import SHOWN
from benchmarks.story import answers_of, settings, write_digit
from benchmarks.story_record import Story, read_story
from PIL import Image
from tests.docs.pages import ROOT

IMAGES = ROOT / "docs" / "images"
BEGAN = datetime(2026, 1, 2, 3, 4, 0).timestamp()  # local time, as in a log
VICTIM = "front.0.1.0"
CLIENT_LOG = """\
2026-01-02 03:04:02,000 INFO    [client] Found expert front.0.0.0 at /ip4/127.0.0.1/tcp/1/p2p/QmA
2026-01-02 03:04:02,500 INFO    [client] Found expert front.0.1.0 at /ip4/127.0.0.1/tcp/2/p2p/QmB
2026-01-02 03:04:10,250 INFO    [client] front.0.1.0 is gone
2026-01-02 03:04:12,750 INFO    [client] Found expert front.0.1.0 at /ip4/127.0.0.1/tcp/2/p2p/QmC
2026-01-02 03:04:13,000 INFO    [client] Trainer 0 Step #30 loss = 0.39805 sps = 194.7
2026-01-02 03:04:21,000 INFO    [client] front.0.0.0 is gone
"""
SERVER_LOG = """\
2026-01-02 03:04:02,400 INFO    [server] front.0.1.0 took round 0, 0.3 MB, in 1.23 s
2026-01-02 03:04:12,500 INFO    [server] front.0.1.0 took round 7, 0.5 MB, in 0.09 s from front.0.0.0
"""


def step(pipeline: int, at: float, peer: str, loss: float = 1.0, *, skipped: bool = False) -> dict[str, Any]:
    uid = "front.0.0.0" if peer == "QmA" else VICTIM
    return {
        "event": "step", "pipeline": pipeline, "time": BEGAN + at, "route": [uid], "peers": [peer],
        "samples": 32, "loss": loss, "skipped": skipped,
    }  # fmt: skip


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """What a run of twenty seconds leaves; a server of it was killed after ten."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "client.log").write_text(CLIENT_LOG)
    (tmp_path / "server_1.log").write_text(SERVER_LOG)
    (tmp_path / "summary.json").write_text(json.dumps({"value": 0.75, "rounds": 8, "samples": 224}))
    client = [
        {"event": "evaluation", "time": BEGAN + 6, "value": 0.5},
        {"event": "fault", "time": BEGAN + 10.25, "uid": VICTIM, "peer": "QmB"},
    ]
    steps = [
        [step(0, 3, "QmA", 2.0), step(0, 11, "QmA"), step(0, 20, "QmA")],
        [step(1, 3.5, "QmB", 4.0), step(1, 9, "QmB", skipped=True), step(1, 10.5, "QmA"), step(1, 13, "QmC")],
    ]
    for name, records in (("client", client), ("trainer_0", steps[0]), ("trainer_1", steps[1])):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "metrics" / f"{name}.jsonl").write_text(text)
    return tmp_path


def read(logs: Path) -> Story:
    return read_story(logs, ["front"], BEGAN, (VICTIM, BEGAN + 10), {"cores": 2})


def test_a_story_is_what_the_roles_wrote(logs: Path) -> None:
    story = read(logs)
    assert story.evaluations == [(6.0, 0.5), (20.0, 0.75)]
    assert story.losses == [(3.0, 3.0), (11.0, 1.0), (13.0, 1.0), (21.0, 1.0)]
    assert story.samples["0"] == [0, 32, 0, 0, 0, 32, 0, 0, 0, 0, 32]
    assert story.samples["1"] == [
        0,
        32,
        0,
        0,
        0,
        32,
        32,
        0,
        0,
        0,
        0,
    ]  # the step that was skipped trained nothing
    assert story.serving == {"front.0.0.0": [(2.0, 20.0)], VICTIM: [(2.5, 10.25), (12.75, 20.0)]}
    kill = story.kill
    assert (kill.victim, kill.at, kill.went_on, kill.served) == (VICTIM, 10.0, 10.5, 12.75)
    assert (kill.over, kill.state) == ("front.0.0.0", "round 7 from front.0.0.0")


@pytest.mark.parametrize(
    ("log", "kept"), [("client.log", 2), ("server_1.log", 1), ("metrics/trainer_1.jsonl", 2)]
)
def test_a_swarm_that_did_not_recover_has_no_story(log: str, kept: int, logs: Path) -> None:
    lines = (logs / log).read_text().splitlines(keepends=True)
    (logs / log).write_text("".join(lines[:kept]))
    with pytest.raises(RuntimeError, match=r"did not get over the death of front\.0\.1\.0; see"):
        read(logs)


def test_a_kill_that_hit_nobody_has_no_story(logs: Path) -> None:
    (logs / "metrics" / "trainer_1.jsonl").write_text("")
    with pytest.raises(RuntimeError, match="no pipeline trained through"):
        read(logs)


def test_a_story_is_read_back() -> None:
    story = Story.from_json((IMAGES / "story.json").read_text())
    again = Story.from_json(story.to_json())
    assert again == story
    assert again.kill.went_on - again.kill.at < 5


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_picture_shows_the_kill_where_it_was(share: float, tmp_path: Path) -> None:
    story = Story.from_json((IMAGES / "story.json").read_text())
    story = dataclasses.replace(story, kill=dataclasses.replace(story.kill, at=share * story.kill.at))
    picture.draw_story(story, tmp_path / "story.png")
    assert (tmp_path / "story.png").stat().st_size < 200_000
    seconds, shown = story.evaluations[-1][0], (picture.ACCURACY.top, picture.SERVERS.bottom)
    with Image.open(tmp_path / "story.png") as image:
        assert image.size == (picture.WIDTH * SHOWN, picture.HEIGHT * SHOWN)
        assert image.getpixel((0, 0))[3] == 0  # transparent around the round corners of the card
        assert image.getpixel((30, 30)) == (255, 255, 255, 255)
        x = round(picture.Panel(picture.ACCURACY, seconds, 0, 1).x(story.kill.at) * SHOWN)
        column = [image.getpixel((x, y)) for y in range(*(round(SHOWN * y) for y in shown))]
    red = sum(r > 150 > max(g, b) for r, g, b, _ in column)
    assert red > len(column) / 3  # a dashed line


def test_the_picture_of_the_readme_is_there() -> None:
    found = re.findall(r"!\[[^\]]+\]\((docs/images/[^)]+)\)", (ROOT / "README.md").read_text())
    assert found == ["docs/images/story.png"]
    assert (ROOT / found[0]).stat().st_size < 200_000


def test_answers_are_read() -> None:
    assert answers_of(" 99.07%  7\n  0.43%  4\n") == [("7", 0.9907), ("4", 0.0043)]


def test_the_digit_is_that_of_the_held_out_data(tmp_path: Path) -> None:
    config, flags = settings(tmp_path, ["--diloco-outer-steps", "8", "--log-dir", "elsewhere"])
    assert config.diloco.outer_steps == 8
    assert "--diloco-outer-steps=8" in flags
    assert Path(config.log_dir) == tmp_path / "logs"
    label, pixels = write_digit(tmp_path / "digit.png", config)
    assert label in "0123456789"
    with Image.open(tmp_path / "digit.png") as image:
        assert image.size == (16, 16)
        assert image.getpixel((7, 3)) == pytest.approx(255 * pixels[3][7], abs=1)
