"""What a query job did, told by its counters: the plan per table, bounds before and after a first look, what was read.

Steps of `query_index.py`, and of `near_duplicates.py`, count, on any runner; the command line prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.index.manifest import Manifest
from pipelines.index.partition_reader import Amount
from pipelines.index.plan import SearchPlan
from pipelines.run import count

HEADER = ('table', 'bits', 'weight', 'probed', 'scanned', 'radius', 'expected rows', 'look', 'files', 'rows', 'MB')


def count_read(read: Amount) -> None:
    """Add what was read of partitions to the job's totals."""
    count(bytes_read=read.bytes, row_groups_read=read.row_groups, rows_read=read.rows, partitions_read=read.files)


def count_table_read(look: int, table: int, read: Amount) -> None:
    """Add what a look, 1 or 2, read of a table."""
    name = f'explain/look/{look}/{table}'
    count(**{f'{name}/files': read.files, f'{name}/rows': read.rows, f'{name}/bytes': read.bytes})


def count_bounds(when: str, plan: SearchPlan) -> None:
    """Note how the queries' bounds lie `before` or `after` the first look."""
    _count_values(f'explain/bound/{when}', plan.bounds)


def count_radii(plan: SearchPlan) -> None:
    """Note how many queries probe each table how far, and how many rows that should visit."""
    for table, shares in enumerate(plan.selectivity):
        radii = plan.radii[:, table]
        _count_values(f'explain/radius/{table}', radii)
        count(**{f'explain/expected/{table}': round(plan.rows * float(np.array(shares)[radii[radii >= 0]].sum()))})


def _count_values(name: str, values: NDArray) -> None:
    distinct, times = np.unique(values, return_counts=True)
    count(**{f'{name}/{v}': n for v, n in zip(distinct.tolist(), times.tolist(), strict=True)})


def bounds_line(totals: Mapping[str, int]) -> str:
    """How the bounds lay: least, median and greatest."""
    found = {when: _values(totals, f'explain/bound/{when}') for when in ('before', 'after')}
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
        radii = _values(totals, f'explain/radius/{number}')
        probed = {r: n for r, n in radii.items() if 0 <= r < s.bits}
        plan = (
            str(number),
            f'{s.start}-{s.start + s.bits - 1}',
            str(weights[number]),
            f'{sum(probed.values()):,}',
            f'{radii.get(s.bits, 0):,}',
            _spread(probed),
            f'{totals.get(f"explain/expected/{number}", 0):,}',
        )
        for look in (1, 2):
            files_, rows, size = (
                totals.get(f'explain/look/{look}/{number}/{n}', 0) for n in ('files', 'rows', 'bytes')
            )
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
