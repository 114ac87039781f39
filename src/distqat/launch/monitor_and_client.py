"""The two roles that every run has, started in this order: the monitor, then the client that joins it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distqat.launch.launcher_roles import (
    LauncherSettings,
    claim_role_log,
    keep_until_ready,
    known_peers,
    role_command,
)
from distqat.process import PortClaim, RestartPolicy, RoleCommand, RoleParameters, Supervisor, claim_port
from distqat.swarm.role_addresses import bound_hosts


def claim_ports(settings: LauncherSettings, *, client_moves: bool = True) -> dict[str, PortClaim]:
    """The ports of monitor and client, by role. RoleError: a port that was given is busy.

    The monitor's is refused even if nobody gave it: its address is what people copy. So is the client's
    unless `client_moves`.
    """
    config = settings.config
    hosts = bound_hosts(config.public_ip)
    client_given = not client_moves or "client_port" in config.model_fields_set
    return {
        "monitor": claim_port(hosts, config.monitor_port, given=True),
        "client": claim_port(hosts, config.client_port, given=client_given),
    }


@dataclass
class MonitorAndClient:
    """Their ports are held by the launcher, so that one that is started again is found where it was.

    environment: of both, beside what launchers tell their roles.
    """

    settings: LauncherSettings
    supervisor: Supervisor
    ports: Mapping[str, PortClaim]
    environment: Mapping[str, str] = field(default_factory=dict)
    peers: list[str] = field(default_factory=list)
    """Addresses to join the swarm by, once the monitor serves."""

    async def start_monitor(self, policy: RestartPolicy | None = None) -> list[str]:
        """Returns its own addresses when it serves. RoleError, or what it ended with: it does not."""
        monitor = self._command("monitor", RoleParameters(), {})
        _, said = await keep_until_ready(self.supervisor, monitor, policy=policy)
        self.peers = known_peers(said, self.settings)
        return list(said["peers"])

    def client(self, parameters: RoleParameters) -> RoleCommand:
        """The command of the client; nothing waits for the monitor once the peers know each other."""
        return self._command("client", parameters, {"initial_peers": ",".join(self.peers)})

    def _command(self, kind: str, parameters: RoleParameters, changes: Mapping[str, Any]) -> RoleCommand:
        port = self.ports[kind].port
        return role_command(
            kind,
            self.settings,
            claim_role_log(self.settings, kind),
            changes={f"{kind}_port": port, **changes},
            parameters=replace(parameters, claimed_port=port),
            env=self.environment,
        )
