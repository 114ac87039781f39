"""How each documented command line is exercised without starting it; real runs: test_documented_run.py."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from tests.docs.pages import ROOT

from distqat.checkpoint import CheckpointStore, ShardState
from distqat.config import Config, ConfigParser, config_from_args, load_config
from distqat.diloco.tensor_digest import state_digest
from distqat.distributed import role_main
from distqat.distributed.assembly.evaluation import build_all
from distqat.distributed.serving.committed_state import initial
from distqat.drill import failover_drill
from distqat.errors import CheckpointError, ExportError, StageUnavailable
from distqat.launch import cli, run_local
from distqat.process.process_title import title
from distqat.swarm.handshake import TOKEN

PEERS = "/ip4/203.0.113.7/tcp/50000/p2p/QmTest,/ip4/127.0.0.1/tcp/50000/p2p/QmTest"
PLACEHOLDERS = {
    "${PUBLIC_IP}": "203.0.113.7",
    "${INITIAL_PEERS}": PEERS,
    "$(cat logs/resnet18/initial_peers.txt)": PEERS,
    "IP": "203.0.113.7",
    "...": PEERS,
}
SCRIPTS = {
    "run_local.py": "distqat.launch.run_local",
    "test_failover.py": "distqat.drill.failover_drill",
    "start_servers.py": "distqat.launch.start_servers",
    "start_trainer_client.py": "distqat.launch.trainer_client",
}
KINDS = ("run_local", "trainer-client", "servers", "monitor", "client", "trainer", "data-server", "server")


class Nothing:
    """Stands where a fork server or a list of servers would."""

    @classmethod
    def start(cls, *_: Any) -> Nothing:
        return cls()


class Commands:
    """Parses a command with the real parsers and loads its configuration; nothing is started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.parsed: list[Any] = []
        real = ConfigParser.parse_args

        def parse_args(parser: ConfigParser, *args: Any) -> Any:
            self.parsed.append(real(parser, *args))
            return self.parsed[-1]

        monkeypatch.setattr(ConfigParser, "parse_args", parse_args)
        monkeypatch.setattr("distqat.launch.launcher_roles.set_up_logging", lambda *_: None)
        monkeypatch.chdir(ROOT)

    def work_in(self, folder: Path) -> None:
        self._monkeypatch.chdir(folder)

    def python(self, words: Sequence[str]) -> None:
        """`python SCRIPT FLAGS`, `python -m MODULE FLAGS`."""
        if words[0] == "-m":
            module, flags = words[1], words[2:]
        elif words[0] in SCRIPTS:
            module, flags = SCRIPTS[words[0]], words[1:]
            assert f"from {module} import main" in (ROOT / words[0]).read_text()
        else:
            assert (ROOT / words[0]).is_file()
            module = words[0].removeprefix("src/").removesuffix(".py").replace("/", ".")
            flags = words[1:]
        self.main(module, flags)

    def distqat(self, words: Sequence[str]) -> None:
        """`distqat COMMAND FLAGS`."""
        if words[0] in ("config", "--help"):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert cli.main(words) == 0
            assert said.getvalue()
            return
        where, first, _ = cli.COMMANDS[words[0]]
        self.main(where.partition(":")[0], [*first, *words[1:]])

    def main(self, name: str, flags: Sequence[str]) -> Config:
        """The main of a module, up to where it would run."""
        module = importlib.import_module(name)
        if module in (run_local, failover_drill):
            module.parse(flags)
        else:
            for attribute, stub in (
                ("ForkServerClient", Nothing),
                ("run_role", lambda *_, **__: 0),
                ("set_title", lambda *_: None),
                ("plan_servers", lambda settings, count: [count] * count),
            ):
                for owner in (module, role_main):
                    if hasattr(owner, attribute):
                        self._monkeypatch.setattr(owner, attribute, stub)
            assert module.main(list(flags)) == 0
        return config_from_args(self.parsed[-1])


Exercise = Callable[[Commands, list[str]], None]


def python(commands: Commands, words: list[str]) -> None:
    commands.python(words[1:])


def only_flags(commands: Commands, words: list[str]) -> None:
    """The configuration is the reader's own; test_extending.py runs the command with it."""
    run_local.parse(words[2:])


def distqat(commands: Commands, words: list[str]) -> None:
    commands.distqat(words[1:])


def custom_loop(commands: Commands, words: list[str]) -> None:
    """The flags lead to a swarm; tests/integration/test_custom_loop.py trains one."""
    stubs = {"SwarmModel": mock.MagicMock(), "local_swarm": mock.MagicMock(), "train": lambda *_: [1.0]}
    with mock.patch.multiple("examples.custom_loop", **stubs), contextlib.redirect_stdout(io.StringIO()):
        commands.python(words[1:])
    assert stubs["local_swarm"].called == ("--initial-peers" not in words)
    assert stubs["SwarmModel"].connect.called


def checkpoint(commands: Commands, words: list[str]) -> None:
    """Over a small checkpoint of two stages, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        commands.work_in(Path(folder))
        store = CheckpointStore("checkpoints/resnet18", "resnet18", stages=("front", "back"))
        for stage in ("front", "back"):
            shared = {f"anchor/{stage}.w": torch.ones(2), "outer/step": torch.tensor(1)}
            agreement = {"stages": ["front", "back"]}
            state = ShardState(1, 1, 10, state_digest(shared), shared, agreement, "agreed")
            store.write(stage, state)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert cli.main(words[1:]) == 0
        assert "front" in said.getvalue()
        commands.work_in(ROOT)


def evaluate(commands: Commands, words: list[str]) -> None:
    """Over a checkpoint of an untrained model; a swarm is judged in tests/integration/test_evaluate.py."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        config = load_config("configs/resnet18.yaml")
        commands.work_in(Path(folder))
        store = CheckpointStore(config.checkpoint_dir, config.experiment_prefix, stages=tuple(config.stages))
        for stage, module in build_all(config).items():
            shared = initial(module).tensors()
            told = {"stages": config.stages}
            store.write(stage, ShardState(1, 1, 10, state_digest(shared), shared, told, "agreed"))
        assert cli.main(words[1:]) == 0
        commands.work_in(ROOT)
    assert "accuracy" in said.getvalue()


def evaluate_swarm(commands: Commands, words: list[str]) -> None:
    """The flags lead to a swarm; nobody answers at the placeholder."""
    with mock.patch("distqat.launch.evaluate_command._swarm", side_effect=StageUnavailable("asked")) as asked:
        assert cli.main(words[1:]) == 1
    assert asked.call_args.args[0].initial_peers


def export(commands: Commands, words: list[str]) -> None:
    """The flags are known; tests/unit/launch/test_export_command.py exports and predicts."""
    with mock.patch("distqat.launch.export_command._requests", side_effect=CheckpointError("asked")) as asked:
        assert cli.main(words[1:]) == 1
    own, args = asked.call_args.args
    assert args.checkpoint.parent == own.config.checkpoint_dir.parent
    assert (ROOT / "configs" / f"{args.checkpoint.name}.yaml").is_file()
    assert str(args.out).startswith("exported/")


def predict(commands: Commands, words: list[str]) -> None:
    """It is asked for the file that `distqat export` of this page writes."""
    with mock.patch("distqat.export.predict.Predictor", side_effect=ExportError("asked")) as asked:
        assert cli.main(words[1:]) == 1
    assert f"--out {asked.call_args.args[0]}" in (ROOT / "docs" / "export.md").read_text()


def statement(commands: Commands, words: list[str]) -> None:
    """`python -c CODE` that tells of success."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(words[2], {})
    assert said.getvalue() == "DistQat installed successfully!\n"


def helps(commands: Commands, words: list[str]) -> None:
    """A script with a parser of its own knows the flags."""
    done = subprocess.run(
        [sys.executable, words[1], "--help"], cwd=ROOT, capture_output=True, text=True, timeout=50, check=True
    )
    assert all(word in done.stdout for word in words if word.startswith("--"))


def make(commands: Commands, words: list[str]) -> None:
    subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, timeout=20, check=True)


def adds_to_make_run(commands: Commands, words: list[str]) -> None:
    """The file that it reads is the one that `make run` writes."""
    written = load_config("configs/resnet18.yaml").store_ip_addresses_path
    assert PLACEHOLDERS[f"$(cat {written})"] in words
    commands.python(words[1:])


def pkill(commands: Commands, words: list[str]) -> None:
    """The pattern finds the processes that it names."""
    wanted = {
        "distqat": KINDS,
        "python.*start_servers.py": ("servers",),
        "python.*monitor.py": ("monitor",),
    }[words[2]]
    found = [kind for kind in KINDS if re.search(words[2], title(kind, ["--device", "cpu"]))]
    assert tuple(found) == wanted


def sky(commands: Commands, words: list[str]) -> None:
    """The task declares what it is handed."""
    task = yaml.safe_load((ROOT / words[2]).read_text())
    for flag, value in itertools.pairwise(words):
        if flag in ("--env", "--secret"):
            assert value.partition("=")[0] in task[f"{flag[2:]}s"]


def reads_logs(commands: Commands, words: list[str]) -> None:
    """The path lies in the log folder of the default run."""
    folder = load_config("configs/resnet18.yaml").log_dir
    assert words[-1] in (f"{folder}/client.log", f"{folder}/tensorboard")


def token(commands: Commands, words: list[str]) -> None:
    assert words[1].partition("=")[0] == TOKEN


def split(line: str) -> list[str]:
    """The words of a command line, placeholders filled in."""
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(line)]
