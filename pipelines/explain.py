"""What a query job planned and read, counted by its steps and printed by `grainhash query --explain`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipelines.index.manifest import Manifest
from pipelines.index.plan import SearchPlan


def plan_counts(plan: SearchPlan) -> dict[str, int]:
    """How many queries search each table to each radius, and the sum of their bounds, as counters that add up."""
    counts = {'bounds': int(plan.bounds.sum())}
    for table, radii in enumerate(plan.radii.T):
        values, queries = np.unique(radii[radii >= 0], return_counts=True)
        counts |= {radius_counter(table, r): n for r, n in zip(values.tolist(), queries.tolist(), strict=True)}
    return counts


def radius_counter(table: int, radius: int) -> str:
    """The name of the counter of queries that search a table to a radius."""
    return f'table_{table}_radius_{radius}'


def plan_lines(manifest: Manifest, totals: Mapping[str, int]) -> list[str]:
    """The plan of a finished job as text: a line per table, with the radii to which how many queries search it."""
    spec, queries = manifest.spec, max(totals.get('queries', 0), 1)
    lines = [f'largest distance that may be an answer: {totals.get("bounds", 0) / queries:.1f} on average']
    for number, table in enumerate(manifest.tables):
        part = table.substring
        start = part.start - spec.start(spec.names[part.segment])
        name = f'table {number}: {spec.names[part.segment]} bits {start} to {start + part.bits - 1}'
        radii = {r: totals.get(radius_counter(number, r), 0) for r in range(part.bits + 1)}
        found = [f'{n:,} scan it' if r == part.bits else f'{n:,} to radius {r}' for r, n in radii.items() if n]
        expected = sum(n * table.selectivity[r] for r, n in radii.items()) * manifest.rows / queries
        lines.append(f'{name}: {", ".join(found) or "not needed"}; about {expected:,.0f} candidates a query')
    return lines


def read_line(manifest: Manifest, totals: Mapping[str, int]) -> str:
    """How much of the index a finished job read: bytes, row groups of tables and rows, and how much there is."""
    stored = sum(f.bytes for t in manifest.tables for p in t.partitions for f in p.files)
    stored += sum(f.bytes for f in manifest.images)
    return (
        f'read {megabytes(totals.get("bytes_read", 0))} of {megabytes(stored)}: {totals.get("rows_read", 0):,} rows in '
        f'{totals.get("row_groups_read", 0):,} row groups of code tables, '
        f'{totals.get("image_row_groups_read", 0):,} row groups of images'
    )


def megabytes(count: int) -> str:
    """A number of bytes, readable."""
    return f'{count / 1e6:,.1f} MB'
