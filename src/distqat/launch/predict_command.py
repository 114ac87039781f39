"""`distqat predict`: run an exported model on one image, text or recording."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distqat.config import ConfigParser
from distqat.launch.command_frame import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1: the file or the input cannot be used; 2: bad usage, or a package is missing."""
    parser = ConfigParser("distqat predict", usage="%(prog)s MODEL INPUT [flags]", description=__doc__)
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="the .onnx file of distqat export, or its folder"
    )
    parser.add_argument(
        "input", metavar="INPUT", help="an image (png, jpg, npy), a recording (wav), or a text"
    )
    parser.add_argument("--top", type=int, default=3, metavar="N", help="answers to print (%(default)s)")
    args = parser.parse_args(argv)
    return run_command("predict", lambda: _predict(args))


def _predict(args: argparse.Namespace) -> int:
    from distqat.export.predict import Predictor

    for answer in Predictor(args.model).answers(args.input, max(args.top, 1)):
        share = "" if answer.share is None else f"{answer.share:7.2%}  "
        sys.stdout.write(f"{share}{answer.text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
