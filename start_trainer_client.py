"""Start a swarm: the monitor, which prints the addresses to join, and the client."""

import sys

try:
    from distqat.launch.trainer_client import main
except ModuleNotFoundError as error:
    sys.exit(f"{error}; run `make setup` first, then .venv/bin/python start_trainer_client.py")

if __name__ == "__main__":
    sys.exit(main())
