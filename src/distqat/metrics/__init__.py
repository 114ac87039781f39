"""Where numbers go: one sink per process, and tables to look at."""

from __future__ import annotations

from distqat.metrics.sink import Fanout, JsonLines, NullSink, Sink, open_sinks
from distqat.metrics.swarm_tables import swarm_table

__all__ = ["Fanout", "JsonLines", "NullSink", "Sink", "open_sinks", "swarm_table"]
