from __future__ import annotations

import pytest
import torch

from distqat.distributed.serving.compute_thread import ComputeThread, Priority

pytestmark = pytest.mark.timeout(20)


async def test_threads_change_between_two_jobs() -> None:
    compute = ComputeThread(2)
    try:
        seen = [await compute.submit(Priority.FORWARD, "forward", torch.get_num_threads)]
        for threads in (1, 3):
            compute.set_threads(threads)
            seen.append(await compute.submit(Priority.FORWARD, "forward", torch.get_num_threads))
        assert seen == [2, 1, 3]
    finally:
        compute.stop()
