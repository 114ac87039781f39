"""Train in a swarm on this machine; --baseline computes locally instead."""

import sys

try:
    from distqat.launch.local import main
except ModuleNotFoundError as error:
    sys.exit(f"{error}; run `make setup` first, then .venv/bin/python run_local.py")

if __name__ == "__main__":
    sys.exit(main())
