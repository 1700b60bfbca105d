"""`grainhash plan`: scale plans as a table with a column for each, and what is in their way."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from hashing_model.codes.spec import CodeSpec, Segment
from pipelines.build import scale
from pipelines.build.id_buckets import BUCKETS
from pipelines.build.scale import NEIGHBOURS, QUERIES, PlanRequest, ScalePlan, images_bytes
from pipelines.index.layout import HISTOGRAM_BITS
from pipelines.reports.console import output_console
from pipelines.reports.units import describe_count, describe_hours, describe_size

# Where `limits` warns.
MANY_BLOCKS = 1e8
MANY_FILES = 1e6
BUCKET_BYTES = 0.5e9


def plan(args: argparse.Namespace, _: Sequence[str]) -> None:
    """Print what indexes of some sizes take."""
    request = PlanRequest(
        images=args.images,
        segments=args.segments if args.bits is None else CodeSpec((Segment('code', args.bits),)),
        codes=args.codes,
        unit_rows=args.unit_rows,
        partition_rows=args.partition_rows,
        images_per_core_second=args.images_per_core_second,
        workers=args.workers,
        core_hour_price=args.core_hour_price,
    )
    plans = scale.plan(request)
    if args.json:
        print(json.dumps([p.to_json() for p in plans], indent=1))
    else:
        print_plans(plans, args.workers, args.core_hour_price)


def print_plans(plans: Sequence[ScalePlan], workers: int | None = None, price: float | None = None) -> None:
    """The plans for people, on standard output, and what is in the way of each.

    Args:
        plans: of one code spec.
        workers: processes of one core that share the work; None leaves out how long they take.
        price: of a core-hour with its memory, in any currency; None leaves out money.
    """
    console = output_console(soft_wrap=True)
    spec = plans[0].scale.spec
    console.print(
        f'codes of {spec.bits} bits: {", ".join(f"{s.name} {s.bits}" for s in spec.segments)}; '
        f'queries for {NEIGHBOURS} neighbours, {QUERIES:,} at once'
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    for _ in plans:
        table.add_column(justify='right')
    for name, cell in _rows(workers, price).items():
        table.add_row(name, *map(cell, plans))
    console.print(table)
    for plan in plans:
        for line in limits(plan):
            console.print(f'{describe_count(plan.scale.rows)} images: {line}')


def limits(plan: ScalePlan) -> Iterator[str]:
    """What is in the way of such a build, or of queries afterwards, a line each."""
    shared = max(t.files_per_prefix for t in plan.tables)
    if shared > 1:
        yield f'{shared:,} files share a prefix of {HISTOGRAM_BITS} bits, the longest: a query reads all of them'
    if plan.range_reads > MANY_BLOCKS:
        yield f'{describe_count(plan.range_reads)} blocks are read from files, each by a request of its own'
    listed = plan.staged_files + plan.scale.units + plan.table_files
    if listed > MANY_FILES:
        yield (
            f'the last step, on one worker, lists {describe_count(listed)} files and deletes '
            f'{describe_count(plan.staged_files)}'
        )
    if plan.compared_bytes > BUCKET_BYTES:
        yield f'a bucket of ids, of {BUCKETS[1]} at most, takes {describe_size(plan.compared_bytes)} of memory'


def _rows(workers: int | None, price: float | None) -> dict[str, Callable[[ScalePlan], str]]:
    def hours(plan: ScalePlan) -> float:
        return plan.encoding_hours + plan.indexing_hours

    rows: dict[str, Callable[[ScalePlan], str]] = {
        'images': lambda p: describe_count(p.scale.rows),
        'work units': lambda p: describe_count(p.scale.units),
        'tables': lambda p: str(len(p.tables)),
        'bits of their substrings': lambda p: _span([t.substring.bits for t in p.tables]),
        'partitions of each': lambda p: _span([t.partitions for t in p.tables]),
        'files of each': lambda p: _span([t.files for t in p.tables]),
        'most rows of a file': lambda p: describe_count(max(t.file_rows for t in p.tables)),
        'files in all': lambda p: describe_count(p.table_files + p.scale.units + 6),
        'stored, tables': lambda p: describe_size(p.table_bytes),
        'stored, images parts': lambda p: describe_size(images_bytes(p.scale)),
        'stored, manifest': lambda p: describe_size(p.manifest_bytes),
        'stored, in all': lambda p: describe_size(p.stored_bytes),
        'written on the way and deleted': lambda p: describe_size(p.staged_bytes),
        'shuffled': lambda p: describe_size(p.shuffled_bytes),
        'blocks shuffled': lambda p: describe_count(sum(b.count for b in p.blocks)),
        'core-hours, encoding': lambda p: describe_hours(p.encoding_hours),
        'core-hours, indexing': lambda p: describe_hours(p.indexing_hours),
        'memory of a worker process': lambda p: describe_size(p.worker_bytes),
    }
    if workers is not None:
        rows[f'hours on {workers:,} cores'] = lambda p: describe_hours(hours(p) / workers)
    if price is not None:
        rows[f'core-hours at {price:g}'] = lambda p: f'{hours(p) * price:,.2f}'
    rows['candidates of a query, uniform codes'] = lambda p: _visited(p, p.uniform_candidates)
    rows['candidates of a query, clustered codes'] = lambda p: _visited(p, p.clustered_candidates)
    return rows


def _visited(plan: ScalePlan, candidates: float) -> str:
    return 'all (a scan)' if candidates > 0.999 * plan.scale.rows else describe_count(candidates)


def _span(values: Sequence[int]) -> str:
    least, most = min(values), max(values)
    return f'{least:,}' if least == most else f'{least:,} to {most:,}'
