"""What the memory benchmark makes of its figures; a child that measures a tiny stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.memory import rows

ROOT = Path(__file__).resolve().parents[3]
TINY = """
experiment_prefix: tiny
data: {dataset_name: python_docs, task_type: llm, sequence_length: 8}
model_pipeline:
  pipeline:
    - &stage {model_name: gptneo.head, num_layers: 3, hidden_size: 64, num_heads: 2, vocab_size: 257}
    - {<<: *stage, model_name: gptneo.body}
    - {<<: *stage, model_name: gptneo.tail}
quant: {enabled: false}
"""


def test_figures_are_against_parameters_and_named_tensors() -> None:
    peaks = {"empty server": 100, "loading": 320, "training": 800}
    compared = rows({"peaks": peaks, "parts": {"weights": 200, "anchor": 200, "inner state": 300}})
    assert compared == {"loading_over_parameters": 1.1, "named_bytes": 700, "training_over_named": 1.0}


@pytest.mark.slow
def test_a_child_measures_every_part(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    flags = ["--config-path", str(tmp_path / "tiny.yaml"), "--sequence", "8", "--round"]
    done = subprocess.run(
        [sys.executable, "benchmarks/memory.py", *flags, "--in-this-process"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    weights = result["parts"]["weights"]
    assert result["parts"]["anchor"] == result["parts"]["gradients"] == weights
    assert result["parts"]["inner state"] > 2 * weights  # two moments, and step counts
    assert set(result["peaks"]) >= {"empty server", "loading", "training"}
    assert all(peak > sum(result["parts"].values()) for peak in result["peaks"].values())
