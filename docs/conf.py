"""The documentation as a site: `make docs` builds it into build/docs, and a warning fails."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_site"))

import api_pages  # noqa: E402

project = "DistQat"
author = "DistQat contributors"
copyright = "2026, DistQat contributors"

extensions = ["myst_parser"]
exclude_patterns = ["_site"]
# A name in a signature, such as `Config`, may belong to several modules; it then stays without a link.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "DistQat"
html_copy_source = False
html_show_sphinx = False
python_maximum_signature_line_length = 90
toc_object_entries = False

api_pages.write(HERE / "api")
