"""The addresses of a role: what it listens on and what it tells others, over IPv4, IPv6 or both."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_ANY = {4: "0.0.0.0", 6: "::"}
_HOST = re.compile(r"/ip[46]/([^/]+)/")
_LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def public_addresses(text: str) -> tuple[IP, ...]:
    """The addresses that others reach this host at: one, or an IPv4 and an IPv6 one with a comma between.

    Brackets around an IPv6 address, as in a URL, are taken off. Raises ValueError, saying what is wrong.
    """
    if not text.strip():
        raise ValueError("it is empty; is PUBLIC_IP set?")
    found = tuple(_address(word.strip()) for word in text.split(",") if word.strip())
    if len({address.version for address in found}) < len(found):
        raise ValueError(f"{text!r} has two addresses of one kind; give one of IPv4 and one of IPv6 at most")
    return found


def bound_hosts(public_ip: str | None) -> tuple[str, ...]:
    """What to bind: every interface in each family of the public addresses, or loopback alone."""
    if public_ip is None:
        return (_LOOPBACK[4],)
    return tuple(_ANY[address.version] for address in public_addresses(public_ip))


def public_and_loopback(port: int, public_ip: str | None) -> tuple[list[str], list[str]]:
    """Multiaddrs to listen on and to announce: public addresses first, loopback of the same families last."""
    listen = [_multiaddr(host, port) for host in bound_hosts(public_ip)]
    if public_ip is None:
        return listen, listen if port else []
    public = public_addresses(public_ip)
    told = [str(address) for address in public] + [_LOOPBACK[address.version] for address in public]
    return listen, [_multiaddr(host, port) for host in dict.fromkeys(told)]


def outside(maddrs: Iterable[str]) -> tuple[str, ...]:
    """Those of some multiaddrs that other machines may reach: all but loopback."""
    return tuple(text for text in maddrs if not _is_loopback(text))


def _address(word: str) -> IP:
    inside = word[1:-1] if word.startswith("[") and word.endswith("]") else word
    try:
        address = ipaddress.ip_address(inside)
    except ValueError:
        raise ValueError(
            f"{word!r} is not an IP address like 203.0.113.7 or 2001:db8::7 (a name is not one either; "
            f"`getent hosts {word}` tells its address)"
        ) from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.is_link_local or address.scope_id:
            raise ValueError(f"{word!r} holds on one link only; give the host's global or private address")
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{word!r} is not an address that others could dial")
    return address


def _multiaddr(host: str, port: int) -> str:
    return f"/ip{ipaddress.ip_address(host).version}/{host}/tcp/{port}"


def _is_loopback(maddr: str) -> bool:
    found = _HOST.match(maddr)
    try:
        return found is not None and ipaddress.ip_address(found[1]).is_loopback
    except ValueError:
        return False
