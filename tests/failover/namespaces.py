"""Network namespaces for the roles of one swarm: a hub with a bridge, and islands that hang on it by a cable.

Or a home: a machine behind a router that translates addresses and lets nobody in.

All of it lies inside namespaces of our own, apart from the machine's network. Takes root, ip and nft.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from typing_extensions import Self

HUB, SUBNET = "hub", "10.77.0"
HOME, ROUTER, LAN = "home", "router", "192.168.77"


def missing() -> str | None:
    """Why namespaces cannot be had here; None: they can."""
    for tool in ("ip", "nft", "tc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if os.geteuid() != 0:
        return "it takes root"
    probe = f"dqt{os.getpid()}p"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        inside = ["ip", "netns", "exec", probe]
        made = ["link", "add", "v0", "type", "veth", "peer", "name", "v1"]
        tried = subprocess.run([*inside, "ip", *made], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            table = ["nft", "add", "table", "inet", "probe"]
            tried = subprocess.run([*inside, *table], capture_output=True, text=True, check=False)
        subprocess.run(["ip", "netns", "del", probe], check=False)
    return None if tried.returncode == 0 else f"the system refuses: {tried.stderr.strip()}"


class Namespaces:
    """`hub`, `count` islands and, if asked for, a `home`; removed at the end."""

    def __init__(self, count: int, *, home: bool = False) -> None:
        self.islands = [f"island{number}" for number in range(count)]
        self.behind = [HOME, ROUTER] if home else []
        self._prefix = f"dqt{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            self._make(HUB)
            self._in(HUB, "ip link add bridge type bridge")
            self._in(HUB, f"ip addr add {self.address(HUB)}/24 dev bridge")
            self._in(HUB, "ip link set bridge up")
            for number, island in enumerate(self.islands):
                self._make(island)
                self._in(HUB, f"ip link add port{number} type veth peer name eth0 netns {self._name(island)}")
                self._in(HUB, f"ip link set port{number} master bridge up")
                self._in(island, f"ip addr add {self.address(island)}/24 dev eth0")
                self._in(island, "ip link set eth0 up")
            if self.behind:
                self._make_home()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (*self.behind, *self.islands, HUB):
            subprocess.run(["ip", "netns", "del", self._name(name)], check=False, capture_output=True)

    def address(self, name: str) -> str:
        """At which others reach it; a home's is its router's."""
        if name in (HOME, ROUTER):
            return f"{SUBNET}.200"
        return f"{SUBNET}.{1 if name == HUB else 10 + self.islands.index(name)}"

    def entering(self, name: str) -> tuple[str, ...]:
        """What a command has to begin with to run there."""
        return "ip", "netns", "exec", self._name(name)

    def left(self) -> list[str]:
        """Namespaces of ours that are still there."""
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if line.startswith(self._prefix)]

    def forward(self, port: int) -> None:
        """Have the router pass connections to a port of its own on to the home."""
        self._nft(ROUTER, f"add rule ip home in tcp dport {port} dnat to {LAN}.2")

    def forward_nothing(self) -> None:
        """Connections that are open stay open, as with a real router."""
        self._nft(ROUTER, "flush chain ip home in")

    def let_nobody_in(self, name: str) -> None:
        """No new connections to a place from others; those that are open stay open."""
        self._in(name, "nft add table inet shut")
        self._nft(name, "add chain inet shut in { type filter hook input priority 0 ; }")
        self._nft(name, f"add rule inet shut in ct state new ip saddr {SUBNET}.2-{SUBNET}.255 drop")

    # faults

    def cut(self, island: str, *others: str, hears: bool = False, is_heard: bool = False) -> None:
        """Drop what goes between an island and others (all, if none are named), or one way only."""
        peers = [self.address(other) for other in others] or [f"{SUBNET}.0/24"]
        addresses = "{ " + ", ".join(peers) + " }"
        self._in(island, "nft add table inet cut")
        for hook, field, passes in (("input", "saddr", hears), ("output", "daddr", is_heard)):
            if not passes:
                chain = f"{{ type filter hook {hook} priority 0 ; }}"
                self._nft(island, f"add chain inet cut {hook} {chain}")
                self._nft(island, f"add rule inet cut {hook} ip {field} {addresses} counter drop")

    def lose(self, island: str, percent: int) -> None:
        """Lose packets at random, both ways."""
        self._in(island, "nft add table inet loss")
        for hook in ("input", "output"):
            self._nft(island, f"add chain inet loss {hook} {{ type filter hook {hook} priority 0 ; }}")
            chance = f"numgen random mod 100 < {percent}"
            self._nft(island, f"add rule inet loss {hook} ip saddr {SUBNET}.0/24 {chance} counter drop")

    def narrow(self, island: str, rate: str) -> None:
        """Bound what an island sends and, at the hub's end of its cable, what it is sent."""
        shape = f"root tbf rate {rate} burst 32kbit latency 400ms"
        self._in(island, f"tc qdisc replace dev eth0 {shape}")
        self._in(HUB, f"tc qdisc replace dev port{self.islands.index(island)} {shape}")

    def dropped(self, island: str) -> int:
        """Packets that the rules of an island have dropped so far."""
        rules = self._in(island, "nft list ruleset").split()
        return sum(int(rules[i + 1]) for i, word in enumerate(rules) if word == "packets")

    def heal(self, island: str) -> None:
        """No rule is left."""
        self._in(island, "nft flush ruleset")

    def _make_home(self) -> None:
        for name in self.behind:
            self._make(name)
        self._in(HUB, f"ip link add home type veth peer name wan netns {self._name(ROUTER)}")
        self._in(HUB, "ip link set home master bridge up")
        self._in(ROUTER, f"ip link add lan type veth peer name eth0 netns {self._name(HOME)}")
        for name, device, address in (
            (ROUTER, "wan", self.address(ROUTER)),
            (ROUTER, "lan", f"{LAN}.1"),
            (HOME, "eth0", f"{LAN}.2"),
        ):
            self._in(name, f"ip addr add {address}/24 dev {device}")
            self._in(name, f"ip link set {device} up")
        self._in(HOME, f"ip route add default via {LAN}.1")
        self._in(ROUTER, "sysctl -qw net.ipv4.ip_forward=1")
        self._in(ROUTER, "nft add table ip home")
        self._nft(ROUTER, "add chain ip home out { type nat hook postrouting priority 100 ; }")
        self._nft(ROUTER, "add chain ip home in { type nat hook prerouting priority -100 ; }")
        self._nft(ROUTER, "add rule ip home out oifname wan masquerade")

    def _make(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self._name(name)], check=True)
        self._in(name, "ip link set lo up")

    def _nft(self, name: str, rule: str) -> None:
        subprocess.run([*self.entering(name), "nft", rule], check=True)

    def _in(self, name: str, command: str) -> str:
        ran = subprocess.run(
            [*self.entering(name), *command.split()], check=True, capture_output=True, text=True
        )
        return ran.stdout

    def _name(self, name: str) -> str:
        return f"{self._prefix}{name}"
