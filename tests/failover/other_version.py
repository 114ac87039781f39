"""A role of another protocol version: `python other_version.py MODULE [FLAG ...]`."""

from __future__ import annotations

import importlib
import sys

if __name__ == "__main__":
    from distqat.swarm import tensor_frame

    tensor_frame.PROTOCOL_VERSION += 1  # before anybody has imported it by name
    sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
