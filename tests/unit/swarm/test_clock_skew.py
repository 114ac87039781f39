"""The clock at a join: half the round trip is not skew, and the sentence says how much is."""

from __future__ import annotations

import pytest

from distqat.errors import ClockSkew, ConfigError
from distqat.swarm.clock_skew import ClockReading, check_clock, read_clocks


class Clocks:
    """Ours, and those of peers; each question takes `way_s` there and `way_s` back."""

    def __init__(self, way_s: float = 0.0, **ahead: float | None) -> None:
        self.now, self.way_s, self.ahead = 1000.0, way_s, ahead

    async def ask(self, peer: str) -> float | None:
        self.now += self.way_s
        ahead = self.ahead[peer]
        answer = None if ahead is None else self.now - ahead
        self.now += self.way_s
        return answer

    async def read(self) -> list[ClockReading]:
        return await read_clocks(
            list(self.ahead), self.ask, wall=lambda: self.now, monotonic=lambda: self.now
        )


@pytest.mark.parametrize("ahead", [0.0, 2.0, -2.0, 3.0])
@pytest.mark.parametrize("way_s", [0.0, 0.5])
async def test_within_the_bound(ahead: float, way_s: float) -> None:
    (reading,) = await Clocks(way_s, a=ahead).read()
    assert reading.ahead_s == pytest.approx(ahead)
    assert reading.error_s == pytest.approx(way_s)
    check_clock([reading])


@pytest.mark.parametrize(
    ("ahead", "said"), [(5.0, "5.0 s ahead of"), (-5.0, "5.0 s behind"), (3600.0, "3600.0 s ahead of")]
)
async def test_beyond_it_one_sentence_names_the_skew(ahead: float, said: str) -> None:
    with pytest.raises(
        ClockSkew, match=rf"the clock of this machine is {said} that of the initial peer a; at"
    ):
        check_clock(await Clocks(a=ahead).read())
    assert issubclass(ClockSkew, ConfigError)  # starting again does not set a clock


async def test_what_the_way_may_have_taken_is_no_skew() -> None:
    check_clock(await Clocks(1.0, a=3.9).read())
    with pytest.raises(ClockSkew):
        check_clock(await Clocks(1.0, a=4.1).read())


async def test_one_peer_with_a_wrong_clock_does_not_keep_others_out() -> None:
    check_clock(await Clocks(a=0.1, b=-3600.0, c=-0.1).read())
    with pytest.raises(ClockSkew, match=r"59\.9 s ahead of that of 3 initial peers"):
        check_clock(await Clocks(a=60.0, b=0.0, c=59.9).read())


async def test_nobody_answers() -> None:
    readings = await Clocks(a=None, b=None).read()
    assert readings == []
    check_clock(readings)
