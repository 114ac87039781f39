from __future__ import annotations

from distqat.swarm.dial_back import dial_problem

ALL_FAILED = """Connect failed. msg=failed to dial: failed to dial QmA: all dials failed
  * [/ip4/203.0.113.7/tcp/50500] dial tcp4 0.0.0.0:0->203.0.113.7:50500: i/o timeout
  * [/ip6/2001:db8::7/tcp/50500] dial tcp6 [2001:db8::7]:50500: connect: network is unreachable
  * [/ip4/127.0.0.1/tcp/50500] dial tcp4 127.0.0.1:50500: connect: connection refused
  * [/ip4/10.0.0.2/tcp/1] failed to negotiate security protocol: peer id mismatch: expected QmA, but remote
  * [/ip4/10.0.0.3/tcp/1] failed to negotiate security protocol: message did not have trailing newline
  * [/ip4/10.0.0.4/tcp/1] dial backoff
  * [/ip4/10.0.0.5/tcp/1] something new"""


def test_each_address_and_what_went_wrong_there_in_one_line() -> None:
    assert dial_problem(ALL_FAILED) == (
        "/ip4/203.0.113.7/tcp/50500: no answer, "
        "/ip6/2001:db8::7/tcp/50500: no network leads there, "
        "/ip4/127.0.0.1/tcp/50500: connection refused, "
        "/ip4/10.0.0.2/tcp/1: another peer answers there, "
        "/ip4/10.0.0.3/tcp/1: what answers there is no peer of ours, "
        "/ip4/10.0.0.4/tcp/1: failed a moment ago, "
        "/ip4/10.0.0.5/tcp/1: something new"
    )


def test_an_error_without_addresses_is_one_line_too() -> None:
    assert dial_problem("Connect failed. msg=failed to find\n any peers") == "failed to find any peers"
    assert len(dial_problem("x" * 1000)) == 300
