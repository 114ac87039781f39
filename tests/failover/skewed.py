"""A role whose wall clock is off by so many seconds: `python skewed.py SECONDS MODULE [FLAG ...]`.

Its monotonic clock is right. Whatever reads the wall clock was imported after it was put wrong.
"""

from __future__ import annotations

import importlib
import sys
import time

if __name__ == "__main__":
    offset, module, *flags = sys.argv[1:]
    right = time.time
    time.time = lambda: right() + float(offset)
    sys.exit(importlib.import_module(module).main(flags))
