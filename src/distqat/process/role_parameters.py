"""What a launcher tells a role beside its flags, in one environment variable.

Flags are for users and the same for all roles of a run; these are for one process. What must be there before
the role's code runs stays apart: the pipe to the launcher (`DISTQAT_READY_FD`) and its PID
(`DISTQAT_PARENT_PID`) are set by the forked process for itself, and the room for a long process title
(`DISTQAT_TITLE_ROOM`) must be part of the environment that the interpreter is started with. What users set
(`DISTQAT_TOKEN`, `DISTQAT_HOST_ID`, `DISTQAT_FAILPOINTS`) is inherited by every process as it is.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distqat.errors import RoleError
from distqat.process.runtime_folder import runtime_dir

VARIABLE = "DISTQAT_ROLE"


@dataclass(frozen=True)
class RoleParameters:
    """The defaults are those of a role that a user started by hand."""

    log_name: str = ""  # the log file that the launcher gave to the role, without its ending
    claimed_port: int | None = None  # a port whose lock the launcher holds for this role
    server_index: int = 0  # which of the servers of one launcher this is; GPUs are dealt out by it
    resume: bool = False  # client: go on with the run in the log folder, finished or not
    oldest: int = 0  # client: begin anew; states of generations before this Unix time do not count
    run_locally: bool = False  # client: train the baseline, without servers
    servers_check: bool = False  # client: its servers check model and first batch, and its launcher ends them
    samples: int | None = None  # baseline: train on so many samples. None: as many as the swarm's rounds take
    pipeline: int = 0  # trainer: which pipeline it trains over
    data_socket: str = ""  # trainer and data server: the Unix socket between them
    data_position: dict[str, Any] | None = None  # data server: where in the data set to go on
    progress: dict[str, Any] = field(default_factory=dict)  # trainer: what its last life had counted
    client_peer: str = ""  # trainer of a baseline: whom to report its steps to
    generation: int | None = None  # trainer of a baseline: of the run; a model written for it is taken up

    @classmethod
    def take(cls) -> RoleParameters:
        """Those of this process, out of its environment: its own children have others. Raises RoleError."""
        text = os.environ.pop(VARIABLE, "{}")
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise RoleError(f"{VARIABLE} cannot be read ({error}); it is set by launchers alone") from error

    def environment(self) -> dict[str, str]:
        """For the environment of the role."""
        default = asdict(RoleParameters())
        told = {key: value for key, value in asdict(self).items() if value != default[key]}
        return {VARIABLE: json.dumps(told, separators=(",", ":"))}

    @property
    def data_socket_path(self) -> Path:
        """Where the data server listens."""
        return Path(self.data_socket) if self.data_socket else runtime_dir() / "data.sock"
