"""`distqat config`: the schema, or the values that a file and flags resolve to."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import yaml

from distqat.config.authority import schema
from distqat.config.flags import ConfigParser, add_config_arguments, config_from_args
from distqat.errors import ConfigError
from distqat.terminal import complain


def config_command(argv: Sequence[str] | None = None) -> int:
    """Print JSON Schema (`--schema`) or resolved YAML (`PATH [overrides]`). Exit status 2: bad config."""
    parser = ConfigParser(
        "distqat config",
        usage="%(prog)s [PATH] [flags]",
        description="Print the resolved configuration, or its schema.",
    )
    parser.add_argument("path", nargs="?", metavar="PATH", help="as --config-path")
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of all fields, with who decides each"
    )
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.schema:
        sys.stdout.write(json.dumps(schema(), indent=2) + "\n")
        return 0
    if args.path is not None:
        args.config_path = args.path
    try:
        config = config_from_args(args)
    except ConfigError as error:
        complain(str(error))
        return 2
    sys.stdout.write(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return 0
