"""A plugin reaches the processes of a run, which are forked from one that never heard of it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from tests.plugin_scene import forgotten_plugins

from distqat.launch import run_local
from distqat.launch.launcher_roles import entry_of, read_settings
from distqat.process import ForkServerClient, RoleCommand, RoleParameters

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's"),
    pytest.mark.timeout(120),
]
PLUGIN = """
import numpy as np
from distqat.data.embedded import held_out
from distqat.data.source import register_dataset
from distqat.tasks import register_task

@register_dataset("greys")
def greys(options, seed):
    return held_out(options, [{"image": np.full((4, 4), i / 10), "label": i} for i in range(10)], seed=seed)

@register_task("shades")
def shades(settings):
    from distqat.tasks.cv import ImageClassification
    return ImageClassification(num_channels=settings.num_channels, img_size=settings.img_size)
"""


async def test_a_forked_role_knows_what_the_plugin_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greys.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distqat.launch.launcher_roles.set_up_logging", lambda *_: None)
    words = (
        "--config-path=", "--plugin", "greys.py", "--data-dataset-name=greys", "--data-task-type=shades",
        "--data-img-size=4", "--data-num-channels=1", "--diloco-batch-size-per-step=3",
    )  # fmt: skip
    with forgotten_plugins():
        argv = read_settings(run_local.parse(words)).argv()
    monkeypatch.chdir(os.sep)  # the path was made absolute where it was typed
    fork_server = ForkServerClient.start(())
    env = RoleParameters(data_socket=str(tmp_path / "data.sock")).environment()
    command = RoleCommand("data-server", entry_of("data-server"), argv, tmp_path / "data_server.log", env)
    role = await fork_server.spawn(command)
    try:
        said = await role.ready(90)
    finally:
        role.terminate()
        await asyncio.wait_for(role.wait(), 20)
        await fork_server.close()
    assert said["batch"]["inputs"] == {"x": ["float32", [3, 1, 4, 4]]}
