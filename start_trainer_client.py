"""Start a swarm: the monitor, which prints the addresses to join, and the client."""

import sys

try:
    from distqat.terminal import begin, leave
except ModuleNotFoundError as error:
    sys.exit(f"{error}; run `make setup` first, then .venv/bin/python start_trainer_client.py")

if __name__ == "__main__":
    begin("trainer-client")  # before the rest is imported: Ctrl-C may come at any moment
    from distqat.launch.trainer_client import main

    leave(main())
