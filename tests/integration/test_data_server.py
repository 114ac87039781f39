"""The data server over a real Unix socket: leases, deaths, positions, hostile bytes."""

# ruff: noqa: ASYNC240 - looking at a path does not block here
from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from distqat.data.open_source import open_source
from distqat.data.options import DataOptions
from distqat.data.serving import batch_messages
from distqat.data.serving.batch_client import DataClient, LeasedBatch
from distqat.data.serving.batch_memory import SlotMemory
from distqat.data.serving.batch_server import DataServer, listen
from distqat.errors import BadFrame, Busy, DataError, DataServerGone, ProtocolMismatch
from distqat.tasks import Batch, Sample, TaskSettings, get_task
from distqat.tasks.base import Place
from distqat.tasks.cv import ImageClassification

OPTIONS = DataOptions(img_size=8, num_channels=1)
TRAINING = 1438  # digits without the held-out fifth


def digits_server(**kwargs: Any) -> DataServer:
    task = get_task("cv", TaskSettings(num_classes=kwargs.pop("num_classes", 10), num_channels=1, img_size=8))
    return DataServer(open_source(OPTIONS, seed=kwargs.pop("seed", 3)), task, **kwargs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "data.sock"


@pytest_asyncio.fixture
async def server(path: Path) -> AsyncIterator[DataServer]:
    server = digits_server()
    await server.start(path)
    yield server
    await server.stop()
    assert not path.exists()


async def connect(path: Path, count: int = 32, **kwargs: Any) -> DataClient:
    return await DataClient.connect(path, trainer="0", count=count, **kwargs)


def places(lease: LeasedBatch) -> list[tuple[int, int]]:
    return [(epoch, i) for epoch, start, stop in lease.spans for i in range(start, stop)]


async def lease_from(client: DataClient, first: tuple[int, int]) -> LeasedBatch:
    """The lease that begins with this sample, as soon as the server has noticed who lost it."""
    while places(lease := await client.next(32))[0] != first:
        await client.release(lease.batch_id)
    return lease


async def test_batches_are_those_of_the_source(server: DataServer, path: Path) -> None:
    client = await connect(path)
    source, task = open_source(OPTIONS, seed=3), get_task("cv", TaskSettings(num_channels=1, img_size=8))
    for _ in range(5):
        lease = await client.next(32)
        expected = task.collate([item.sample for item in source.take(32)])
        assert lease.batch.size == 32
        assert torch.equal(lease.batch.inputs["x"], expected.inputs["x"])
        assert torch.equal(lease.batch.labels["y"], expected.labels["y"])
        await client.consumed(lease.batch_id)
    await client.close()


async def test_each_sample_once_per_epoch_over_all_trainers(server: DataServer, path: Path) -> None:
    seen: Counter[tuple[int, int]] = Counter()

    async def train(count: int) -> None:
        client = await connect(path, count)
        while not seen or max(seen)[0] < 2:
            lease = await client.next(count)
            seen.update(places(lease))
            await client.consumed(lease.batch_id)
        await client.close()

    await asyncio.gather(train(32), train(32), train(20))
    assert set(seen.values()) == {1}
    assert {place for place in seen if place[0] < 2} == {(e, i) for e in range(2) for i in range(TRAINING)}


async def test_a_closed_trainers_batches_are_next_for_the_others(server: DataServer, path: Path) -> None:
    first, second = await connect(path), await connect(path)
    a, b = await first.next(32), await first.next(32)
    await first.consumed(a.batch_id)
    await first.close()
    assert (await lease_from(second, (0, 32))).spans == b.spans
    with pytest.raises(DataServerGone, match="closed"):
        await first.next(32)
    await second.close()


async def test_released_batches_are_next(server: DataServer, path: Path) -> None:
    client = await connect(path)
    a, _ = await client.next(32), await client.next(32)
    await client.release(a.batch_id)
    assert places(await client.next(16)) == places(a)[:16]
    with pytest.raises(DataError, match="not leased"):
        await client.consumed(a.batch_id)
    await client.close()


async def test_a_killed_trainers_batches_come_back(server: DataServer, path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from distqat.data.serving.batch_client import DataClient\n"
        "async def main():\n"
        "    client = await DataClient.connect(Path(sys.argv[1]), trainer='1', count=32)\n"
        "    lease = await client.next(32); print(lease.batch_id, flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 50)
    finally:
        process.kill()
        await process.wait()
    client = await connect(path)
    lease = await lease_from(client, (0, 0))
    assert places(lease) == [(0, i) for i in range(32)]
    await client.close()


async def test_a_silent_trainer_loses_its_leases(path: Path) -> None:
    server = digits_server(silence_s=1.0)
    await server.start(path)
    stopped, live = await connect(path, ping_s=600), await connect(path, ping_s=0.1)
    lease = await stopped.next(32)
    await asyncio.wait_for(asyncio.shield(stopped._tasks[0]), 20)  # its receiver ends with the connection
    again = await live.next(32)
    assert places(again) == places(lease)
    assert lease.batch.inputs["x"].isfinite().all()  # its own memory stays readable
    with pytest.raises(DataServerGone):
        await stopped.consumed(lease.batch_id)
    await live.close()
    await stopped.close()
    await server.stop()


@pytest.mark.parametrize("slots", [1, 4, 9])
async def test_slots_are_bounded(server: DataServer, path: Path, slots: int) -> None:
    client = await connect(path, 4, slots=slots)
    leases = [await client.next(4) for _ in range(slots)]
    with pytest.raises(Busy, match=f"all {slots} batches are leased"):
        await client.next(4)
    await client.consumed(leases[0].batch_id)
    assert places(await client.next(4)) == [(0, i) for i in range(4 * slots, 4 * slots + 4)]
    await client.close()


async def test_a_batch_larger_than_announced_is_refused_and_lost_by_nobody(
    server: DataServer, path: Path
) -> None:
    client = await connect(path, 4)
    with pytest.raises(DataError, match="announce the largest batch"):
        await client.next(256)
    assert places(await client.next(4)) == [(0, i) for i in range(4)]
    await client.close()


async def test_restart_from_a_position(path: Path) -> None:
    server = digits_server()
    await server.start(path)
    client = await connect(path)
    leases = [await client.next(32) for _ in range(3)]
    await client.consumed(leases[1].batch_id)
    position = await client.position()
    assert position == server.position()
    await server.stop()
    with pytest.raises(DataServerGone):
        await client.next(32)
    again = digits_server()
    again.restore(position)
    await again.start(path)
    other = await connect(path)
    got = [await other.next(32) for _ in range(2)]
    assert [places(lease) for lease in got] == [places(leases[0]), places(leases[2])]
    assert torch.equal(got[1].batch.inputs["x"], leases[2].batch.inputs["x"])
    with pytest.raises(DataError, match="belongs to 'digits seed=3"):
        digits_server(seed=4).restore(position)
    for each in (client, other):
        await each.close()
    await again.stop()


async def test_consumed_brings_the_position_after_it(server: DataServer, path: Path) -> None:
    first, second = await connect(path), await connect(path, 20)
    assert first.last_position is None
    a, b = await first.next(32), await second.next(20)
    await second.consumed(b.batch_id)
    assert second.last_position == server.position()
    assert second.last_position is not None
    assert (second.last_position["index"], second.last_position["done"]) == (0, [[0, 32, 52]])
    c = await first.next(32)
    await first.consumed(a.batch_id)
    assert first.last_position == server.position() == await second.position()
    assert second.last_position["index"] == 0  # as of its own batch
    await first.release(c.batch_id)
    for each in (first, second):
        await each.close()


@pytest.mark.parametrize("trial", range(3))
async def test_restored_it_goes_on_with_exactly_what_was_not_consumed(
    tmp_path: Path, seed: int, trial: int
) -> None:
    """Lives of the server, each restored from what some trainer's last commit said; then all is counted."""
    rng = random.Random(seed + trial)
    position: dict[str, Any] | None = None
    consumed: Counter[tuple[int, int]] = Counter()
    while max(consumed, default=(0, 0)) < (1, 100):
        server = digits_server(workers=rng.choice([0, 2]))
        if position is not None:
            server.restore(position)
        path = tmp_path / f"run-{rng.getrandbits(40)}" / "data.sock"
        await server.start(path)
        clients = [await connect(path, 64) for _ in range(2)]
        for _ in range(rng.randrange(1, 12)):
            client = rng.choice(clients)
            lease = await client.next(rng.choice([20, 32, 64]))
            fate = rng.choice(["consumed", "consumed", "released", "kept"])
            if fate == "consumed":
                await client.consumed(lease.batch_id)
                position = client.last_position
                consumed.update(places(lease))
            elif fate == "released":
                await client.release(lease.batch_id)
            else:  # with a trainer that ends
                await client.close()
                clients[clients.index(client)] = await connect(path, 64)
        for client in clients:
            await client.close()
        await server.stop()
    assert set(consumed.values()) == {1}, "nothing came twice"
    assert position is not None
    low = (position["epoch"], position["index"])
    assert low not in consumed
    assert {place for place in consumed if place < low} == {
        (e, i) for e in range(low[0] + 1) for i in range(TRAINING) if (e, i) < low
    }, "nothing was left out"


async def test_errors_of_the_task_reach_the_trainer(path: Path) -> None:
    server = digits_server(num_classes=2)
    await server.start(path)
    with pytest.raises(DataError, match=r"sample \d+ of epoch 0 .*: label \d is outside the classes"):
        await connect(path)
    await server.stop()


class Careless(ImageClassification):
    """Raises whatever it is told to, for the samples behind the first two batches."""

    def __init__(self, raised: BaseException | None = None, batch: Any = None) -> None:
        super().__init__(num_classes=10, num_channels=1, img_size=8)
        self.raised, self.batch = raised, batch

    def collate_at(self, samples: Sequence[Sample], places: Sequence[Place]) -> Any:
        if any(index >= 64 for _, index in places):
            if self.raised is not None:
                raise self.raised
            return self.batch
        return self.collate(samples)


def batch(x: Any) -> Careless:
    return Careless(batch=Batch({"x": x}, {}, 32))


CARELESS = {  # made anew in each test: an exception holds on to what was in its frames
    "KeyError": lambda: Careless(KeyError("no such column")),
    "OSError": lambda: Careless(OSError("image file is truncated (5 bytes not processed)")),
    "StopIteration": lambda: Careless(StopIteration()),
    "SystemExit": lambda: Careless(SystemExit(3)),
    "no batch": lambda: Careless(batch="three"),
    "no tensors": lambda: batch([1.0]),
    "a tensor that does not travel": lambda: batch(torch.zeros(32, dtype=torch.complex64)),
    "a tensor without memory": lambda: batch(torch.zeros(32, device="meta")),
    "a sparse tensor": lambda: batch(torch.eye(32).to_sparse()),
    "a batch that is too large": lambda: batch(torch.zeros(1 << 20)),
}
RAISED = ("KeyError", "OSError", "StopIteration", "SystemExit")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", CARELESS)
async def test_whatever_is_raised_is_answered_at_once_and_alike(kind: str, workers: int, path: Path) -> None:
    server = DataServer(open_source(OPTIONS, seed=3), CARELESS[kind](), workers=workers)
    await server.start(path)
    client = await connect(path)
    for _ in range(2):
        await client.consumed((await client.next(32)).batch_id)
    said = set[str]()
    for _ in range(4):  # more often than there are slots: none is lost
        with pytest.raises(DataError) as raised:
            await client.next(32, timeout_s=20)
        assert not isinstance(raised.value, DataServerGone)
        said.add(str(raised.value))
    assert len(said) == 1  # so that whoever counts repetitions sees one
    assert kind not in RAISED or said.pop().startswith("sample 64 of epoch 0 ")
    await client.close()
    await server.stop()


async def test_an_exception_of_the_server_itself_is_answered(
    server: DataServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await connect(path)
    lease = await client.next(32)

    def broken(*_: Any) -> None:
        raise RuntimeError("sample (0, 3) is consumed but is not out")

    with monkeypatch.context() as patch:
        patch.setattr(server._prefetch, "consume", broken)
        with pytest.raises(DataError, match="cannot answer 'consumed': RuntimeError: sample"):
            await client.consumed(lease.batch_id)
    with monkeypatch.context() as patch:
        patch.setattr(server._prefetch, "state", lambda: {"done": [[0, 1, 2]] * (1 << 19)})
        with pytest.raises(BadFrame, match="exceeds"):  # an answer that is too large to be sent
            await client.position()
    with monkeypatch.context() as patch:
        patch.setattr(SlotMemory, "create", classmethod(lambda *_: broken()))
        with pytest.raises(DataError, match="cannot serve a trainer: RuntimeError"):
            await connect(path)
        patch.setattr(SlotMemory, "create", classmethod(lambda *_: os.open("/nothing", os.O_RDONLY)))
        with pytest.raises(DataError, match="no memory to share"):
            await connect(path)
    with monkeypatch.context() as patch:
        patch.setattr(server._prefetch, "account", broken)  # behind the consumption: it is not done twice
        for _ in range(3):
            with pytest.raises(DataError, match="cannot answer 'consumed': RuntimeError"):
                await client.consumed(lease.batch_id)
    await client.consumed(lease.batch_id)
    assert client.last_position is not None
    assert client.last_position["index"] == 32
    assert places(await client.next(32))[0] == (0, 32)  # and it goes on
    await client.close()


async def test_a_file_whose_name_is_no_text_is_named_too(path: Path, tmp_path: Path) -> None:
    for name in (b"a", b"b"):
        folder = os.fsencode(tmp_path / "images") + b"/" + name
        os.makedirs(folder)
        for i in range(5):
            Path(os.fsdecode(folder + b"/caf\xe9 %d.png" % i)).write_bytes(b"no picture")
    source = open_source(DataOptions(dataset_name=str(tmp_path / "images")), seed=0)
    server = DataServer(source, get_task("cv", TaskSettings()))
    await server.start(path)
    with pytest.raises(DataError, match=r"caf\\udce9 \d\.png: it is not an image"):
        await connect(path, 4)
    await server.stop()


async def test_what_is_left_out_is_told_with_each_batch(path: Path) -> None:
    server = digits_server()
    await server.start(path)
    client = await connect(path)
    assert client.account == {}
    await client.consumed((await client.next(32)).batch_id)
    assert client.account["line"] == "none of 1,797 samples left out"
    await client.close()
    await server.stop()


async def test_nobody_there(path: Path) -> None:
    with pytest.raises(DataServerGone, match="no data server answers"):
        await connect(path)


async def test_a_stopped_server_is_noticed(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    listener = listen(path)
    with pytest.raises(DataServerGone, match="no answer in time"):
        await connect(path, timeout_s=0.1)
    listener.close()


async def test_the_directory_is_private_and_the_socket_exclusive(server: DataServer, path: Path) -> None:
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(DataError, match="already listens"):
        await digits_server().start(path)
    path.parent.chmod(0o755)
    with pytest.raises(DataError, match="open to others"):
        listen(path.with_name("other.sock"))
    with pytest.raises(DataError, match="longer than"):
        listen(path.with_name("x" * 100))


async def test_a_socket_left_behind_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    listen(path).close()
    assert path.is_socket()
    server = digits_server()
    await server.start(path)
    await (await connect(path)).close()
    await server.stop()


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff" * 64,
        b"\x00\x00\x00\x00",
        batch_messages.encode({"op": "next", "id": 0}),
        batch_messages.encode(
            {
                "op": "hello",
                "id": 0,
                "protocol": batch_messages.PROTOCOL,
                "trainer": 5,
                "count": 1,
                "slots": 1,
            }
        ),
        batch_messages.encode(
            {
                "op": "hello",
                "id": 0,
                "protocol": batch_messages.PROTOCOL,
                "trainer": "x",
                "count": -1,
                "slots": 1,
            }
        ),
        batch_messages.encode(
            {"op": "hello", "id": 0, "protocol": 99, "trainer": "x", "count": 1, "slots": 1}
        ),
    ],
)
async def test_hostile_hellos_end_alone(server: DataServer, path: Path, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 10)
    if answer:
        assert batch_messages.decode(answer[4:])["ok"] is False
    writer.close()
    client = await connect(path)
    assert places(await client.next(4)) == [(0, i) for i in range(4)]
    await client.close()


async def test_protocols_must_agree(server: DataServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = {"op": "hello", "id": 0, "protocol": 99, "trainer": "x", "count": 1, "slots": 1}
    real = batch_messages.encode
    monkeypatch.setattr(
        batch_messages, "encode", lambda sent: real(hello if sent.get("op") == "hello" else sent)
    )
    with pytest.raises(ProtocolMismatch, match="protocol 1, the trainer 99"):
        await connect(path)


@pytest.mark.parametrize("request_", [{"op": "steal"}, {"op": "next", "count": 0}, {"op": "consumed"}])
async def test_bad_requests_fail_alone(server: DataServer, path: Path, request_: dict[str, Any]) -> None:
    client = await connect(path)
    with pytest.raises(BadFrame):
        await client._call(request_, 5.0)
    assert (await client.next(4)).batch.size == 4
    await client.close()


def open_files() -> Counter[str]:
    """What this process holds open, by name; sockets and memory of the data server among them."""
    gc.collect()
    files = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return Counter(os.readlink(file).partition(":[")[0] for file in files if file.is_symlink())


async def test_nothing_is_left_behind(path: Path) -> None:
    before = open_files()
    server = digits_server(workers=2)
    await server.start(path)
    client = await connect(path)
    kept = (await client.next(32)).batch
    await client.close()
    await server.stop()
    assert kept.labels["y"].numel() == 32  # the memory lives as long as the last view
    del client, server, kept
    for _ in range(10):  # transports close in the loop's next turns
        await asyncio.sleep(0)
    after = open_files()
    assert not after - before
    assert not [name for name in after if "distqat-data" in name]
    assert "distqat-data" not in Path("/proc/self/maps").read_text()
    assert list(path.parent.iterdir()) == []


def test_works_on_uvloop(path: Path) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")

    async def run() -> None:
        server = digits_server()
        await server.start(path)
        client = await connect(path)
        lease = await client.next(32)
        await client.consumed(lease.batch_id)
        assert (await client.position())["index"] == 32
        await client.close()
        await server.stop()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
