"""How each role begins: its flags, its process title, its configuration and its log."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from distqat.config import Config, ConfigParser, add_config_arguments, config_from_args
from distqat.process import RoleParameters, run_role, set_title, set_up_logging


@dataclass(frozen=True)
class RoleStart:
    """What a role is started with: its configuration, its flags, and what its launcher told it."""

    config: Config
    args: argparse.Namespace
    parameters: RoleParameters

    def given(self, field: str) -> bool:
        """Whether the user set a top-level field, in the file or by a flag."""
        return field in self.config.model_fields_set


def run_role_main(
    name: str,
    description: str,
    serve: Callable[[RoleStart, asyncio.Event], Coroutine[Any, Any, int]],
    argv: Sequence[str] | None,
    *,
    flags: Callable[[ConfigParser], object] | None = None,
    title: Callable[[argparse.Namespace, RoleParameters], str] | None = None,
) -> int:
    """Run `serve(start, stop)` as the role `name`; its exit code, as `run_role` gives it.

    flags: adds those that are not of the configuration. title: tells the process from others of the role.
    """
    parser = ConfigParser(f"distqat {name}", description=description)
    if flags is not None:
        flags(parser)
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    parameters = RoleParameters.take()
    set_title(name if title is None else title(args, parameters), argv)

    async def role(stop: asyncio.Event) -> int:
        start = RoleStart(config_from_args(args), args, parameters)
        set_up_logging(name, start.config.log_level if start.given("log_level") else None)
        return await serve(start, stop)

    return run_role(name, role)
