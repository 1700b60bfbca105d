"""What a query job did, by the counts of its steps: plan per table, bounds around a first look, what was read.

Counts are elements of the job like all others, so that a bundle which ran twice counts once, on any runner. The last
step of `job.py` and of `near_duplicates.py` writes them beside the output; the command line prints them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import files
from pipelines.index.manifest import Manifest
from pipelines.jobs.counts import add_counts
from pipelines.search.partition_reader import Amount
from pipelines.search.search_plan import SearchPlan

HEADER = ('table', 'bits', 'weight', 'probed', 'scanned', 'radius', 'expected rows', 'look', 'files', 'rows', 'MB')


def read_counts(read: Amount) -> dict[str, int]:
    """What was read of partitions, for the job's totals."""
    return {
        'bytes_read': read.bytes,
        'row_groups_read': read.row_groups,
        'rows_read': read.rows,
        'partitions_read': read.files,
    }


def look_counts(look: int, table: int, read: Amount) -> dict[str, int]:
    """What look 1 or 2 read of a file of a table, for the table and for the job's totals."""
    name = f'look/{look}/{table}'
    by_look = {f'{name}/files': read.files, f'{name}/rows': read.rows, f'{name}/bytes': read.bytes}
    return {**read_counts(read), **by_look}


def bound_counts(when: str, plan: SearchPlan) -> dict[str, int]:
    """How often each bound occurs among the queries, `before` or `after` the first look."""
    return _count_values(f'bound/{when}', plan.bounds)


def radius_counts(plan: SearchPlan) -> dict[str, int]:
    """How many queries probe each table how far, and how many rows that should visit."""
    counts: dict[str, int] = {}
    for table, shares in enumerate(plan.selectivity):
        radii = plan.radii[:, table]
        counts |= _count_values(f'radius/{table}', radii)
        counts[f'expected/{table}'] = round(plan.rows * float(np.array(shares)[radii[radii >= 0]].sum()))
    return counts


def _count_values(name: str, values: NDArray) -> dict[str, int]:
    distinct, times = np.unique(values, return_counts=True)
    return {f'{name}/{v}': n for v, n in zip(distinct.tolist(), times.tolist(), strict=True)}


def stats_path(output: str) -> str:
    """Where the totals are: `answers.jsonl` -> `answers.jsonl.stats.json`."""
    return f'{output}.stats.json'


def write_query_stats(output: str, asked: Mapping[str, Any], counts: Iterable[Iterable[Mapping[str, int]]]) -> None:
    """Write what was asked of which version, and the totals of what the steps counted, beside the output."""
    totals = add_counts(itertools.chain.from_iterable(counts))
    content = json.dumps({**asked, 'counters': dict(sorted(totals.items()))}, indent=1)
    files.write_bytes(stats_path(output), f'{content}\n'.encode())


def read_totals(output: str) -> dict[str, int]:
    """The totals of the job that wrote an output."""
    return json.loads(files.read_bytes(stats_path(output)))['counters']


def bounds_line(totals: Mapping[str, int]) -> str:
    """The least, median and greatest bound, before and after the first look, in one line."""
    found = {when: _values(totals, f'bound/{when}') for when in ('before', 'after')}
    told = [f'{_spread(bounds)} {when} the first look' for when, bounds in found.items() if bounds]
    return f'bounds (least, median, greatest): {", ".join(told) or "no query"}'


def table_lines(totals: Mapping[str, int], manifest: Manifest, weights: Sequence[int]) -> list[str]:
    """The plan and what was read for it, a line per table and look, in columns.

    Args:
        totals: the job's counters.
        manifest: of the index.
        weights: of its tables.
    """
    lines: list[tuple[str, ...]] = [HEADER]
    for number, table in enumerate(manifest.tables):
        s = table.substring
        radii = _values(totals, f'radius/{number}')
        probed = {r: n for r, n in radii.items() if 0 <= r < s.bits}
        plan = (
            str(number),
            f'{s.start}-{s.start + s.bits - 1}',
            str(weights[number]),
            f'{sum(probed.values()):,}',
            f'{radii.get(s.bits, 0):,}',
            _spread(probed),
            f'{totals.get(f"expected/{number}", 0):,}',
        )
        for look in (1, 2):
            files_, rows, size = (totals.get(f'look/{look}/{number}/{n}', 0) for n in ('files', 'rows', 'bytes'))
            of = sum(len(p.files) for p in table.partitions)
            read = (str(look), f'{files_} of {of}', f'{rows:,}', f'{size / 1e6:.1f}')
            lines.append((*(plan if look == 1 else ('',) * len(plan)), *read))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ['  '.join(f'{cell:>{w}}' for cell, w in zip(line, widths, strict=True)) for line in lines]


def read_line(totals: Mapping[str, int], manifest: Manifest) -> str:
    """What was read of how much, in one line; two looks may read the same rows twice."""
    of_tables = [file for table in manifest.tables for p in table.partitions for file in p.files]
    size = sum(file.bytes for file in (*of_tables, *manifest.images, manifest.sample))
    return (
        f'read {totals.get("bytes_read", 0) / 1e6:,.1f} MB, all looks added; the index has {size / 1e6:,.1f} MB; '
        f'of the tables {totals.get("rows_read", 0):,} of {sum(file.rows for file in of_tables):,} rows, '
        f'{totals.get("row_groups_read", 0):,} row groups, in {totals.get("partitions_read", 0):,} openings of '
        f'{len(of_tables):,} files'
    )


def _values(totals: Mapping[str, int], name: str) -> dict[int, int]:
    """Value -> how often `_count_values` counted it, ascending."""
    found = {int(n.removeprefix(f'{name}/')): times for n, times in totals.items() if n.startswith(f'{name}/')}
    return dict(sorted(found.items()))


def _spread(values: Mapping[int, int]) -> str:
    """Least, median and greatest of value -> times, ascending."""
    if not values:
        return '-'
    places = np.cumsum(list(values.values()))
    median = list(values)[int(np.searchsorted(places, (places[-1] + 1) // 2))]
    return f'{min(values)} {median} {max(values)}'
