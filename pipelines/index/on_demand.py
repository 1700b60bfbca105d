"""Exact search of a version that need not fit in memory: reads the row groups that can hold an answer, file by file.

Local or in a bucket, without Beam. `query_index.py` makes the same looks as a Beam job, for many queries.
"""

from __future__ import annotations

from pipelines.index import code_tables
from pipelines.index.manifest import DataFile, Manifest
from pipelines.index.partition_reader import Amount, read_all, read_near
from pipelines.index.plan import Matches, SearchPlan


def search_on_demand(folder: str, manifest: Manifest, plan: SearchPlan) -> tuple[Matches, Amount]:
    """The exact answers of a plan: after a first look for near answers, a second one that certifies them.

    At most the needed rows of one file are in memory at once, beside the answers.

    Args:
        folder: path or uri of the version.
        manifest: its manifest.
        plan: from `plan_search`; with no sample given to it, this reads the sample if that pays.

    Returns:
        Matches ordered by (query, distance, row), at most k per query; and how much was read for them.

    Raises:
        OSError: a file is missing or damaged; the message names it.
    """
    read = Amount()
    if plan.k is not None:
        found, first = look(folder, manifest, plan.at_home())
        plan, of_sample = bounded(folder, manifest, plan.tightened(found))
        read = first + of_sample
    matches, last = look(folder, manifest, plan)
    return matches, read + last


def look(folder: str, manifest: Manifest, plan: SearchPlan) -> tuple[Matches, Amount]:
    """What the radii of a plan find, and how much was read for it."""
    found, read = Matches.merged([], plan.k), Amount()
    for number, table in enumerate(manifest.tables):
        for partition in table.partitions:
            for file in partition.files:
                more, amount = search_file(folder, number, partition.prefix, file, plan)
                found, read = Matches.merged([found, more], plan.k), read + amount
    return found, read


def search_file(folder: str, table: int, prefix: str, file: DataFile, plan: SearchPlan) -> tuple[Matches, Amount]:
    """What one partition file has for the queries of a plan; it is opened if its prefix is near enough to one."""
    which = plan.queries_for(table, prefix)
    if not len(which):
        return Matches.merged([], plan.k), Amount()
    rows, amount = read_near(folder, file, plan.substrings[table], plan.keys(table)[which], plan.radii[which, table])
    return plan.search(table, prefix, rows, which), amount


def bounded(folder: str, manifest: Manifest, plan: SearchPlan) -> tuple[SearchPlan, Amount]:
    """The plan, with bounds from the version's sample for those queries that are worth reading it."""
    queries = plan.worth_sampling(manifest.sample.rows)
    if not len(queries):
        return plan, Amount()
    sample, read = read_all(folder, manifest.sample, ['code'])
    return plan.sampled(queries, code_tables.codes_from_arrow(sample['code'])), read
