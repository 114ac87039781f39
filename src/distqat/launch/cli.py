"""`distqat`: every role and launcher behind one command; only what is asked for is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from distqat import __version__
from distqat.environment import prepare
from distqat.errors import UnknownName
from distqat.terminal import begin, complain, leave

# name: (where, arguments that come first, what it does)
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "run": ("distqat.launch.run_local:main", (), "train in a swarm on this machine"),
    "baseline": ("distqat.launch.run_local:main", ("--baseline",), "train the unsplit model on this machine"),
    "trainer-client": ("distqat.launch.trainer_client:main", (), "start a swarm: monitor and client"),
    "servers": ("distqat.launch.start_servers:main", (), "join a swarm with servers of this host"),
    "monitor": ("distqat.distributed.monitor:main", (), "one role: bootstrap and metrics"),
    "client": ("distqat.distributed.client:main", (), "one role: trainers, data, commit log"),
    "trainer": ("distqat.distributed.trainer:main", (), "one role: drives one pipeline"),
    "server": ("distqat.distributed.server:main", (), "one role: hosts one replica of a stage"),
    "data-server": ("distqat.distributed.data_server:main", (), "one role: reads the data set"),
    "checkpoint": ("distqat.launch.checkpoint_command:main", (), "list, verify or assemble checkpoints"),
    "evaluate": ("distqat.launch.evaluate_command:main", (), "the metric of a checkpoint or a swarm"),
    "export": ("distqat.launch.export_command:main", (), "a checkpoint as an integer model, checked"),
    "predict": (
        "distqat.launch.predict_command:main",
        (),
        "run an exported model on an image, text or sound",
    ),
    "config": (
        "distqat.config.config_command:config_command",
        (),
        "print the resolved configuration or its schema",
    ),
}

LAUNCHERS = ("run", "baseline", "trainer-client", "servers")
ROLES = ("monitor", "client", "trainer", "server", "data-server")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the command; 2 for one that does not exist."""
    by_a_person = argv is None
    if by_a_person:
        begin("distqat", clean=False)
    prepare()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        sys.stdout.write(usage())
        complain("distqat: name a command")
        return 2
    if words[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"distqat {__version__}\n")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        complain(f"distqat: {UnknownName('command', name, COMMANDS)}")
        return 2
    where, first, _ = COMMANDS[name]
    if by_a_person:
        begin(name, clean=name not in ROLES or "--watch" in rest)
        if name in (*LAUNCHERS, *ROLES):
            leave(load(where)([*first, *rest]))
    return load(where)([*first, *rest])


def load(where: str) -> Callable[[Sequence[str]], int]:
    """The function at "package.module:function"."""
    module, _, function = where.partition(":")
    found: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return found


def usage() -> str:
    """What `distqat --help` prints."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {does}" for name, (_, _, does) in COMMANDS.items()]
    return "\n".join(
        ["usage: distqat COMMAND [flags]", "", *rows, "", "`distqat COMMAND --help` lists its flags.", ""]
    )


if __name__ == "__main__":
    sys.exit(main())
