"""Commands in a locale that spells ASCII alone, or only Latin letters: none of them fails for its letters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONIOENCODING": "latin-1"}


def run(folder: Path, env: Mapping[str, str], *command: str | bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "XDG_RUNTIME_DIR": str(folder), **env},
        capture_output=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("env", [ASCII, LATIN], ids=["ascii", "latin-1"])
@pytest.mark.parametrize("folder", ["grün", "łódź"])
def test_a_launcher_whose_log_folder_has_such_letters(
    tmp_path: Path, env: dict[str, str], folder: str
) -> None:
    """It goes as far as a launcher goes without a swarm, and says the sentence that belongs there."""
    flags = f"--log-dir={folder}", "--server-base-port=0", "--config-path=mlp"
    ended = run(tmp_path, env, str(ROOT / "start_servers.py"), *flags)
    assert ended.returncode == 2, ended.stderr
    assert b"--initial-peers is missing" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_configuration_is_printed_as_it_was_given(tmp_path: Path) -> None:
    for env in (ASCII, LATIN):
        said = run(tmp_path, env, "-m", "distqat.launch.cli", "config", "--log-dir=grün")
        assert said.returncode == 0, said.stderr
        assert rb'log_dir: "gr\xFCn"' in said.stdout


def test_a_name_that_is_no_utf8_at_all(tmp_path: Path) -> None:
    flags = b"--log-dir=gr\xfcn", "--server-base-port=0", "--config-path=mlp"
    ended = run(tmp_path, {}, str(ROOT / "start_servers.py"), *flags)
    assert ended.returncode == 2, ended.stderr
    assert b"Traceback" not in ended.stderr


def test_local_text_is_read_where_the_hubs_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.txt").write_text("A line of text.\n\n" * 50)
    (tmp_path / "tmp").mkdir()
    code = (
        "from distqat.environment import prepare; prepare()\n"
        "from distqat.data.sources.local_set import open_local\n"
        "from distqat.data.options import DataOptions\n"
        "options = DataOptions(dataset_name='./data', task_type='llm', tokenizer='bytes', "
        "sequence_length=16)\n"
        "print(len(open_local(options, seed=0).take(3)))"
    )
    env = {"HF_HOME": str(tmp_path / "file" / "hf"), "TMPDIR": str(tmp_path / "tmp"), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE"):
        env[name] = ""
    read = run(tmp_path, env, "-c", code)
    assert read.returncode == 0, read.stderr
    assert read.stdout.split() == [b"3"]
    assert b"hf cannot be written; what is fetched is kept in " in read.stderr
