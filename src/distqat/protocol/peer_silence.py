"""How long a peer has been silent, and when that is reason to doubt it. Decision 17.

A peer that is dead ends its streams. One that is stopped or cut off ends nothing: it only becomes silent.
Whoever waits for it and has another choice may stop waiting as soon as it is in doubt; the link itself stands
until the silence is long enough for a death.
"""

from __future__ import annotations

from dataclasses import dataclass

SLOW_BYTES_PER_S = 256 * 1024  # what we sent may stand before our ping in the way of a slow uplink
STALL_S = 0.5  # we were late to look ourselves: the silence until then may be ours


@dataclass(frozen=True)
class Heartbeat:
    """Seconds between pings; of silence that puts a peer in doubt, and after which it counts as gone."""

    interval_s: float = 1.0
    silence_s: float = 6.0
    doubt_s: float = 2.5


class PeerSilence:
    """The silence of one peer, looked at now and then. Times are monotonic seconds, handed in."""

    def __init__(self, heartbeat: Heartbeat, now: float) -> None:
        self._heartbeat = heartbeat
        self._since = now  # the last sign of life, or when we began to listen again
        self._sent_then = 0
        self._allowance = 0.0
        self._doubt_s = heartbeat.doubt_s
        self._in_doubt = False
        self._next_look = now + heartbeat.interval_s

    def look(self, now: float, heard: float, sent: int) -> float:
        """Seconds of silence, `heard` being the last sign of life and `sent` the bytes written so far."""
        if now > self._next_look + STALL_S:
            heard = max(heard, now)
        if heard > self._since:
            if self._in_doubt:  # it was only slow: twice as much patience with this link from now on
                self._doubt_s, self._in_doubt = 2 * self._doubt_s, False
            self._since, self._sent_then = heard, sent
        self._allowance = (sent - self._sent_then) / SLOW_BYTES_PER_S
        self._next_look = now + self.next_look(now)
        return now - self._since

    def next_look(self, now: float) -> float:
        """Seconds until it is worth looking again."""
        until_doubt = self._since + self._doubt_s + self._allowance - now
        interval = self._heartbeat.interval_s
        return min(until_doubt, interval) if until_doubt > 0 else interval / 4

    def doubtful(self, now: float) -> bool:
        """Whether a call that somebody else could answer should be given up."""
        doubtful = now - self._since >= self._doubt_s + self._allowance
        self._in_doubt = self._in_doubt or doubtful
        return doubtful
