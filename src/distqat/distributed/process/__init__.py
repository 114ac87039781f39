"""Processes: warm forking, supervision, titles, ports, logs, devices, and the frame that a role runs in."""

from __future__ import annotations

from distqat.distributed.process.command import RoleCommand
from distqat.distributed.process.cores import CoreShare
from distqat.distributed.process.device import DeviceChoice, choose_device, resolve_device, threads_per_server
from distqat.distributed.process.endings import Ended
from distqat.distributed.process.logs import LOG_NAME, LogClaim, claim_log, set_up_logging
from distqat.distributed.process.notices import LastWords, announce_ready, notice
from distqat.distributed.process.ports import PortClaim, claim_port
from distqat.distributed.process.restarts import RestartPolicy
from distqat.distributed.process.role import guarded, run_alone, run_role
from distqat.distributed.process.runtime import host_id, runtime_dir
from distqat.distributed.process.supervisor import Supervisor
from distqat.distributed.process.title import set_title
from distqat.distributed.process.waiting import Wait, told_wait, waiting
from distqat.distributed.process.zygote import PRELOAD, RoleProcess, Zygote

__all__ = [
    "LOG_NAME",
    "PRELOAD",
    "CoreShare",
    "DeviceChoice",
    "Ended",
    "LastWords",
    "LogClaim",
    "PortClaim",
    "RestartPolicy",
    "RoleCommand",
    "RoleProcess",
    "Supervisor",
    "Wait",
    "Zygote",
    "announce_ready",
    "choose_device",
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
