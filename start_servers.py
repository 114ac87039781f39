"""Join a swarm with servers of this host."""

import sys

try:
    from distqat.terminal import begin, leave
except ModuleNotFoundError as error:
    sys.exit(f"{error}; run `make setup` first, then .venv/bin/python start_servers.py")

if __name__ == "__main__":
    begin("servers")  # before the rest is imported: Ctrl-C may come at any moment
    from distqat.launch.start_servers import main

    leave(main())
