"""The log lines that people grep for: as documented, as the code formats them, as they look in a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogLine:
    """`code` stands in a source file; with `arguments` it is a logging format that gives `shown`."""

    shown: str
    code: str
    pattern: str
    arguments: tuple[object, ...] | None = None


LOG_LINES = (
    LogLine(
        "Found expert front.0.0.0 at /ip4/127.0.0.1/tcp/50500/p2p/Qm...",
        "Found expert %s at %s",
        r"Found expert front\.0\.0\.0 at /ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+$",
        ("front.0.0.0", "/ip4/127.0.0.1/tcp/50500/p2p/Qm..."),
    ),
    LogLine(
        "Complete pipelines: 2 - [0, 1]",
        "Complete pipelines: {len(complete)} - {complete}",
        r"Complete pipelines: 1 - \[0\]$",
    ),
    LogLine(
        "Spawned trainer 0 with PID 2508688",
        "Spawned trainer %d with PID %d",
        r"Spawned trainer 0 with PID \d+$",
        (0, 2508688),
    ),
    LogLine(
        "Trainer 0 Step #100 loss = 2.34567 sps = 12.5",
        "Trainer %d Step #%d loss = %.5f sps = %.1f",
        r"Trainer 0 Step #10 loss = \d+\.\d{5} sps = \d+\.\d$",
        (0, 100, 2.34567, 12.5),
    ),
    LogLine(
        "Round 3 of back committed by 2 members in 0.41 s, 0.71 MB, digest 2f0d1c5a9b3e",
        "Round %d of %s committed by %d members in %.2f s, %.2f MB, digest %s",
        r"Round \d+ of back committed by \d+ members in \d+\.\d\d s, \d+\.\d\d MB, digest [0-9a-f]{12}$",
        (3, "back", 2, 0.41, 0.71, "2f0d1c5a9b3e"),
    ),
    LogLine(
        "No complete pipelines found; nobody serves back",
        "No complete pipelines found; nobody serves {', '.join(missing)}",
        r"No complete pipelines found; nobody serves (front, )?back$",
    ),
    LogLine(
        "ReassignmentMonitorThread started for expert front.0.0.0",
        "ReassignmentMonitorThread started for expert %s",
        r"ReassignmentMonitorThread started for expert (front|back)\.0\.0\.0$",
        ("front.0.0.0",),
    ),
)
