"""The report of a format whose answers are compared, and of which nothing is measured while it runs."""

from __future__ import annotations

from distqat.export.agreement_report import ExportReport, Sizes
from distqat.export.checker import versions
from distqat.export.export_request import ExportRequest
from distqat.export.output_agreement import Scores


def answers_report(
    request: ExportRequest, scores: Scores, format: str, name: str, sizes: Sizes, *packages: str
) -> ExportReport:
    """Without failures; `name` is that of the file, `packages` are those that had a part in it."""
    agreement, task = scores.agreement, request.description.task()
    return ExportReport(
        model=name,
        source=request.description.source,
        format=format,
        task=task.name,
        samples=scores.samples,
        places=agreement.places,
        agreement=agreement.share,
        threshold=request.expected.agreement,
        largest_error=agreement.largest_error,
        mean_error=agreement.mean_error,
        largest_output=agreement.spread,
        metric=task.metric,
        metrics=scores.metrics,
        operations=None,
        sizes=sizes,
        latencies=(),
        layers=(),
        failures=(),
        versions=versions(*packages),
        unseen=request.model.unseen,
    )
