"""A failover drill: start a swarm, kill servers of it, and see that training goes on. Nothing for pytest."""

import sys

try:
    from distqat.terminal import begin, leave
except ModuleNotFoundError as error:
    sys.exit(f"{error}; run `make setup` first, then .venv/bin/python test_failover.py")

if __name__ == "__main__":
    begin("test_failover")  # before the rest is imported: Ctrl-C may come at any moment
    from distqat.drill.failover_drill import main

    leave(main())
