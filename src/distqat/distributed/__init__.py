"""The roles of a swarm, and what they are made of."""

from __future__ import annotations

import os

# Read by OpenMP as torch is imported: threads that wait busily starve the other processes of the host.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
