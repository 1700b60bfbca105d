"""`grainhash evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines.cli.logs import tell_report
from pipelines.cli.models import read_options


def evaluate(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Measure how good the codes of an index or of a model are, and write figures and plots."""
    from rich.progress import Progress

    from pipelines.quality import evaluate_codes
    from pipelines.reports.console import progress_console
    from pipelines.reports.quality_table import print_quality

    request = evaluate_codes.EvaluateRequest(
        output=args.output,
        index=args.index,
        images=args.images or (),
        model=args.model,
        version=args.version,
        queries=args.queries or (),
        profiles=args.profile or (),
        max_images=args.max_images,
        max_queries=args.max_queries,
        seed=args.seed,
        split=args.split,
        read=read_options(args),
    )
    console = progress_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task('encoding', total=None)
        report = evaluate_codes.evaluate(
            request, lambda what, n, of: progress.update(task, description=what, completed=n, total=of)
        )
    if not args.json:
        print_quality(report.quality, report.model)
    tell_report(report, args.json)
