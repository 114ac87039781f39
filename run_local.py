"""Train in a swarm on this machine; --baseline computes locally instead."""

import sys

try:
    from distqat.terminal import begin, leave
except ModuleNotFoundError as error:
    sys.exit(f"{error}; run `make setup` first, then .venv/bin/python run_local.py")

if __name__ == "__main__":
    begin("run_local")  # before the rest is imported: Ctrl-C may come at any moment
    from distqat.launch.run_local import main

    leave(main())
