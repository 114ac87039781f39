"""What cannot work is said before anything is started, by the commands that people type: code 2, one line."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.plugin_scene import forgotten_plugins

from distqat.data.options import DataOptions
from distqat.distributed import client, data_server, monitor, role_main, server, trainer
from distqat.launch import run_local, start_servers, trainer_client

MODEL = """
import torch
from torch import nn
from distqat.models.registry import register_expert_class

def flat(batch_size, hid_dim=8):
    return torch.empty(batch_size, hid_dim)

def image(batch_size, num_channels, img_size):
    return torch.empty(batch_size, num_channels, img_size, img_size)

@register_expert_class("small.head", image)
class Head(nn.Module):
    def __init__(self, hid_dim=8, num_channels=1, img_size=8):
        super().__init__()
        self.head = nn.Linear(num_channels * img_size**2, hid_dim)
    def forward(self, x):
        return self.head(x.flatten(1)).relu()

@register_expert_class("small.widen", flat)
class Widen(nn.Module):
    def __init__(self, hid_dim=8):
        super().__init__()
        self.widen = nn.Linear(hid_dim, 2 * hid_dim)
    def forward(self, x):
        return self.widen(x)

@register_expert_class("small.tail", lambda batch_size: torch.empty(batch_size, 16))
class Tail(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.tail = nn.Linear(16, num_classes)
    def forward(self, x):
        return self.tail(x)
"""
TASK = """
from distqat.extras import require
from distqat.tasks import register_task

@register_task("listening")
def listening(settings):
    require("no_such_package_here", extra="speech", why="recorded speech")

class Careless:
    name, loss_at, metric = "careless", "last_stage", "accuracy"
    def collate(self, samples):
        return [sample["no such column"] for sample in samples]

@register_task("careless")
def careless(settings):
    return Careless()
"""
DATA = """
import threading
from distqat.data.source import register_dataset

@register_dataset("stuck")
def stuck(options, seed):
    threading.Event().wait(30)
"""
WHOLE = "[{model_name: small.head}, {model_name: small.widen}, {model_name: small.tail}]"
DATA_FLAGS = ("--data-img-size=8", "--data-num-channels=1", "--no-quant-enabled", "--config-path=")


class Nothing:
    """Stands where a fork server would: what is refused never gets to it."""

    @classmethod
    def start(cls, *_: Any) -> Nothing:
        return cls()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Plugins and data in a folder where the commands run, without fork servers."""
    for name, text in (("model.py", MODEL), ("task.py", TASK), ("data.py", DATA)):
        (tmp_path / name).write_text(textwrap.dedent(text))
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    rows = [{"picture": [[0, 1], [2, 3]], "label": n} for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for module in (start_servers, trainer_client, client):
        monkeypatch.setattr(module, "ForkServerClient", Nothing)
    monkeypatch.setattr(run_local, "WarmForkServers", Nothing)
    for module in (start_servers, trainer_client, run_local, role_main):
        monkeypatch.setattr(module, "set_title", lambda *_: None)
    monkeypatch.setattr(role_main, "set_up_logging", lambda *_: None)
    monkeypatch.setattr("distqat.launch.launcher_roles.set_up_logging", lambda *_: None)
    monkeypatch.setattr(data_server, "OPEN_S", 0.5)
    with forgotten_plugins():
        yield tmp_path


def pipeline(text: str) -> tuple[str, ...]:
    return "--plugin=model.py", f"--model-pipeline-pipeline={text}", *DATA_FLAGS


LANGUAGE = "[{model_name: distilgpt2.full, n_layer: 1, n_embd: 8, n_head: 2, vocab_size: 100}]"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("main", "flags", "said"),
    [
        (
            server.main,
            pipeline(WHOLE.replace("small.head", "small.head, hid_dim: 4")),
            ["stage 'widen' takes", "the stage before it gives", "do not fit together"],
        ),
        (
            server.main,
            pipeline("[{model_name: small.head}, {model_name: small.tail}]"),
            ["stage 'tail' takes", "small has head, tail, widen"],
        ),
        (
            server.main,
            pipeline("[{model_name: small.haed}, {model_name: small.tail}]"),
            ["unknown model stage 'small.haed'; did you mean 'small.head'?"],
        ),
        (
            server.main,
            pipeline("[{model_name: small.head, hidden: 4}, {model_name: small.tail}]"),
            ["stage 'small.head' does not take 'hidden'", "hid_dim"],
        ),
        (
            server.main,
            ("--config-path=", f"--model-pipeline-pipeline={LANGUAGE}", "--data-task-type=llm"),
            ["data.tokenizer 'bytes' has 257 tokens, but the model knows 100; set vocab_size to 257"],
        ),
        (
            server.main,
            ("--plugin=task.py", "--data-task-type=listening", *pipeline(WHOLE)),
            ["recorded speech needs the package 'no_such_package_here'", "pip install 'distqat[speech]'"],
        ),
        (
            data_server.main,
            ("--data-dataset-name=./rows.jsonl", *pipeline(WHOLE)),
            ["expected a column image or img, found: label, picture"],
        ),
        (data_server.main, ("--data-dataset-name=./nothing", *DATA_FLAGS), ["there is no file or folder"]),
        (
            data_server.main,
            ("--data-dataset-name=acme/unreachable", *DATA_FLAGS),
            ["the hub cannot be reached; check the network", "'digits'"],
        ),
        (data_server.main, ("--data-dataset-name=digit", *DATA_FLAGS), ["did you mean 'digits'?"]),
        (data_server.main, ("--data-dataset-name=rows.jsonl", *DATA_FLAGS), ["the path './rows.jsonl'?"]),
        (
            data_server.main,
            ("--plugin=task.py", "--data-task-type=careless", *DATA_FLAGS),
            ["sample 0 of epoch 0", "'careless' cannot make a batch of it: KeyError: 'no such column'"],
        ),
        (
            data_server.main,
            ("--plugin=data.py", "--data-dataset-name=stuck", *DATA_FLAGS),
            ["'stuck' gave no batch within 0.5 s: check the network"],
        ),
        (data_server.main, ("--data-task-type=nlpp",), ["unknown task type 'nlpp'; did you mean 'nlp'?"]),
        (server.main, ("--config-path=",), ["--initial-peers is missing", "logs/distqat/initial_peers.txt"]),
        (client.main, ("--config-path=",), ["--initial-peers is missing", "logs/distqat/initial_peers.txt"]),
        (trainer.main, ("--config-path=",), ["is started by its client", "--run-locally"]),
        (run_local.main, ("--config-path=", "--data-dataset-name=./nothing"), ["there is no file or folder"]),
        (
            trainer_client.main,
            ("--config-path=", "--data-dataset-name=./nothing"),
            ["there is no file or folder"],
        ),
        (run_local.main, ("--plugin=broken.py",), ["broken.py:2: ZeroDivisionError: division by zero"]),
        (start_servers.main, ("--plugin=nothing.py",), ["nothing.py: no such file"]),
        (trainer_client.main, ("--plugin=no_such_module",), ["no module 'no_such_module' can be imported"]),
    ],
    ids=[
        "shapes", "missing stage", "stage name", "stage key", "tokenizer", "extra", "column", "path",
        "network", "data set name", "path without ./", "careless task", "too slow", "task name",
        "server alone", "client alone", "trainer alone",
        "path, local run", "path, client", "plugin raises", "plugin missing", "plugin module",
    ],
)  # fmt: skip
def test_the_error_is_one_line_with_the_fix_and_code_2(
    main: Callable[[Sequence[str]], int],
    flags: Sequence[str],
    said: Sequence[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if main is data_server.main and "--data-dataset-name=stuck" not in flags:
        monkeypatch.setattr(data_server, "OPEN_S", 50.0)
    assert main(flags) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    for part in said:
        assert part in errors


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("main", [monitor.main, client.main])
def test_a_log_folder_that_cannot_be_is_one_line(
    main: Callable[[Sequence[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("logs").touch()
    assert (
        main(["--config-path=", "--log-dir=logs/x", "--initial-peers=/ip4/127.0.0.1/tcp/9/p2p/QmTest"]) == 1
    )
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "cannot write logs in logs/x" in errors
    assert "--log-dir" in errors


def test_the_names_of_data_sets_are_not_checked_without_opening_them() -> None:
    """Servers read no data: theirs may name what only the client's host has."""
    assert DataOptions(dataset_name="./only/there").dataset_name == "./only/there"
