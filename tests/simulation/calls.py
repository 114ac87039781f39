"""Calls between nodes as a link gives them: answered once, however often messages are lost or doubled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.world import Node, World

RETRY_S = 0.4
Reply = Callable[[Any], None]


class Caller(Node):
    """A node that calls and is called; `serve_<method>(source, reply, *args)` answers, at once or later.

    One call per method and peer is under way; a newer one takes the place of the older, at both ends. A peer
    that restarted has forgotten what it was asked and is asked again.
    """

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._number = 0

    def start(self) -> None:
        self._asked: dict[tuple[str, str], tuple[int, Reply]] = {}  # (peer, method) -> ours under way
        self._served: dict[tuple[str, str], tuple[int, int, list[Any]]] = {}  # ... -> theirs, and the answer

    def call(self, to: str, method: str, *args: Any, then: Reply) -> None:
        self._number += 1
        number, key = self._number, (to, method)
        self._asked[key] = number, then

        def send() -> None:
            if self._asked.get(key, (0, then))[0] == number:
                self.send(to, "call", self.life, number, method, args)
                self.after(RETRY_S, send)

        send()

    def calls(self, to: str, method: str) -> bool:
        """Whether this call is under way."""
        return (to, method) in self._asked

    def drop_calls(self, *methods: str) -> None:
        """Wait no longer for what these methods answer."""
        for key in [key for key in self._asked if key[1] in methods]:
            del self._asked[key]

    def on_call(self, source: str, life: int, number: int, method: str, args: tuple[Any, ...]) -> None:
        key = source, method
        known = self._served.get(key)
        if known is not None and (life, number) < known[:2]:
            return
        if known is not None and (life, number) == known[:2]:
            for answer in known[2]:
                self.send(source, "reply", method, life, number, answer)
            return
        answered: list[Any] = []
        self._served[key] = life, number, answered

        def reply(answer: Any) -> None:
            if not answered:
                answered.append(answer)
                self.send(source, "reply", method, life, number, answer)

        getattr(self, f"serve_{method}")(source, reply, *args)

    def on_reply(self, source: str, method: str, life: int, number: int, answer: Any) -> None:
        asked = self._asked.get((source, method))
        if life == self.life and asked is not None and asked[0] == number:
            del self._asked[source, method]
            asked[1](answer)
