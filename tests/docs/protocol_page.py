"""docs/protocol.md, made of the calls and tables: `python tests/docs/protocol_page.py` makes it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from distqat.distributed.coordination import slot_grants
from distqat.protocol import round_answers, round_convener, step_lock
from distqat.protocol.call_schema import FLAT, OTHERS, Bounds, Call
from distqat.protocol.calls import CALLS, round_calls, slot_calls, step_calls, transfer_calls
from distqat.swarm.tensor_frame import PROTOCOL_VERSION

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
COMMAND = "python tests/docs/protocol_page.py"

HEAD = f"""\
# Protocol

Who calls whom with what, what a call is answered with, and in which states a step, a round and a slot can
be. The tables are made of the code (`src/distqat/protocol/`) by `{COMMAND}`; a test holds the page to it.

## Connections, versions

Two peers that work with each other have two streams: one for tensors, and one for control, past any
transfer. A stream is a libp2p stream or, on one host, a Unix socket. It begins with a handshake of fixed size
(`swarm/handshake.py`): protocol version, run, and a proof of the run's token. After it the side that dialled
calls and the other answers, in frames (`swarm/tensor_frame.py`): a prefix, a msgpack header with the method
and its fields, then raw tensors, with a digest of them.

**This is protocol version {PROTOCOL_VERSION}.** Peers of different versions refuse each other in the
handshake, and both logs say which version is to be updated. Within a version:

- A field that has its default is left out. What a peer does not know is ignored.
- A new field has a default, so that older peers of the version need not send it.
- A field that is renamed, removed or means something else needs a new version.

A number with bounds is finite. A text for which nothing else is said has at most 8192 characters, a key of a
map at most 512.

A request or answer that does not fit its table is refused with `BadFrame`, which names the field. Besides the
errors that a call names, each can end in `PeerGone` (the stream ended), `CallTimeout` (no answer in time, or
no sign of life), `Busy` (too many calls in flight) or `RemoteFault` (an exception at the other side).

The DHT is for finding each other and never decides. The client does, and writes what it decides to its commit
log, before anybody hears of it: slots, rounds, generations. Order among committed states is always by
`(generation, round)`; a stage that was lost and goes on from an older state begins a new generation
([decision 14](decisions/0014-generations-are-times.md)).
"""
STEP = """\
## An inner step

1. A trainer chooses one replica per stage, and names this route in every attempt. An attempt is known by
   trainer, life of the trainer, step and attempt; a later attempt ends an earlier one.
2. It takes the step locks (`open`) in stage order. A replica serves one trainer's step at a time, first come
   first served, under a lease.
3. It sends the microbatches (`train`) to the first stage, and the labels straight to the last. A stage calls
   the next one, so the answer of the outermost call brings the scores and the gradients. What a microbatch
   changes besides gradients takes effect at the commit, in the order of microbatches.
4. `prepare` goes to all stages; each answers with the norms of its gradients.
5. `decide` goes to the first stage of the route that can be reached: from there on the step stands. Then
   `commit` goes to all. A stage that cannot be reached now has lost the step; nothing is repeated.
6. A failure before `decide` aborts the attempt on every stage, and the whole step runs again over another
   route. The samples are marked as spent just before `decide`.

[Training flow](training-flow.md) shows the calls in order. Before `prepare` silence of the trainer ends the
attempt; after it only a decision does. A stage that is prepared and cannot hear its trainer asks the others
on the route (`outcome`): committed anywhere means commit. Else the first stage of the route that can be
reached has decided, or decides now ([decision 16](decisions/0016-decision-at-the-first-stage.md)). So for
every stage: sent = applied + skipped + frozen + aborted + lost + rolled back. `prepare`, `decide`, `commit`
and `abort` may be repeated; a repetition gets the same answer. A newer life of a trainer ends all that
its older lives have left open, except what is prepared.
"""
ROUND = """\
## An outer round

After its inner steps a member says `ready`. The round opens when all are ready that are waited for, or the
grace period is over; who takes part is frozen then. Each member encodes its pseudo-gradient and tells its
digest (`contribute`), fetches the set of contributions from the others (`contribution`), and computes the
result: decoding, averaging and the outer step, on the CPU in a fixed order. Members `vote` with the digest of
the result. More than half of the members with the same digest commit the round; the client writes it to its
log, then tells them. Everything else discards the attempt, which changes nothing; the next delta spans both.

Who commits merges `weights <- new anchor + (weights - base)`, where `base` is the weights at the opening if
its contribution was in the set, and the old anchor if not. A member whose result differs is behind: it
fetches the committed state, and joins again. A member that cannot learn the outcome keeps what it has, and
asks until it knows.
"""
SLOT = """\
## Start, join and resume

A server asks the client for a slot; the client grants a stage that nobody serves, else the weakest, with an
epoch; both are in the commit log before the server is told. The first of a stage founds it: it initialises
from the run's seed, calibrates its quantizers on real batches (unless the run trains in float first) and
publishes round 0 (`zero`). The others
fetch the committed state (`members`, then `snapshot` and `chunk`), which is known by its digest, and say
that they hold it (`joined`). A server that has not heard from the client for the length of its lease takes
no new steps until it has; its lease ends before the client gives the slot to another, so two servers never
serve the same slot.

With its request a server says what it holds in memory and on disk. A run that goes on does so from the newest
checkpoint step that all stages and trainers have, where each stage has one replica; else from the newest
committed round of every stage. A stage that all replicas have left is restored from the newest of the
client's mirror and a server's disk (`members` answers with `restore`), and published again (`restart`).
"""
PARTS: tuple[tuple[str, ModuleType], ...] = (
    (STEP, step_calls),
    (ROUND, round_calls),
    (SLOT, slot_calls),
    ("## Transfer of states", transfer_calls),
)
DATA = """\
A trainer and its data server talk over a Unix socket of one host, with messages of their own
(`data/serving/batch_messages.py`).
"""


def comments(source: str) -> dict[str, str]:
    """The comment behind each field or entry, by what stands before the colon."""
    found = re.findall(r"^    ([^\s#:][^:#\n]*): [^#\n]*?(?:  # (.*))?$", source, re.MULTILINE)
    return dict(found)


def text_of(kind: type) -> str:
    """The docstring's first paragraph."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def type_text(hint: Any) -> str:
    """`int (0 or more)`, `text (at most 512)`, `list of Hop`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = next(note for note in args[1:] if isinstance(note, Bounds))
        if args[0] is str:
            return f"text (at most {bounds.most:g})"
        above = f"{bounds.least:g} or more" if bounds.most > 2**62 else f"{bounds.least:g} to {bounds.most:g}"
        return f"{type_text(args[0])} ({above})"
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else type_text(arg) for arg in args)
    if origin is Literal:
        return ", ".join(f"`{str(arg).lower() if isinstance(arg, bool) else arg}`" for arg in args)
    if origin is tuple:
        if args[-1] is ...:
            return f"list of {type_text(args[0])}"
        return f"list ({', '.join(map(type_text, args))})"
    if origin is Mapping:
        return f"map to {type_text(args[1])}"
    names = {int: "int", float: "float", str: "text", bool: "bool", Any: "anything plain"}
    return names[hint] if hint in names else f"[{hint.__name__}](#{hint.__name__.lower()})"


def rows(kind: Any) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of every field as it travels."""
    hints = get_type_hints(kind, include_extras=True)
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            said |= comments(inspect.getsource(base))
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        notes = get_args(hint) if get_origin(hint) is Annotated else ()
        if FLAT in notes:
            names = ", ".join(name for name, *_ in rows(notes[0]))
            yield names, type_text(notes[0]), "", said.get(field.name, "")
            continue
        if OTHERS in notes:
            yield "any other", "anything plain", "", "figures for people"
            continue
        tag = get_origin(hint) is Literal and len(get_args(hint)) == 1
        default = "" if tag or field.default is dataclasses.MISSING else f"`{_plain(field.default)}`"
        default = default if field.default_factory is dataclasses.MISSING else "`{}`"
        yield f"`{field.name}`", type_text(hint), default, said.get(field.name, "")


def _plain(value: Any) -> str:
    names = {None: "null", True: "true", False: "false", (): "[]"}
    return (
        '""'
        if value == ""
        else names[value]
        if value is None or isinstance(value, (bool, tuple))
        else str(value)
    )


def table(head: tuple[str, ...], lines: Iterator[tuple[str, ...]]) -> str:
    made = [head, ("---",) * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in made)


def fields_table(kind: type) -> str:
    lines = list(rows(kind))
    return table(("field", "type", "default", "meaning"), iter(lines)) if lines else "No fields."


def call_text(call: type[Call[Any]]) -> str:
    """One call: what it is for, its fields, its tensors, its answers."""
    parts = [f"### `{call.method}`", f"Answered by the {' and the '.join(call.served_by)}. {text_of(call)}"]
    parts.append(fields_table(call))
    sent, back = call.tensors
    if sent or back:
        ways = (f"{way}: {what}" for way, what in (("sent", sent), ("answered", back)) if what)
        parts.append(f"Tensors {'; '.join(ways)}.")
    answers = " or ".join(f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in call.answers)
    errors = ", ".join(f"`{kind.__name__}`" for kind in call.raises)
    parts.append(f"Answer: {answers}." + (f" Errors: {errors}." if errors else ""))
    return "\n\n".join(parts)


def classes() -> Iterator[type]:
    """Answers, and what fields are made of, each once."""
    seen: set[type] = set()

    def walk(kind: Any) -> Iterator[type]:
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in seen:
            seen.add(kind)
            if not issubclass(kind, Call):
                yield kind
            for hint in get_type_hints(kind, include_extras=True).values():
                yield from walk(hint)
        for arg in get_args(kind):
            yield from walk(arg)

    for call in CALLS.values():
        for kind in (*call.answers, call):
            yield from walk(kind)


def transitions(module: ModuleType) -> str:
    """A module's TRANSITIONS, and when each happens."""
    said = comments(inspect.getsource(module))
    lines = (
        (before, event, after, said.get(f'("{before}", "{event}")', ""))
        for (before, event), after in module.TRANSITIONS.items()
    )
    return table(("state", "event", "next state", "when"), lines)


def answers() -> str:
    """What a member's call is answered with at once."""
    said = comments(inspect.getsource(round_answers))
    lines = (
        (f"`{call}`", standing, kind.__name__ if kind else "later", said.get(f'("{call}", "{standing}")', ""))
        for (call, standing), kind in round_answers.ANSWERS.items()
    )
    return table(("call", "the member, or its attempt", "answer", ""), lines)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    tables = {
        step_calls: f"### States of the step lock\n\n{transitions(step_lock)}",
        round_calls: f"### States of a round\n\n{transitions(round_convener)}\n\n"
        f"### What a member is answered\n\n{answers()}",
        slot_calls: f"### States of a slot\n\n{transitions(slot_grants)}",
    }
    for text, module in PARTS:
        parts += filter(None, [text, tables.get(module)])
        parts += [call_text(call) for call in CALLS.values() if call.__module__ == module.__name__]
    parts += [DATA, "## Answers and parts"]
    parts += [f"### {kind.__name__}\n\n{text_of(kind)}\n\n{fields_table(kind)}" for kind in classes()]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
