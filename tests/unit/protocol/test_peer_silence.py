"""Silence: when a peer is in doubt, and what speaks against it."""

from __future__ import annotations

import pytest

from distqat.protocol.peer_silence import SLOW_BYTES_PER_S, Heartbeat, PeerSilence

HEARTBEAT = Heartbeat(interval_s=1.0, silence_s=6.0, doubt_s=2.5)


def watch(heard_at: list[float], until: float, *, sent: int = 0) -> float | None:
    """Look as a link does; when the peer was first in doubt."""
    silence, now = PeerSilence(HEARTBEAT, 0.0), 0.0
    while now < until:
        now += silence.next_look(now)
        heard = max((at for at in heard_at if at <= now), default=0.0)
        silence.look(now, heard, sent if heard < now else 0)
        if silence.doubtful(now):
            return now
    return None


def test_whoever_answers_is_never_in_doubt() -> None:
    assert watch([n * 1.0 for n in range(100)], 99.0) is None
    assert watch([n * 2.0 for n in range(50)], 99.0) is None


@pytest.mark.parametrize("last", [3.0, 3.3, 3.99])
def test_a_peer_that_falls_silent_is_in_doubt_at_the_moment_due(last: float) -> None:
    assert watch([*range(4), last], 20.0) == pytest.approx(last + HEARTBEAT.doubt_s, abs=0.01)


def test_what_we_have_sent_is_given_time_to_leave() -> None:
    waited = watch([1.0], 20.0, sent=2 * SLOW_BYTES_PER_S)
    assert waited == pytest.approx(1.0 + HEARTBEAT.doubt_s + 2.0, abs=0.3)


def test_a_false_alarm_doubles_the_patience() -> None:
    silence = PeerSilence(HEARTBEAT, 0.0)
    for now in (1.0, 2.0, 2.5):
        silence.look(now, 0.0, 0)
    assert silence.doubtful(2.5)
    silence.look(3.0, 3.0, 0)
    assert not silence.doubtful(3.0)
    for now in (4.0, 5.0, 6.0, 7.0, 7.9):
        silence.look(now, 3.0, 0)
        assert not silence.doubtful(now)
    silence.look(8.0, 3.0, 0)
    assert silence.doubtful(8.0)


def test_our_own_absence_is_not_the_silence_of_the_peer() -> None:
    silence = PeerSilence(HEARTBEAT, 0.0)
    silence.look(1.0, 1.0, 0)
    assert silence.look(31.0, 1.0, 0) == 0.0  # we were stopped for half a minute
    assert not silence.doubtful(31.0)
    assert silence.look(32.0, 1.0, 0) == 1.0
    for now in (33.0, 33.5):
        silence.look(now, 1.0, 0)
    assert silence.doubtful(33.5)
