"""benchmarks/story.py as users run it, with few rounds: kill, checkpoint, export, prediction, picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's"),
]


def test_a_story_from_the_first_step_to_the_answer(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path / "story"), "--diloco-outer-steps=12", "--diloco-inner-steps=6"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, "benchmarks/story.py", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    story = json.loads((tmp_path / "story" / "story.json").read_text()) if done.returncode < 2 else {}
    assert story, done.stdout + done.stderr
    assert done.returncode == (0 if story["report"]["passed"] else 1)  # so few rounds leave answers near ties
    kill = story["kill"]
    assert kill["at"] < kill["went_on"] < story["evaluations"][-1][0]
    assert kill["at"] < kill["served"] < story["evaluations"][-1][0]
    assert kill["state"].endswith("from front.0.0.0")
    assert len(story["serving"][kill["victim"]]) == 2
    ran = story["report"]["operations"]
    assert ran["integer"] == ran["quantizable"] == 21
    assert story["answers"]
    assert (tmp_path / "story" / "story.png").stat().st_size > 50_000
