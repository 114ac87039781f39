"""`python -m distqat.process SOCKET OWNER MODULE...`: a fork server, started by its owner."""

from __future__ import annotations

from distqat.process.forkserver import main

if __name__ == "__main__":
    main()
