"""DistQat: distributed quantization-aware training over volunteer machines."""

from __future__ import annotations

__version__ = "0.1.0"
