"""Packages that only some tasks and models need: `pip install distqat[speech]`."""

from __future__ import annotations

import importlib
from types import ModuleType

from distqat.errors import MissingExtra


def require(package: str, *, extra: str, why: str = "") -> ModuleType:
    """Import `package` (`"soundfile"`, `"torch_geometric.datasets"`), which the extra of that name installs.

    `why` is what needs it, for the message: "recorded speech". Raises MissingExtra (a ConfigError, so that
    every role and launcher ends with code 2) when it is not installed. A package that is there but cannot be
    imported raises what it raises: installing it again would not help.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        top = package.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise MissingExtra(top, extra, why) from error
