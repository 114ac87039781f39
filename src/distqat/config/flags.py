"""Every field of the configuration as a flag, and back."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from distqat.config.fields import ConfigField, config_fields, field_at, nearest
from distqat.config.load import DEFAULT_CONFIG, load_config
from distqat.config.plugins import absolute
from distqat.config.schema import Config, split_list
from distqat.config.yaml_source import parse_value
from distqat.environment import prepare
from distqat.errors import ConfigError
from distqat.terminal import complain


class ConfigParser(argparse.ArgumentParser):
    """An ArgumentParser whose unknown flags name the nearest known one; flags are never abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "usage": "%(prog)s [flags]", **kwargs})

    def error(self, message: str) -> NoReturn:
        """One sentence instead of the usage of some sixty flags."""
        self.exit(2, f"{self.prog}: {message}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the program with `status`; the message goes to the person at the terminal."""
        if message:
            complain(message.rstrip("\n"))
        sys.exit(status)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `argparse` does; an unknown flag is one sentence that names the closest one."""
        if args is None:  # a role that was started by itself
            prepare()
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            close = nearest(flag, self._option_string_actions)
            self.error(
                f"unknown {'flag' if flag.startswith('-') else 'argument'} {flag!r}"
                + (f"; did you mean {close!r}?" if close else "; --help lists them")
            )
        return parsed


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config-path, --plugin, --disable-quant and one flag per field, grouped by section.

    What the user gave ends in `args.config_path` and `args.config_overrides`, a dict keyed by dotted path.
    The parser should be a ConfigParser; flags of the role itself must not share a name with a field.
    """
    parser.allow_abbrev = False
    parser.set_defaults(config_overrides={})
    parser.add_argument(
        "--config-path",
        default=DEFAULT_CONFIG,
        metavar="PATH",
        help="YAML file, or the name of a shipped one (default: %(default)s); empty: built-in defaults",
    )
    parser.add_argument(
        "--plugin",
        action=_AddPlugin,
        dest="config_overrides",
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="a file or module that registers models, tasks or data sets; may be given more than once",
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in config_fields():
        if field.section not in groups:
            groups[field.section] = parser.add_argument_group(field.section or "run")
        _add_flag(groups[field.section], field)
    groups["quant"].add_argument(
        "--disable-quant",
        action=_SetField,
        field="quant.enabled",
        nargs=0,
        const=False,
        dest="config_overrides",
        default=argparse.SUPPRESS,
        help="train in float: --no-quant-enabled",
    )


def config_from_args(args: argparse.Namespace) -> Config:
    """The configuration that the parsed flags ask for. Raises ConfigError."""
    return load_config(args.config_path or None, args.config_overrides)


def to_argv(config_path: str | Path | None, overrides: Mapping[str, Any]) -> list[str]:
    """The flags that give another role the same settings: the inverse of parsing. Raises ConfigError."""
    argv = [f"--config-path={config_path or ''}"]
    for path, value in overrides.items():
        field = field_at(path)
        if field is None:
            close = nearest(path, [known.path for known in config_fields()])
            raise ConfigError(f"{path}: no such field" + (f"; did you mean {close!r}?" if close else ""))
        text = value if isinstance(value, str) else json.dumps(value)  # JSON is YAML
        argv.append(f"{field.flag}={text}")
    return argv


def read_text(field: ConfigField, text: str) -> Any:
    """The value that `text` on the command line means; the schema checks it later. Raises ConfigError."""
    if text == "null":
        return None
    if field.is_text or field.is_number or field.is_bool:
        return text
    if field.is_text_list and not text.lstrip().startswith("["):
        return split_list(text)
    return parse_value(text)


class _SetField(argparse.Action):
    """Store one field in `config_overrides`; the last flag for a field wins."""

    def __init__(self, *args: Any, field: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.field = field

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        field = field_at(self.field)
        assert field is not None
        value: Any = values
        if self.nargs == 0:
            value = self.const
        elif field.is_bool and option_string == _negated(field):
            if values is not None:
                raise argparse.ArgumentError(self, "takes no value")
            value = False
        elif values is None:
            value = True
        elif isinstance(values, str):
            try:
                value = read_text(field, values)
            except ConfigError as error:
                raise argparse.ArgumentError(self, str(error)) from None
        namespace.config_overrides = {**namespace.config_overrides, self.field: value}


class _AddPlugin(argparse.Action):
    """One more name in the list of plugins; its path is made absolute, since other roles are given it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = split_list(namespace.config_overrides.get("plugins", []))
        names = [*given, absolute(str(values), Path())]
        namespace.config_overrides = {**namespace.config_overrides, "plugins": names}


def _add_flag(group: argparse._ArgumentGroup, field: ConfigField) -> None:
    flags = [field.flag, _negated(field)] if field.is_bool else [field.flag]
    default = json.dumps(field.default)
    doc = f"{field.doc} ".lstrip() + f"(default: {default})"
    group.add_argument(
        *flags,
        action=_SetField,
        field=field.path,
        dest="config_overrides",
        default=argparse.SUPPRESS,
        nargs="?" if field.is_bool else None,
        metavar=_metavar(field),
        help=doc.replace("%", "%%"),
    )


def _negated(field: ConfigField) -> str:
    return f"--no-{field.flag[2:]}"


def _metavar(field: ConfigField) -> str:
    if field.is_bool:
        return "true|false"
    if field.choices:
        return "|".join(field.choices)
    if field.is_number:
        return "NUMBER"
    if field.is_text:
        return "TEXT"
    return "A,B" if field.is_text_list else "YAML"
