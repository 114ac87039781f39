"""What run_local.py is about to run, and what it has claimed for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distqat.config_paths import find
from distqat.launch.launcher_roles import LauncherSettings
from distqat.launch.log_folder import check_checkpoint_folder, claim_folder
from distqat.launch.monitor_and_client import claim_ports
from distqat.launch.progress_text import RunGoal
from distqat.launch.resume_check import check_resumable
from distqat.process import LogClaim, PortClaim

if TYPE_CHECKING:
    from distqat.config import Config


@dataclass(frozen=True)
class RunPlan:
    """What to run, with the ports and the log folder held until `release`."""

    mode: str  # "swarm" or "baseline"
    settings: LauncherSettings
    ports: Mapping[str, PortClaim]  # of the monitor and the client
    folder: LogClaim
    samples: int | None = None  # of a baseline that is compared with a swarm
    resume: bool = False  # go on with the run in the log folder and the checkpoints

    @property
    def servers(self) -> int:
        """How many servers the run has; 0 for the baseline."""
        config = self.settings.config
        return 0 if self.mode == "baseline" else config.world_size * len(config.stages)

    @property
    def goal(self) -> RunGoal:
        """When the run is over."""
        config = self.settings.config
        whole = goal_of(config)
        if self.mode == "baseline":
            per_step = config.diloco.batch_size_per_step * config.diloco.gradient_accumulation_steps
            samples = self.samples or whole.steps * config.world_size * per_step
            return RunGoal(None, -(-samples // per_step))
        return whole

    def describe(self) -> list[str]:
        """What is about to happen, in a few lines."""
        config = self.settings.config
        stages = " → ".join(entry.model_name for entry in config.model_pipeline.pipeline)
        diloco = config.diloco
        who = (
            "one process, no servers" if not self.servers else f"{config.world_size} replica(s) of each stage"
        )
        begins = "resuming " if self.resume else ""
        data = config.data.dataset_name
        if data.startswith((".", "~")):  # a path, which may count from two places
            data = f"{data} ({find(data)})"
        return [
            f"{begins}{self.mode} {config.experiment_prefix}: {stages}, {who}, data {data}",
            f"{diloco.outer_steps} rounds of {diloco.inner_steps} steps of {diloco.batch_size_per_step} "
            f"samples; logs in {self.settings.log_dir}/",
        ]

    def release(self) -> None:
        """Gives the ports and the log folder back."""
        for port in self.ports.values():
            port.release()
        self.folder.release()


def goal_of(config: Config) -> RunGoal:
    """When a run in a swarm is over."""
    return RunGoal(config.diloco.outer_steps, config.diloco.inner_steps * config.diloco.outer_steps)


def make_plan(
    mode: str, settings: LauncherSettings, samples: int | None = None, *, resume: bool = False
) -> RunPlan:
    """Claim what the run needs.

    RoleError: a port is busy, or another launcher writes these logs. ConfigError: nothing to resume, or no
    checkpoint can be written.
    """
    config = settings.config
    check_checkpoint_folder(config)
    if resume:
        check_resumable(config)
    ports = claim_ports(settings, client_moves=False)
    folder = claim_folder(settings.log_dir, resume=resume)
    return RunPlan(mode, settings, ports, folder, samples, resume)
