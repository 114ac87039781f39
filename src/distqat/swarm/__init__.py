"""The engine behind a seam: signed directory, raw binary streams. The only place that imports hivemind."""
