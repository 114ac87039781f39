from __future__ import annotations

import pytest

from distqat.swarm.role_addresses import bound_hosts, public_addresses, public_and_loopback


@pytest.mark.parametrize(
    ("public_ip", "bound", "announced"),
    [
        ("203.0.113.7", ("0.0.0.0",), ["/ip4/203.0.113.7/tcp/7", "/ip4/127.0.0.1/tcp/7"]),
        ("2001:db8::7", ("::",), ["/ip6/2001:db8::7/tcp/7", "/ip6/::1/tcp/7"]),
        (
            "203.0.113.7,2001:db8::7",
            ("0.0.0.0", "::"),
            ["/ip4/203.0.113.7/tcp/7", "/ip6/2001:db8::7/tcp/7", "/ip4/127.0.0.1/tcp/7", "/ip6/::1/tcp/7"],
        ),
        ("::1", ("::",), ["/ip6/::1/tcp/7"]),
        ("127.0.0.1", ("0.0.0.0",), ["/ip4/127.0.0.1/tcp/7"]),
    ],
)
def test_every_family_that_is_announced_is_listened_on(
    public_ip: str, bound: tuple[str, ...], announced: list[str]
) -> None:
    assert bound_hosts(public_ip) == bound
    listen, told = public_and_loopback(7, public_ip)
    assert listen == [f"/ip{6 if ':' in host else 4}/{host}/tcp/7" for host in bound]
    assert told == announced


def test_without_a_public_address_it_is_loopback_alone() -> None:
    assert bound_hosts(None) == ("127.0.0.1",)
    assert public_and_loopback(7, None) == (["/ip4/127.0.0.1/tcp/7"], ["/ip4/127.0.0.1/tcp/7"])
    assert public_and_loopback(0, None) == (["/ip4/127.0.0.1/tcp/0"], [])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[2001:DB8:0::7]", ["2001:db8::7"]),
        ("::ffff:203.0.113.7", ["203.0.113.7"]),
        (" 203.0.113.7 , 2001:db8::7 ", ["203.0.113.7", "2001:db8::7"]),
    ],
)
def test_addresses_as_people_write_them(text: str, meant: list[str]) -> None:
    assert [str(address) for address in public_addresses(text)] == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is PUBLIC_IP set"),
        ("host.example.org", "getent hosts host.example.org"),
        ("300.1.1.1", "not an IP address"),
        ("fe80::1%eth0", "one link only"),
        ("0.0.0.0", "not an address that others could dial"),
        ("::", "not an address that others could dial"),
        ("203.0.113.7,203.0.113.8", "two addresses of one kind"),
    ],
)
def test_what_others_could_not_dial_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        public_addresses(text)
