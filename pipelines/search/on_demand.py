"""Exact search of a version that need not fit in memory: it reads row groups that can hold an answer, file by file.

The version may be on a disk or in a bucket; Beam is not used. `query/job.py` does the same as a Beam job, for many
queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipelines.index import code_tables
from pipelines.index.manifest import DataFile
from pipelines.index.versions import Version
from pipelines.search.partition_reader import Amount, read_all, read_near
from pipelines.search.search_plan import Matches, SearchPlan, add_matches

# rows, and the file that has them -> which of them may be answers, bool
Allowed: TypeAlias = Callable[[NDArray[np.int64], DataFile], NDArray[np.bool_]]


def search_on_demand(
    version: Version, plan: SearchPlan, allowed: Allowed | None = None, exact: bool = True
) -> tuple[Matches, Amount]:
    """The exact answers of a plan. A first look finds near answers; a second look makes sure that none is missing.

    At most the needed rows of one file are in memory at once, beside the answers.

    Args:
        version: of the index.
        plan: from `plan_search`, without a sample; the sample is read here if that pays.
        allowed: which rows may be answers; None allows all.
        exact: False returns what the first look finds; `SearchPlan.complete_at_home` tells for which queries that is
            exact.

    Returns:
        Matches ordered by (query, distance, row), at most k per query; and how much was read for them.

    Raises:
        OSError: a file is missing or damaged; the message names it.
    """
    if not exact:
        return look(version, plan.at_home(), allowed)
    read = Amount()
    if plan.k is not None:
        found, first = look(version, plan.at_home(), allowed)
        plan, of_sample = bounded(version, plan.tightened(found), allowed)
        read = first + of_sample
    matches, last = look(version, plan, allowed)
    return matches, read + last


def look(version: Version, plan: SearchPlan, allowed: Allowed | None = None) -> tuple[Matches, Amount]:
    """The answers within the radii of a plan, and how much was read for them."""
    kept, read = [Matches.merged([], plan.k)], Amount()
    for number, table in enumerate(version.manifest.tables):
        for partition in table.partitions:
            for file in partition.files:
                more, amount = search_file(version, number, partition.prefix, file, plan, allowed)
                kept, read = add_matches(kept, more, plan.k), read + amount
    return Matches.merged(kept, plan.k), read


def search_file(
    version: Version, table: int, prefix: str, file: DataFile, plan: SearchPlan, allowed: Allowed | None = None
) -> tuple[Matches, Amount]:
    """The answers that one partition file has for a plan. It is opened only if its prefix is near enough to a query."""
    which = plan.queries_for(table, prefix)
    if not len(which):
        return Matches.merged([], plan.k), Amount()
    rows, amount = read_near(version, file, plan.substrings[table], plan.keys(table)[which], plan.radii[which, table])
    if allowed is not None:
        rows = rows.take(allowed(rows.rows, file))
    return plan.search(table, prefix, rows, which), amount


def bounded(version: Version, plan: SearchPlan, allowed: Allowed | None = None) -> tuple[SearchPlan, Amount]:
    """The plan, with bounds from the version's sample for those queries that are worth reading it."""
    queries = plan.worth_sampling(version.manifest.sample.rows)
    if not len(queries):
        return plan, Amount()
    sample, read = read_all(version, version.manifest.sample, ['code'] if allowed is None else ['code', 'row'])
    codes = code_tables.codes_from_arrow(sample['code'])
    if allowed is not None:
        codes = codes[allowed(sample['row'].to_numpy(), version.manifest.sample)]
    return plan.sampled(queries, codes), read
