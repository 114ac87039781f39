"""Which role a process of a swarm has, read from its title."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TITLE = re.compile(r"distqat (\S+)")
_SCRIPT = re.compile(r"(\w+)\.py$")


def role_of(command_line: Sequence[str]) -> str:
    """`distqat server front.0.0.0 python ...` -> "server"; else the script's name, else "other"."""
    text = " ".join(command_line).strip()
    titled = _TITLE.match(text)
    if titled:
        return titled.group(1)
    scripts = (_SCRIPT.search(word) for word in text.split())
    return next((script.group(1) for script in scripts if script), "other")
