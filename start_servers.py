"""Join a swarm with servers of this host."""

import sys

try:
    from distqat.launch.servers import main
except ModuleNotFoundError as error:
    sys.exit(f"{error}; run `make setup` first, then .venv/bin/python start_servers.py")

if __name__ == "__main__":
    sys.exit(main())
