"""Process titles: `distqat server front.0.0.0 python src/distqat/distributed/server.py --device cpu`.

They start with `distqat` and go on with the command as documented, also for a role that was forked or
started with -m, so that `pkill -f distqat` and `pkill -f "python.*start_servers.py"` find what they should.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from distqat.environment import printable

_SCRIPTS = {
    "run_local": "run_local.py",
    "trainer_client": "start_trainer_client.py",
    "servers": "start_servers.py",
    "failover": "test_failover.py",
    "forkserver": "src/distqat/process/forkserver.py",
}
_SECRET = re.compile(r"(?i)(token|secret|password|api[-_]?key|credential)")
_LIMIT = 2000  # characters; `ps` and /proc/PID/cmdline show a page at most


def script_of(kind: str) -> str:
    """The script of a role or launcher as the documentation spells it; `server` -> its path under src/."""
    return _SCRIPTS.get(kind.replace("-", "_"), f"src/distqat/distributed/{kind.replace('-', '_')}.py")


def redacted(argv: Sequence[str]) -> list[str]:
    """`argv` without the values of options whose name looks like a secret's."""
    shown: list[str] = []
    hide = False
    for word in argv:
        name, equals, _ = word.partition("=")
        if hide and not word.startswith("--"):
            shown.append("***")
        elif word.startswith("--") and equals and _SECRET.search(name):
            shown.append(f"{name}=***")
        else:
            shown.append(word)
        hide = word.startswith("--") and not equals and bool(_SECRET.search(word))
    return shown


def title(name: str, argv: Sequence[str] = ()) -> str:
    """`name` is the role and what tells it from its siblings: "server front.0.0.0", "trainer 0"."""
    script = script_of(name.split(maxsplit=1)[0])
    return " ".join(["distqat", name, "python", script, *redacted(argv)])[:_LIMIT]


def set_title(name: str, argv: Sequence[str] | None = None) -> None:
    """Give this process its title; `argv` without the program, by default that of this process."""
    import setproctitle

    setproctitle.setproctitle(printable(title(name, sys.argv[1:] if argv is None else argv)))
