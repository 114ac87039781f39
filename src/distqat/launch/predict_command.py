"""`distqat predict`: run an exported model on one image, text or recording."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distqat.errors import ConfigError, DistqatError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1: the file or the input cannot be used; 2: bad usage, or a package is missing."""
    parser = argparse.ArgumentParser("distqat predict", description=__doc__)
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="the .onnx file of distqat export, or its folder"
    )
    parser.add_argument(
        "input", metavar="INPUT", help="an image (png, jpg, npy), a recording (wav), or a text"
    )
    parser.add_argument("--top", type=int, default=3, metavar="N", help="answers to print (%(default)s)")
    args = parser.parse_args(argv)
    try:
        from distqat.export.predict import Predictor

        answers = Predictor(args.model).answers(args.input, max(args.top, 1))
    except ConfigError as error:
        sys.stderr.write(f"distqat predict: {error}\n")
        return 2
    except DistqatError as error:
        sys.stderr.write(f"distqat predict: {error}\n")
        return 1
    for answer in answers:
        share = "" if answer.share is None else f"{answer.share:7.2%}  "
        sys.stdout.write(f"{share}{answer.text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
