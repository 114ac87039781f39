"""A failover drill: start a swarm, kill servers of it, and see that training goes on. Nothing for pytest."""

import sys

try:
    from distqat.launch.drill import main
except ModuleNotFoundError as error:
    sys.exit(f"{error}; run `make setup` first, then .venv/bin/python test_failover.py")

if __name__ == "__main__":
    sys.exit(main())
