"""Processes: warm forking, supervision, titles, ports, logs, devices, and the frame that a role runs in."""

from __future__ import annotations

from distqat.process.announced_wait import AnnouncedWait, told_wait, waiting
from distqat.process.core_sharing import CoreShare
from distqat.process.device_choice import resolve_device, threads_per_server
from distqat.process.forkserver_client import PRELOAD, ForkServerClient, RoleProcess
from distqat.process.launcher_notices import LastWords, announce_ready, notice
from distqat.process.port_claims import PortClaim, claim_port
from distqat.process.process_title import set_title
from distqat.process.restart_policy import RestartPolicy
from distqat.process.role_command import RoleCommand
from distqat.process.role_endings import RoleEnded
from distqat.process.role_logs import LogClaim, claim_log, set_up_logging
from distqat.process.role_parameters import RoleParameters
from distqat.process.role_runner import guarded, run_alone, run_role
from distqat.process.runtime_folder import host_id, runtime_dir
from distqat.process.supervisor import Supervisor

__all__ = [
    "PRELOAD",
    "AnnouncedWait",
    "CoreShare",
    "ForkServerClient",
    "LastWords",
    "LogClaim",
    "PortClaim",
    "RestartPolicy",
    "RoleCommand",
    "RoleEnded",
    "RoleParameters",
    "RoleProcess",
    "Supervisor",
    "announce_ready",
    "claim_log",
    "claim_port",
    "guarded",
    "host_id",
    "notice",
    "resolve_device",
    "run_alone",
    "run_role",
    "runtime_dir",
    "set_title",
    "set_up_logging",
    "threads_per_server",
    "told_wait",
    "waiting",
]
