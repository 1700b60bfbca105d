"""The duplicate search over files: ids of runs of parts -> buckets of ids -> places of duplicates.

What is compared, and how, is in `encoding/ids.py`; `job.py` wires these functions into a Beam job.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines import files
from pipelines.build.base import open_base, read_images
from pipelines.build.config import BuildConfig
from pipelines.encoding.ids import IDS, IDS_WITH_CONTENT, count_changes, find_duplicates, list_ids, places_of, split_ids
from pipelines.index import versions
from pipelines.jobs.blocks import READING_THREADS, Block, get_blocks, put_blocks

BUCKETS = 16, 512  # at least and at most
BUCKET_ROWS = 125_000  # whose ids fit the processor's cache

StagedIds = tuple[int, str, bool]  # of a unit: part number, uri of its images, whether they are the base's
IdsOfBucket = tuple[int, tuple[bool, int, Block]]  # bucket; what it gets of a run: is of the base, run number, block


def id_buckets(rows: int) -> int:
    """The number of buckets in which the ids of `rows` images are compared."""
    return min(max(rows // BUCKET_ROWS, BUCKETS[0]), BUCKETS[1])


def split_run(element: tuple[int, list[StagedIds]], config: BuildConfig, rows: int) -> Iterator[IdsOfBucket]:
    """The ids of a run of units by bucket; `rows` is the number of images of all units."""
    run, units = element[0], sorted(element[1])
    columns = ['image_id', 'digest', 'code'] if config.base else ['image_id']

    def read(unit: StagedIds) -> pa.Table:
        part, uri, taken_over = unit
        return list_ids(files.read_table(uri, columns), part, bool(config.base), taken_over)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        ids = pa.concat_tables(pool.map(read, units)).combine_chunks()
    name = f'ids-{run:05d}-{files.digest(repr(units).encode())}'  # of other attempts at the units, another file
    yield from _put_ids(name, False, run, ids, config, rows)


def split_base_run(element: tuple[int, list[int]], config: BuildConfig, rows: int) -> Iterator[IdsOfBucket]:
    """The ids of a run of parts of the base that are not taken over, by bucket; none of a damaged part."""
    run, parts = element[0], sorted(element[1])
    base = open_base(config.index, config.base)

    def read(part: int) -> pa.Table:
        images = read_images(base, part, ['image_id', 'digest', 'code'])
        return list_ids(images, part, with_content=True) if images else IDS_WITH_CONTENT.empty_table()

    with ThreadPoolExecutor(READING_THREADS) as pool:
        ids = pa.concat_tables(pool.map(read, parts)).combine_chunks()
    yield from _put_ids(f'base-ids-{run:05d}-{len(ids)}', True, run, ids, config, rows)


def _put_ids(
    name: str, of_base: bool, run: int, ids: pa.Table, config: BuildConfig, rows: int
) -> Iterator[IdsOfBucket]:
    of_either = max(rows, open_base(config.index, config.base).manifest.rows) if config.base else rows
    uri = config.index_version.path(f'{versions.STAGING_FOLDER}/{name}.arrow')
    for bucket, block in put_blocks(uri, split_ids(ids, id_buckets(of_either))):
        yield bucket, (of_base, run, block)


def compare_ids(element: tuple[int, Sequence[tuple[bool, int, Block]]], with_base: bool) -> Iterator[Any]:
    """The duplicates of one bucket of ids: (unit number, places of ids that occur earlier).

    With a base, also one element ('changes', the counts of `count_changes`).
    """
    blocks = sorted(element[1], key=lambda block: block[:2])
    schema = IDS_WITH_CONTENT if with_base else IDS
    batches = get_blocks([block for *_, block in blocks], schema)
    of_units = sum(not of_base for of_base, *_ in blocks)
    ids = pa.Table.from_batches(batches[:of_units], schema)
    duplicates = find_duplicates(ids['image_id'])
    for number, places in places_of(ids['row'].to_numpy()[duplicates]):
        yield number, places.astype('<u4').tobytes()
    if with_base:
        names = ['image_id', 'content']
        now, left = ids.select(names), pa.Table.from_batches(batches[of_units:], schema).select(names)
        before = pa.concat_tables([now.filter(ids['taken_over']), left])
        now = now.filter(pa.array(~duplicates)) if duplicates.any() else now
        from apache_beam.pvalue import TaggedOutput

        yield TaggedOutput('changes', count_changes(now, before))
