"""Who serves what, where a server goes, which way a step takes: plain values and pure decisions."""
