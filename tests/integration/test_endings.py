"""Whole local runs whose ending meets what real disks and data do to it: nothing computed is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distqat.checkpoint.assembled_model import read_model
from distqat.launch import cli

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the fork server is Linux's"),
    pytest.mark.timeout(150),
]
ROOT = Path(__file__).parents[2]
FLAGS = (
    "--config-path=configs/mlp.yaml", "--experiment-prefix=ending", "--monitor-port=0", "--client-port=0",
    "--server-base-port=0", "--replicas=1", "--diloco-outer-steps=2", "--diloco-inner-steps=3",
    "--no-progress",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    said: str
    errors: str

    @property
    def last(self) -> str:
        return self.errors.strip().splitlines()[-1]


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """`run_local.py` in a folder of its own; whatever is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)

    def whole(*flags: str, points: str = "") -> Ended:
        environment = {
            **os.environ, "XDG_RUNTIME_DIR": str(runtime), "PYTHONPATH": str(ROOT / "src"),
            "DISTQAT_FAILPOINTS": points,
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_local.py"), *FLAGS, *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment,
        )  # fmt: skip
        started.append(process)
        said, errors = process.communicate(timeout=120)
        return Ended(process.returncode, said, errors)

    yield whole
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=20)


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "logs" / "ending" / "summary.json").read_text()))


def pictures(folder: Path) -> None:
    """Two classes; of the held-out ones a late one was cut short as it was copied."""
    for shade, name in enumerate(("cat", "dog")):
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
            for number in range(40):
                Image.new("L", (8, 8), 120 * shade + number).save(folder / split / name / f"{number:02}.png")
    cut = folder / "test" / "dog" / "30.png"
    cut.write_bytes(cut.read_bytes()[:40])


def test_a_broken_held_out_picture_costs_the_judgement_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "photos")
    ended = run("--data-dataset-name=./photos")
    folder = tmp_path / "checkpoints" / "ending"
    assert ended.code == 1, ended
    assert "starting again" not in ended.said
    assert (
        "distqat run_local: the model is saved as checkpoints/ending/model.safetensors, but it could "
        in ended.last
    )
    assert "held-out samples 1 to 80 (from 1): " in ended.last
    assert "/photos/test/dog/30.png: it is not an image" in ended.last
    assert read_model(folder / "model.safetensors")
    told = summary(tmp_path)
    assert (told["accuracy"], told["samples"] > 0) == (None, True)
    assert "/photos/test/dog/30.png: it is not an image" in told["evaluation_error"]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "checkpoints/ending"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    (tmp_path / "photos" / "test" / "dog" / "30.png").unlink()
    assert cli.main(["evaluate", "checkpoints/ending"]) == 0
    assert "on 79 held-out samples" in capsys.readouterr().out


@pytest.mark.slow
def test_a_baseline_that_cannot_be_judged_does_not_train_again(run: Run, tmp_path: Path) -> None:
    ended = run("--baseline", points="evaluation.judge:raise@1+")
    assert ended.code == 1, ended
    assert "checkpoints/ending/model.safetensors, but it could not be judged: " in ended.last
    assert "ZeroDivisionError: failpoint evaluation.judge" in ended.last
    assert summary(tmp_path)["mode"] == "baseline"
    log = (tmp_path / "logs" / "ending" / "trainer_0.log").read_text()
    assert log.count("Trainer 0 Step #1 ") == 1


@pytest.mark.slow
def test_a_rate_that_is_too_high_ends_a_baseline_with_the_cause(run: Run, tmp_path: Path) -> None:
    flags = ("--disable-quant", "--diloco-inner-optim-type=sgd", "--diloco-inner-optim-sgd-lr=1e38")
    ended = run("--baseline", *flags)
    assert ended.code == 1, ended
    assert "of 6 steps changed nothing: the loss is nan at step 6, learning rate" in ended.said + ended.errors
    assert not (tmp_path / "checkpoints" / "ending" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_second_run_keeps_the_first(run: Run, tmp_path: Path) -> None:
    """Of another model, under the same name; then one in one process."""
    assert run().code == 0
    folder = tmp_path / "checkpoints" / "ending"
    first = (folder / "model.safetensors").read_bytes()
    ended = run("--config-path=configs/mlp_four_stages.yaml")
    assert ended.code == 0, ended
    kept = list(folder.glob("previous/*/model.safetensors"))
    assert [path.read_bytes() for path in kept] == [first]
    assert ended.said.count("an earlier run is kept in ") == 1
    assert (
        f"client: an earlier run is kept in checkpoints/ending/previous/{kept[0].parent.name}/" in ended.said
    )
    assert len(list(kept[0].parent.glob("*-*"))) == 3  # its rounds, with the one at its begin
    assert run("--baseline").code == 0
    assert len(list(folder.glob("previous/*/model.safetensors"))) == 2


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_model_goes_elsewhere(run: Run, tmp_path: Path) -> None:
    """On a disk that is really full: 96 kB, of which no round has room."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "distqat", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk of its own needs root")
    try:
        ended = run("--param-mirror-checkpoint-dir=small/ck")
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
    assert ended.code == 0, ended
    elsewhere = "logs/ending/ending.model.safetensors"
    assert "is not on disk: small/ck/" in ended.said
    assert f"No space left on device: the model is saved as {tmp_path}/{elsewhere}" in ended.said
    assert f"model        {elsewhere}" in ended.said
    assert read_model(tmp_path / elsewhere)


def test_what_cannot_be_written_or_resumed_is_refused_before_anything_starts(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    ended = run()
    assert ended.code == 2, ended
    assert f"cannot be written to {tmp_path}/checkpoints/ending (Not a directory)" in ended.last
    (tmp_path / "checkpoints").unlink()
    ended = run("--resume")
    assert ended.code == 2, ended
    assert "nothing to resume of run 'ending' (no commit log says how far it went): " in ended.last
    assert not (tmp_path / "logs" / "ending" / "client.log").exists()
